//! An audit that asks no namenode: what lies on the datanodes' disks, verified file by file.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::local::Cluster;

/// A chunk file in use, as `dfs datanode verify` finds it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DiskReplica {
    pub node: String,
    pub path: PathBuf,
    pub chunk: u64,
    pub epoch: u64,
    pub len_bytes: u64,
    pub frames: u64,
    /// Sealed, and not still open for appends or found damaged by its datanode.
    pub sealed: bool,
    /// What is wrong with it; empty if every frame verifies.
    pub problems: Vec<String>,
}

/// Every chunk file of a node, also those that cannot be read as one.
pub fn replicas_of(cluster: &Cluster, node: &str) -> Result<Vec<DiskReplica>> {
    verified(cluster, node, files_of(cluster, node)?)
}

/// The chunk files of a node.
pub(crate) fn files_of(cluster: &Cluster, node: &str) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    chunk_files(&cluster.dir().join(node), &mut files)?;
    Ok(files)
}

/// What these files of a node hold.
pub(crate) fn verified(cluster: &Cluster, node: &str, files: Vec<PathBuf>) -> Result<Vec<DiskReplica>> {
    let mut replicas = Vec::new();
    // Not all at once: the kernel limits a command line.
    for files in files.chunks(500) {
        let output = cluster.dfs(["datanode", "verify", "--json"]).args(files).output()?;
        let mut silent: BTreeSet<PathBuf> = files.iter().cloned().collect();
        for line in String::from_utf8(output.stdout)?.lines() {
            let report: Value = serde_json::from_str(line).with_context(|| line.to_owned())?;
            let number = |key: &str| report[key].as_u64().unwrap_or(0);
            let problems = report["problems"].as_array().context("a report lists its problems")?;
            let path = PathBuf::from(report["path"].as_str().context("a report names its file")?);
            silent.remove(&path);
            replicas.push(DiskReplica {
                node: node.to_owned(),
                path,
                chunk: number("chunk"),
                epoch: number("epoch"),
                len_bytes: number("len_bytes"),
                frames: number("frames"),
                sealed: report["state"] == "sealed",
                problems: problems.iter().map(Value::to_string).collect(),
            });
        }
        // What has gone meanwhile belonged to a chunk that was deleted.
        replicas.extend(silent.into_iter().filter(|path| path.exists()).map(|path| unreadable(node, path)));
    }
    Ok(replicas)
}

/// The chunk that a file should hold by its name, or 0.
pub(crate) fn named(path: &Path) -> u64 {
    let stem = path.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
    u64::from_str_radix(&stem, 16).unwrap_or(0)
}

/// A file without a header that can be believed. Its name says which chunk it should hold.
fn unreadable(node: &str, path: PathBuf) -> DiskReplica {
    DiskReplica {
        node: node.to_owned(),
        chunk: named(&path),
        path,
        epoch: 0,
        len_bytes: 0,
        frames: 0,
        sealed: false,
        problems: vec!["no header that can be read".to_owned()],
    }
}

/// For each sealed chunk the datanodes among `nodes` that hold a replica whose every frame verifies.
/// Fails if a replica is damaged or two of them differ in epoch or length.
pub fn audit_replicas(cluster: &Cluster, nodes: &[String]) -> Result<BTreeMap<u64, Vec<String>>> {
    let mut found: BTreeMap<u64, (DiskReplica, Vec<String>)> = BTreeMap::new();
    for node in nodes {
        for replica in replicas_of(cluster, node)? {
            if !replica.sealed {
                continue;
            }
            ensure!(replica.problems.is_empty(), "a damaged replica: {replica:?}");
            let (first, holders) = found.entry(replica.chunk).or_insert_with(|| (replica.clone(), Vec::new()));
            let alike = (first.epoch, first.len_bytes) == (replica.epoch, replica.len_bytes);
            ensure!(alike, "replicas of chunk {} differ: {first:?}, {replica:?}", replica.chunk);
            holders.push(node.clone());
        }
    }
    Ok(found.into_iter().map(|(chunk, (_, nodes))| (chunk, nodes)).collect())
}

/// The chunk files in use below a datanode's folder: not what is in its trash or on its way in. A file
/// that goes while we look belongs to a chunk that was deleted.
fn chunk_files(folder: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    for entry in std::fs::read_dir(folder).with_context(|| folder.display().to_string())? {
        let entry = entry?;
        let path = entry.path();
        if entry.file_type()?.is_dir() {
            if !["trash", "incoming", "lost+found"].iter().any(|name| entry.file_name() == *name) {
                chunk_files(&path, files)?;
            }
        } else if path.extension().is_some_and(|extension| extension == "chunk") {
            files.push(path);
        }
    }
    Ok(())
}
