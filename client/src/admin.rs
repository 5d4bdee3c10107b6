//! What an administrator asks.

use std::time::Duration;

use dfs_proto::msg::admin::{
    AdminReply, AdminRequest, Balance, DutyChange, DutyPlan, FileInfo, FsckReport, Member, Status,
};
use dfs_proto::msg::data::{DataRequest, Manage, ManageReply};
use dfs_proto::msg::group::{GroupReply, GroupRequest, GroupStatus};
use dfs_proto::msg::meta::{MetaReply, MetaRequest, ReplicaAt};
use dfs_proto::{ErrorKind, InodeId, NodeId, Plane, Role};
use dfs_rpc::{Target, call};
use futures::StreamExt;
use futures::stream::FuturesUnordered;

use crate::config::NodeAddr;
use crate::deadline::Deadline;
use crate::dfs::Dfs;
use crate::error::{Error, Result, unexpected_answer};

/// A namenode that does not tell its status by then counts as away.
const STATUS: Duration = Duration::from_secs(5);

/// Once somebody has answered, how long the leader gets to answer too.
const LEADER_GRACE: Duration = Duration::from_secs(1);

/// A datanode has to open a folder, make its parts and sync them.
const MANAGE: Duration = Duration::from_secs(30);

/// Work that visits every row takes its time.
const THOROUGH: Duration = Duration::from_secs(600);

/// A leader answers by then that a change still runs, and is asked again.
const CHANGE: Duration = Duration::from_secs(25);

const PAUSE: Duration = Duration::from_millis(200);

impl Dfs {
    /// The status as the leader sees it, or, without one, as any namenode that answers within 5 s does.
    pub async fn status_any(&self) -> Result<Status> {
        let group = &self.client.group;
        let request = MetaRequest::Admin(AdminRequest::Status);
        let ask = |index| {
            let request = &request;
            async move { group.ask(index, request, STATUS).await }
        };
        let mut answers: FuturesUnordered<_> =
            (0..group.len()).filter(|index| !group.is_gone(*index)).map(ask).collect();
        let mut best: Option<Status> = None;
        let mut failure = Error::new(ErrorKind::Unavailable, "no namenode answers");
        let mut grace = Deadline::NEVER;
        while let Ok(Some(answer)) = grace.bound("the leader's status is awaited", answers.next()).await {
            match answer {
                Ok(MetaReply::Admin(reply)) => match *reply {
                    AdminReply::Status(status) if status.leader == Some(status.from) => return Ok(*status),
                    AdminReply::Status(status) => {
                        if best.is_none() {
                            grace = Deadline::after(LEADER_GRACE);
                        }
                        best.get_or_insert(*status);
                    }
                    _ => failure = unexpected_answer("Status"),
                },
                Ok(_) => failure = unexpected_answer("Status"),
                Err(error) => failure = Error::from(error),
            }
        }
        best.ok_or_else(|| {
            Error::new(ErrorKind::Unavailable, format!("no namenode answers; the last error: {failure}"))
                .with_hint("are they running? `dfs up` starts a local cluster")
        })
    }

    /// The leading namenode, waited for until the deadline.
    pub async fn leader(&self) -> Result<NodeAddr> {
        let deadline = self.client.deadline();
        loop {
            let leader = match self.status_any().await {
                Ok(status) if status.leader == Some(status.from) => {
                    let leader = self.group_members().await?.members.into_iter().find(|node| node.node == status.from);
                    leader.map(|node| NodeAddr { id: node.node, name: node.name, addr: node.addr })
                }
                Ok(_) => None,
                Err(error) if deadline.passed() => return Err(error),
                Err(_) => None,
            };
            if let Some(leader) = leader {
                return Ok(leader);
            }
            if deadline.passed() {
                return Err(Error::new(ErrorKind::Unavailable, "the namenodes have no leader")
                    .with_hint("a majority of them must be up; `dfs status` shows which are"));
            }
            tokio::time::sleep(deadline.cap(PAUSE)).await;
        }
    }

    /// Who the namenodes are, as the one sees it that leads; or, without one, as any does that answers within 5 s.
    /// The client goes by that from then on.
    pub async fn group_members(&self) -> Result<GroupStatus> {
        let group = &self.client.group;
        let request = MetaRequest::Admin(AdminRequest::Group(GroupRequest::Show));
        let ask = |index| {
            let request = &request;
            async move { group.ask(index, request, STATUS).await }
        };
        // A namenode that the configuration does not name may lead: those that are known point at it.
        let mut best: Option<GroupStatus> = None;
        for _ in 0..2 {
            let known = group.len();
            let mut answers: FuturesUnordered<_> = (0..known).map(ask).collect();
            let mut grace = Deadline::NEVER;
            while let Ok(Some(answer)) = grace.bound("the leader is awaited", answers.next()).await {
                let Ok(MetaReply::Admin(reply)) = answer else { continue };
                let AdminReply::Group(GroupReply::Members(status)) = *reply else { continue };
                group.learn(&status);
                if status.leader == Some(status.from) {
                    return Ok(status);
                }
                if best.is_none() {
                    grace = Deadline::after(LEADER_GRACE);
                }
                best.get_or_insert(status);
            }
            drop(answers);
            if group.len() == known {
                break;
            }
        }
        best.ok_or_else(|| Error::new(ErrorKind::Unavailable, "no namenode answers"))
    }

