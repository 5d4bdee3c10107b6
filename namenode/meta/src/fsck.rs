//! Recounts everything from the rows, without believing any of the tables that are kept in step by
//! `apply`: each is derived again from the others and compared.
//!
//! Takes memory in proportion to the number of inodes, names and chunks, for as long as it runs.

mod locks;
mod sessions;
mod storage;
mod tree;
mod xattrs;

use std::collections::BTreeSet;

use dfs_proto::msg::admin::{ChunkHealth, Counts, FsckReport, Problem, ProblemKind};
use dfs_proto::{ChunkId, InodeId};

use crate::repair::{self, Known};
use crate::rows;
use crate::view::{Fault, View};

use storage::Storage;
use tree::Tree;

/// Problems that are told in words. The rest is only counted.
const PROBLEMS_MAX: usize = 1000;

/// Recounts and compares. `root` limits it to what lies below one directory, or to one file; the
/// cluster's root means everything.
pub fn check(view: &dyn View, root: InodeId, known: Known<'_>) -> Result<FsckReport, Fault> {
    let whole = root == InodeId::ROOT;
    let mut found = Findings::default();
    let tree = Tree::load(view, &mut found)?;
    let storage = Storage::load(view, &tree, &mut found)?;
    storage.check_files(&tree, known, &mut found);
    storage.check_lost(&tree, &mut found);
    sessions::check(view, &tree, &storage, &mut found)?;
    locks::check(view, &tree, &mut found)?;
    xattrs::check(view, &tree, &mut found)?;
    if whole {
        let counts = tree.counts(None, storage.chunks.len(), rows::sessions(view)?.len());
        found.compare_counts(&counts, &rows::totals(view)?.counts);
    }

    let (inodes, chunks) = match whole {
        true => (None, storage.chunks.keys().copied().collect()),
        false => {
            let inodes = tree.below(root);
            let chunks = storage.used_by(&inodes);
            if inodes.is_empty() {
                found.inode(ProblemKind::Missing, root, format!("inode {root} does not exist"));
            }
            (Some(inodes), chunks)
        }
    };
    let mut report = FsckReport {
        counts: tree.counts(inodes.as_ref(), chunks.len(), 0),
        chunks: health(view, &storage, &chunks, known)?,
        ..FsckReport::default()
    };
    if whole {
        report.counts.sessions = rows::sessions(view)?.len() as u64;
    }
    for mut problem in found.problems {
        let inside = match (&inodes, problem.inode, problem.chunk) {
            (None, _, _) => true,
            (Some(inodes), Some(inode), _) => inode == root || inodes.contains(&inode),
            (Some(_), None, Some(chunk)) => chunks.contains(&chunk),
            (Some(_), None, None) => false,
        };
        if inside {
            report.problems_total += 1;
            if report.problems.len() < PROBLEMS_MAX {
                problem.path = problem.inode.and_then(|inode| tree.path(inode));
                report.problems.push(problem);
            }
        }
    }
    Ok(report)
}

/// The paths of inodes, as far as they have names; their numbers otherwise. Reads all names.
pub(crate) fn paths(view: &dyn View, inodes: &BTreeSet<InodeId>) -> Result<Vec<String>, Fault> {
    let tree = Tree::load(view, &mut Findings::default())?;
    Ok(inodes.iter().map(|inode| tree.path(*inode).unwrap_or_else(|| format!("inode {inode}"))).collect())
}

fn health(
    view: &dyn View,
    storage: &Storage,
    chunks: &BTreeSet<ChunkId>,
    known: Known<'_>,
) -> Result<ChunkHealth, Fault> {
    let live_nodes = rows::datanodes(view)?.iter().filter(|(node, _)| (known.live)(*node)).count();
    let mut health = ChunkHealth::default();
    for (chunk, row) in storage.chunks.iter().filter(|(chunk, _)| chunks.contains(chunk)) {
        repair::count(&mut health, *chunk, row, known, live_nodes);
        health.lost_ends += u64::from(storage.lost_ends.contains_key(chunk));
    }
    Ok(health)
}

#[derive(Default)]
struct Findings {
    problems: Vec<Problem>,
}

impl Findings {
    fn inode(&mut self, kind: ProblemKind, inode: InodeId, text: String) {
        self.problems.push(Problem { kind, text, inode: Some(inode), chunk: None, path: None });
    }

    fn chunk(&mut self, kind: ProblemKind, chunk: ChunkId, inode: Option<InodeId>, text: String) {
        self.problems.push(Problem { kind, text, inode, chunk: Some(chunk), path: None });
    }

    /// Rows of an inode contradict each other.
    fn broken_inode(&mut self, inode: InodeId, text: String) {
        self.inode(ProblemKind::Inconsistent, inode, text);
    }

    fn broken_chunk(&mut self, chunk: ChunkId, text: String) {
        self.chunk(ProblemKind::Inconsistent, chunk, None, text);
    }

    /// Rows of neither.
    fn broken(&mut self, text: String) {
        self.problems.push(Problem { kind: ProblemKind::Inconsistent, text, inode: None, chunk: None, path: None });
    }

    fn compare_counts(&mut self, recounted: &Counts, kept: &Counts) {
        if recounted != kept {
            self.broken(format!("the live counters say {kept:?}, and the rows are {recounted:?}"));
        }
    }
}

#[cfg(test)]
mod tests;
