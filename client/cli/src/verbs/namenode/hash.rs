//! Whether all namenodes have the same state.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use dfs_client::{Dfs, Options};
use dfs_proto::NodeId;
use dfs_proto::msg::group::{GroupRequest, GroupStatus};
use serde_json::json;

use crate::context::Context;
use crate::error::{Exit, Failure, Result};
use crate::output::Tone;

/// How long namenodes may lag behind the entry. One that is silent is not waited for.
const DEADLINE: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(50);

pub async fn run(context: &Context, index: Option<u64>) -> Result {
    let dfs = Dfs::connect(&context.config()?, Options::default()).await?;
    let before = dfs.group_members().await?;
    if index.is_none() {
        dfs.change_group(GroupRequest::CheckState).await?;
    }
    let seen = before.checks.last().map_or(0, |check| check.index);
    let deadline = Instant::now() + DEADLINE;
    loop {
        let answers = dfs.each_namenode().await;
        let wanted = index.or_else(|| newest(&before, &answers, seen));
        let found: Vec<_> = before.members.iter().map(|member| hash_of(member.node, &answers, wanted)).collect();
        let silent = |node| !answers.iter().any(|status| status.from == node);
        let complete = before.members.iter().zip(&found).all(|(member, hash)| hash.is_some() || silent(member.node));
        if (complete && wanted.is_some()) || Instant::now() >= deadline {
            return print(context, &before, wanted, &found);
        }
        tokio::time::sleep(POLL).await;
    }
}

/// The entry that was checked on request, as the namenode that has most of the log knows it.
fn newest(before: &GroupStatus, answers: &[GroupStatus], seen: u64) -> Option<u64> {
    let leader = answers.iter().find(|status| Some(status.from) == before.leader);
    leader.or(answers.first())?.checks.last().map(|check| check.index).filter(|index| *index > seen)
}

fn hash_of(node: NodeId, answers: &[GroupStatus], index: Option<u64>) -> Option<[u8; 32]> {
    let status = answers.iter().find(|status| status.from == node)?;
    status.checks.iter().find(|check| Some(check.index) == index).map(|check| check.hash)
}

fn print(context: &Context, group: &GroupStatus, index: Option<u64>, hashes: &[Option<[u8; 32]>]) -> Result {
    let known: BTreeSet<_> = hashes.iter().flatten().collect();
    if known.is_empty() {
        return Err(Failure::temporary("no namenode has a hash of that entry")
            .hint("without --index one is checked now; the last 16 are kept"));
    }
    let hex = |hash: &[u8; 32]| hash.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    if context.out.json {
        let namenodes: Vec<_> = group
            .members
            .iter()
            .zip(hashes)
            .map(|(member, hash)| json!({"node": member.node, "name": member.name, "hash": hash.as_ref().map(hex)}))
            .collect();
        context.out.object(json!({"index": index, "equal": known.len() == 1, "namenodes": namenodes}))?;
    } else {
        for (member, hash) in group.members.iter().zip(hashes) {
            let shown = hash.as_ref().map_or("not known".to_owned(), hex);
            context.out.line(format!("{:8} {shown}", member.name))?;
        }
        let (tone, word) = if known.len() == 1 { (Tone::Good, "equal") } else { (Tone::Bad, "DIFFERENT") };
        let at = index.map_or(String::new(), |index| format!(" at log entry {index}"));
        context.out.line(format!("{}{at}", context.out.paint(tone, word)))?;
    }
    // Told in the answer already.
    if known.len() == 1 { Ok(()) } else { Err(Failure::silent(Exit::Corrupt)) }
}
