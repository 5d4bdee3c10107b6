//! An audit that asks no namenode: what lies on the datanodes' disks, verified file by file.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::local::Cluster;

/// For each sealed chunk the datanodes among `nodes` that hold a replica whose every frame verifies.
/// Fails if a replica is damaged or two of them differ in epoch or length.
pub fn audit_replicas(cluster: &Cluster, nodes: &[String]) -> Result<BTreeMap<u64, Vec<String>>> {
    let mut found: BTreeMap<u64, (Value, Value, Vec<String>)> = BTreeMap::new();
    for node in nodes {
        let mut files = Vec::new();
        chunk_files(&cluster.dir().join(node), &mut files)?;
        if files.is_empty() {
            continue;
        }
        let output = cluster.dfs(["datanode", "verify", "--json"]).args(&files).output()?;
        let text = String::from_utf8(output.stdout)?;
        for line in text.lines() {
            let report: Value = serde_json::from_str(line).with_context(|| line.to_owned())?;
            if report["state"] != "sealed" {
                continue;
            }
            let problems = report["problems"].as_array().context("a report lists its problems")?;
            ensure!(problems.is_empty(), "{node}: {line}");
            let chunk = report["chunk"].as_u64().context("a report names its chunk")?;
            let (epoch, len) = (report["epoch"].clone(), report["len_bytes"].clone());
            let entry = found.entry(chunk).or_insert_with(|| (epoch.clone(), len.clone(), Vec::new()));
            ensure!((&entry.0, &entry.1) == (&epoch, &len), "replicas of chunk {chunk} differ, on {node}: {line}");
            entry.2.push(node.clone());
        }
    }
    Ok(found.into_iter().map(|(chunk, (_, _, nodes))| (chunk, nodes)).collect())
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