    /// What each namenode says of the group and of itself; those that do not answer are missing.
    pub async fn each_namenode(&self) -> Vec<GroupStatus> {
        let group = &self.client.group;
        let request = MetaRequest::Admin(AdminRequest::Group(GroupRequest::Show));
        let ask = |index| {
            let request = &request;
            async move {
                match group.ask(index, request, LEADER_GRACE).await {
                    Ok(MetaReply::Admin(reply)) => match *reply {
                        AdminReply::Group(GroupReply::Members(status)) => Some(status),
                        _ => None,
                    },
                    _ => None,
                }
            }
        };
        let asked = (0..group.len()).filter(|index| !group.is_gone(*index)).map(ask);
        futures::future::join_all(asked).await.into_iter().flatten().collect()
    }

    /// Changes the group of namenodes, and returns when that is done.
    pub async fn change_group(&self, request: GroupRequest) -> Result<GroupReply> {
        let request = MetaRequest::Admin(AdminRequest::Group(request));
        let deadline = Deadline::after(THOROUGH);
        match self.client.group.call(&request, CHANGE, deadline).await? {
            MetaReply::Admin(reply) => match *reply {
                AdminReply::Group(reply) => Ok(reply),
                _ => Err(unexpected_answer("Group")),
            },
            _ => Err(unexpected_answer("Group")),
        }
    }

    /// Checks everything at and below `root`.
    pub async fn fsck(&self, root: InodeId) -> Result<FsckReport> {
        match self.admin(AdminRequest::Fsck { root }, THOROUGH).await? {
            AdminReply::Fsck(report) => Ok(report),
            _ => Err(unexpected_answer("Fsck")),
        }
    }

    /// Extents of a file and the replicas behind them.
    pub async fn file_info(&self, inode: InodeId) -> Result<FileInfo> {
        match self.admin(AdminRequest::FileInfo { inode }, STATUS).await? {
            AdminReply::FileInfo(info) => Ok(info),
            _ => Err(unexpected_answer("FileInfo")),
        }
    }

    /// Makes the leader take a snapshot and purge its log.
    pub async fn snapshot(&self) -> Result<()> {
        self.admin(AdminRequest::Snapshot, THOROUGH).await.map(|_| ())
    }

    /// Gives a datanode another duty, or only says what that would mean.
    ///
    /// # Errors
    /// `NotFound` without such a datanode, `InvalidArgument` for a step that cannot be taken from where it is,
    /// `NotEmpty` for a removal that would lose data.
    pub async fn change_duty(&self, node: NodeId, change: DutyChange, dry_run: bool) -> Result<DutyPlan> {
        match self.admin(AdminRequest::ChangeDuty { node, change, dry_run }, THOROUGH).await? {
            AdminReply::DutyPlan(plan) => Ok(*plan),
            _ => Err(unexpected_answer("ChangeDuty")),
        }
    }

    /// Has datanodes (none: all that are live) verify every replica again; `status_any` shows how far they are.
    pub async fn scrub(&self, nodes: Vec<NodeId>) -> Result<()> {
        self.admin(AdminRequest::Scrub { nodes }, STATUS).await.map(|_| ())
    }

    /// Says whether and from when on chunks are moved from full datanodes to empty ones; `status_any` shows how far that is.
    pub async fn set_balance(&self, wanted: Balance) -> Result<()> {
        self.admin(AdminRequest::SetBalance(wanted), STATUS).await.map(|_| ())
    }

    /// Asks one datanode something that concerns it alone.
    ///
    /// # Errors
    /// `Unavailable` or `Timeout` if it does not answer; otherwise its refusal.
    pub async fn manage(&self, node: ReplicaAt, request: Manage) -> Result<ManageReply> {
        let target = Target { plane: Plane::Data, role: Role::Datanode, node: node.node, addr: node.addr };
        let asked = async {
            let connection = self.client.data.get(&target).await?;
            call(&connection, &DataRequest::Manage(request), MANAGE).await
        };
        asked.await.map_err(Error::from)
    }

    /// Once in a cluster's life: forms the namenode group of `members`. Sent to the first namenode of the
    /// configuration; tried again until it answers or the deadline passes.
    pub async fn initialize(&self, members: Vec<Member>, default_replication: u8, min_copies: u8) -> Result<()> {
        let cluster = self.client.config.cluster;
        let request =
            MetaRequest::Admin(AdminRequest::Initialize { cluster, members, default_replication, min_copies });
        let deadline = self.client.deadline();
        loop {
            let error = match self.client.group.ask(0, &request, deadline.cap(STATUS)).await {
                Ok(_) => return Ok(()),
                Err(error) => error,
            };
            if !error.kind().retryable() || deadline.passed() {
                return Err(error.into());
            }
            tokio::time::sleep(deadline.cap(PAUSE)).await;
        }
    }

    async fn admin(&self, request: AdminRequest, attempt: Duration) -> Result<AdminReply> {
        let deadline = Deadline::after(self.client.options.op_deadline.max(attempt));
        match self.client.group.call(&MetaRequest::Admin(request), attempt, deadline).await? {
            MetaReply::Admin(reply) => Ok(*reply),
            _ => Err(unexpected_answer("an administrator's request")),
        }
    }
}
