//! Processes that die, and processes that stand still.

use anyhow::Result;
use rustix::process::Signal;

use super::Fault;
use crate::local::Cluster;

/// SIGKILL to all of them, with nothing in between. Undone, they are started again.
pub fn kill<'a>(cluster: &'a Cluster, nodes: &[String]) -> Result<Fault<'a>> {
    for node in nodes {
        // One that has ended by itself meanwhile is as dead.
        let _ = cluster.signal(node, Signal::KILL);
    }
    let killed = nodes.to_vec();
    let fault = Fault::new(format!("kill -9 {}", nodes.join(" ")), move || {
        killed.iter().try_for_each(|node| cluster.start(node))
    });
    nodes.iter().try_for_each(|node| cluster.kill(node))?;
    Ok(fault)
}

/// SIGSTOP: it does nothing and says nothing, and knows nothing of it afterwards. Undone by SIGCONT.
pub fn pause<'a>(cluster: &'a Cluster, node: &str) -> Result<Fault<'a>> {
    let node = node.to_owned();
    cluster.signal(&node, Signal::STOP)?;
    Ok(Fault::new(format!("kill -STOP {node}"), move || cluster.signal(&node, Signal::CONT)))
}
