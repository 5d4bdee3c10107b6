//! A directory of very many entries, made and changed by many clients at once.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Instant;

use dfs_client::{Dfs, MakeOptions, Options};
use dfs_proto::limits::READDIR_PAGE_MAX;
use dfs_proto::msg::meta::NewNode;
use dfs_proto::{Caller, InodeId, Name};

use crate::support::Group;

/// How many entries instead of 20,000.
const ENTRIES: &str = "DFS_TEST_ENTRIES";

const CLIENTS: u64 = 4;

/// Requests of one client under way at a time.
const AT_ONCE: u64 = 64;

fn name(kind: char, number: u64) -> Name {
    Name::new(format!("{kind}{number:08}")).unwrap()
}

async fn make(dfs: &Dfs, parent: InodeId, name: &Name, node: NewNode) -> InodeId {
    let options = MakeOptions { exclusive: true, ..MakeOptions::default() };
    dfs.make(&Caller::ROOT, parent, name, node, 0o644, options).await.unwrap().attr.inode
}

/// Every client works on its share of the numbers below `count`, with many requests under way.
async fn by_all<F: Future<Output = ()> + Send + 'static>(
    clients: &[Arc<Dfs>],
    count: u64,
    work: impl Fn(Arc<Dfs>, u64) -> F + Clone + Send + 'static,
) {
    let lanes = clients.len() as u64 * AT_ONCE;
    let lane = |lane: u64| {
        let (dfs, work) = (clients[(lane % clients.len() as u64) as usize].clone(), work.clone());
        tokio::spawn(async move {
            for number in (lane..count).step_by(lanes as usize) {
                work(dfs.clone(), number).await;
            }
        })
    };
    let running: Vec<_> = (0..lanes).map(lane).collect();
    for lane in running {
        lane.await.unwrap();
    }
}

/// Names with how often each was listed, and the number of pages.
async fn list(dfs: &Dfs, directory: InodeId) -> (HashMap<Name, u32>, u32) {
    let (mut seen, mut pages, mut after) = (HashMap::new(), 0, 0);
    loop {
        let page = dfs.read_dir(&Caller::ROOT, directory, after, READDIR_PAGE_MAX, true).await.unwrap();
        pages += 1;
        for entry in &page.entries {
            *seen.entry(entry.name.clone()).or_default() += 1;
            after = entry.cookie;
        }
        if page.end {
            return (seen, pages);
        }
    }
}

#[test]
fn a_large_directory_lists_every_entry_once_while_others_come_and_go() {
    let group = Group::formed(3, |_| {});
    let entries: u64 = std::env::var(ENTRIES).map_or(20_000, |entries| entries.parse().unwrap());
    let clients: Vec<Arc<Dfs>> = (0..CLIENTS).map(|n| Arc::new(group.dfs(501 + n, Options::default()))).collect();
    group.runtime.block_on(async {
        let directory = make(&clients[0], InodeId::ROOT, &name('d', 0), NewNode::Directory).await;
        let start = Instant::now();
        by_all(&clients, entries, move |dfs, number| async move {
            make(&dfs, directory, &name('f', number), NewNode::File).await;
        })
        .await;
        let made = start.elapsed();

        // Others come and go for as long as it is listed.
        let churn = tokio::spawn({
            let dfs = clients[1].clone();
            async move {
                for number in 0.. {
                    make(&dfs, directory, &name('x', number), NewNode::File).await;
                    dfs.unlink(&Caller::ROOT, directory, &name('x', number)).await.unwrap();
                }
            }
        });
        let start = Instant::now();
        let (seen, pages) = list(&clients[2], directory).await;
        let listed = start.elapsed();
        churn.abort();
        for number in 0..entries {
            assert_eq!(seen.get(&name('f', number)), Some(&1), "file {number}");
        }
        assert!(seen.values().all(|&times| times == 1), "an entry was listed twice");

        // Half of them go; a listing that began before goes on where it was.
        let first = clients[3].read_dir(&Caller::ROOT, directory, 0, 100, false).await.unwrap();
        let kept: Vec<Name> = first.entries.iter().map(|entry| entry.name.clone()).collect();
        by_all(&clients, entries / 2, move |dfs, number| async move {
            dfs.unlink(&Caller::ROOT, directory, &name('f', 2 * number)).await.unwrap();
        })
        .await;
        let after = first.entries.last().unwrap().cookie;
        let (mut rest, mut after) = (Vec::new(), after);
        loop {
            let page = clients[3].read_dir(&Caller::ROOT, directory, after, READDIR_PAGE_MAX, false).await.unwrap();
            rest.extend(page.entries.iter().map(|entry| entry.name.clone()));
            after = page.entries.last().map_or(after, |entry| entry.cookie);
            if page.end {
                break;
            }
        }
        let all: HashSet<&Name> = kept.iter().chain(&rest).collect();
        assert_eq!(all.len(), kept.len() + rest.len(), "an entry was listed twice");
        assert!((1..entries).step_by(2).all(|number| all.contains(&name('f', number))), "an entry was left out");
        let rest: HashSet<Name> = rest.into_iter().collect();
        assert!((0..entries).step_by(2).all(|number| !rest.contains(&name('f', number))), "a removed entry was listed");
        eprintln!(
            "{entries} entries: made in {made:.1?} ({:.0} per second), listed with attributes in {listed:.1?} by {pages} pages",
            entries as f64 / made.as_secs_f64(),
        );
    });
    for dfs in clients {
        let dfs = Arc::into_inner(dfs).expect("nobody uses it any more");
        group.runtime.block_on(dfs.shutdown()).unwrap();
    }
}
