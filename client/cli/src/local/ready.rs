//! Forms the namenode group and waits until everybody is there; what is missing at the deadline is told
//! with the end of its log.

use std::fs;
use std::time::{Duration, Instant};

use dfs_client::{ClusterConfig, Dfs};
use dfs_proto::msg::admin::{self, Liveness, Status};
use dfs_proto::{ErrorKind, NodeId};

use super::layout::{Kind, Layout, Member};
use super::process::{Process, with_log};
use super::{mounts, scaffold};
use crate::error::{Exit, Failure, Result};
use crate::verbs::status::ask as ask_status;

/// A cluster of a few processes is ready in 2 s; this covers a machine that is busy.
const DEADLINE: Duration = Duration::from_secs(30);

/// Replaying a long log and recovering many chunks takes longer than a first start.
const DEADLINE_WITH_DATA: Duration = Duration::from_secs(120);

const POLL: Duration = Duration::from_millis(50);

/// Copies that a write must have: two, so that one loss loses nothing, or one if more is not wanted.
const MIN_COPIES: u8 = 2;

pub struct Waiter<'a> {
    pub layout: &'a Layout,
    pub config: &'a ClusterConfig,
    pub dfs: &'a Dfs,
    /// Datanodes that were removed from the cluster: nobody waits for them.
    pub removed: Vec<NodeId>,
}

impl Waiter<'_> {
    /// Forms the group if that has not been done yet. Asked twice, the namenodes refuse the second time.
    pub async fn initialize(&self) -> Result {
        let marker = self.layout.initialized();
        if marker.exists() {
            return Ok(());
        }
        let members: Vec<_> =
            self.config.namenodes.iter().map(|node| admin::Member { node: node.id, addr: node.addr }).collect();
        let min_copies = MIN_COPIES.min(self.config.replication);
        let deadline = Instant::now() + DEADLINE;
        loop {
            // A group that was formed by an `up` that was cut off before it could leave the marker.
            let formed = ask_status(self.dfs).await.is_ok_and(|status| status.cluster.is_some());
            let done = match formed {
                true => Ok(()),
                false => self.dfs.initialize(members.clone(), self.config.replication, min_copies).await,
            };
            match done {
                Ok(()) => break,
                Err(error) if error.kind == ErrorKind::Exists => break,
                Err(error) if error.kind.retryable() && Instant::now() < deadline => {
                    self.check_running(Kind::Namenode)?;
                    tokio::time::sleep(POLL).await;
                }
                Err(error) => {
                    let failure = Failure::failed("the namenode group could not be formed").cause(error.to_string());
                    return Err(with_log(failure, self.layout, Member { kind: Kind::Namenode, index: 1 }));
                }
            }
        }
        fs::write(&marker, format!("{}\n", self.config.cluster)).map_err(|error| Failure::local(&marker, &error))
    }

    /// Until there is a leader that hears every namenode.
    pub async fn namenodes(&self) -> Result<Status> {
        self.until(Kind::Namenode, |status| {
            if status.leader != Some(status.from) {
                return Err((None, "no leader yet".to_owned()));
            }
            for member in scaffold::namenodes(self.config) {
                if !status.namenodes.iter().any(|node| node.node == member.id() && node.reachable) {
                    return Err((Some(member), "has not joined".to_owned()));
                }
            }
            Ok(())
        })
        .await
    }

    /// Until every datanode is registered and live.
    pub async fn datanodes(&self) -> Result<Status> {
        self.until(Kind::Datanode, |status| {
            let members = Member::all(Kind::Datanode, self.config.datanodes.len());
            for member in members.into_iter().filter(|member| !self.removed.contains(&member.id())) {
                let live = |node: &admin::DatanodeStatus| node.node == member.id() && node.liveness == Liveness::Live;
                if !status.datanodes.iter().any(live) {
                    return Err((Some(member), "has not registered".to_owned()));
                }
            }
            Ok(())
        })
        .await
    }

    /// Until every mount answers.
    pub async fn mounts(&self) -> Result {
        let deadline = Instant::now() + DEADLINE;
        for (at, mount) in self.config.mounts.iter().enumerate() {
            let member = Member { kind: Kind::Mount, index: at + 1 };
            while !mounts::answers(&mount.dir, Duration::from_secs(5)).await {
                self.check_running(Kind::Mount)?;
                if Instant::now() >= deadline {
                    let failure =
                        Failure::temporary(format!("{} does not answer at {}", mount.name, mount.dir.display()));
                    return Err(with_log(failure, self.layout, member));
                }
                tokio::time::sleep(POLL).await;
            }
        }
        Ok(())
    }

    async fn until(
        &self,
        kind: Kind,
        ready: impl Fn(&Status) -> std::result::Result<(), (Option<Member>, String)>,
    ) -> Result<Status> {
        let has_data = self.layout.initialized().exists();
        let deadline = Instant::now() + if has_data { DEADLINE_WITH_DATA } else { DEADLINE };
        loop {
            self.check_running(kind)?;
            let missing = match ask_status(self.dfs).await {
                Ok(status) => match ready(&status) {
                    Ok(()) => return Ok(status),
                    Err(missing) => missing,
                },
                Err(failure) if failure.exit == Exit::Temporary => (None, failure.message().to_owned()),
                Err(failure) => return Err(failure),
            };
            if Instant::now() >= deadline {
                let (member, what) = missing;
                let subject = member.map_or("the cluster".to_owned(), Member::name);
                let failure = Failure::temporary(format!("not ready in time: {subject}: {what}"));
                let member = member.unwrap_or(Member { kind, index: 1 });
                return Err(with_log(failure, self.layout, member));
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// A process that has ended will not become ready: say so at once.
    fn check_running(&self, kind: Kind) -> Result {
        let mut members = scaffold::nodes(self.config);
        members.extend(Member::all(Kind::Mount, self.config.mounts.len()));
        for member in members.into_iter().filter(|member| member.kind == kind) {
            if !self.removed.contains(&member.id()) && Process::find(self.layout, member).is_none() {
                let failure = Failure::failed(format!("{} has ended", member.name()));
                return Err(with_log(failure, self.layout, member));
            }
        }
        Ok(())
    }
}
