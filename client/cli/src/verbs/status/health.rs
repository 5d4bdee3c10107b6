//! The health word and its reasons, each with the command that addresses it. Pure: status in, verdict out.

use std::time::{Duration, Instant};

use dfs_proto::NodeId;
use dfs_proto::msg::admin::{DatanodeStatus, Duty, Liveness, Status};
use dfs_proto::msg::group::{GroupStatus, MemberRole};

use super::NodeNames;
use crate::units;

/// Clocks that differ by more confuse times of files and the expiry of capabilities.
const SKEW_MAX_MS: i64 = 500;

/// A scrub that is late by this part of its period is stuck, not just busy.
const SCRUB_SLACK: u64 = 10;

/// The repair worker judges all chunks every few seconds; a verdict this old means that it is stuck.
const VERDICT_AGE_MAX_MS: u64 = 60_000;

/// Below this share of free room, writers are close to "no space".
const FREE_PERCENT_MIN: u64 = 5;

/// Entries that a follower may lack and still count as caught up: what is on its way under load.
const LAG_MAX: u64 = 128;

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Word {
    Ok,
    Warn,
    Err,
}

impl Word {
    pub fn text(self) -> &'static str {
        match self {
            Word::Ok => "HEALTH_OK",
            Word::Warn => "HEALTH_WARN",
            Word::Err => "HEALTH_ERR",
        }
    }
}

pub struct Reason {
    pub word: Word,
    pub text: String,
    pub command: String,
}

/// Worst reasons first.
pub struct Health {
    pub reasons: Vec<Reason>,
}

impl Health {
    pub fn of(status: &Status, names: &NodeNames) -> Health {
        let mut health = Health { reasons: Vec::new() };
        health.judge_namenodes(status, names);
        if status.leader == Some(status.from) {
            health.judge_datanodes(status, names);
            health.judge_chunks(status);
        }
        health.reasons.sort_by_key(|reason| std::cmp::Reverse(reason.word));
        health
    }

    /// Adds what is to be said about a group of namenodes that changes.
    pub fn with_group(mut self, group: Option<&GroupStatus>) -> Health {
        let Some(group) = group else { return self };
        if let Some(change) = &group.change {
            self.warn(change.clone(), "dfs namenode list");
        }
        let learners = group.members.iter().filter(|member| member.role == MemberRole::Learner);
        for learner in learners.filter(|_| group.change.is_none()) {
            let text = format!("the addition of {} broke off: it does not vote", learner.name);
            self.warn(text, format!("dfs namenode add {}", learner.name));
        }
        let voters = group.members.iter().filter(|member| member.role == MemberRole::Voter).count();
        if group.change.is_none() && voters > 0 && voters.is_multiple_of(2) {
            self.warn(format!("{voters} namenodes survive no more losses than {}", voters - 1), "dfs namenode add");
        }
        self.reasons.sort_by_key(|reason| std::cmp::Reverse(reason.word));
        self
    }

    pub fn word(&self) -> Word {
        self.reasons.iter().map(|reason| reason.word).max().unwrap_or(Word::Ok)
    }

    fn judge_namenodes(&mut self, status: &Status, names: &NodeNames) {
        if status.cluster.is_none() {
            self.err("the cluster has not been formed yet", "dfs up");
        }
        match status.leader {
            None => self.err("no leader: files can neither be changed nor opened", "dfs status --watch"),
            Some(leader) if leader != status.from => {
                let text = format!("leader {} does not answer, the rest is not known", names.of(leader));
                self.err(text, "dfs status --watch");
            }
            Some(_) => {}
        }
        let all = status.namenodes.len();
        let reachable = status.namenodes.iter().filter(|node| node.reachable).count();
        for node in status.namenodes.iter().filter(|node| !node.reachable) {
            let rest = if reachable == all / 2 + 1 { ", one more loss stops the cluster" } else { "" };
            self.warn(format!("{} does not answer{rest}", names.of(node.node)), names.start(node.node));
        }
    }

    fn judge_datanodes(&mut self, status: &Status, names: &NodeNames) {
        let live = status.datanodes.iter().filter(|node| node.liveness == Liveness::Live).count();
        for node in &status.datanodes {
            let name = names.of(node.node);
            self.judge_duty(node, &name);
            match node.liveness {
                Liveness::Live => {}
                // It was said that it may be away, or that it is to go.
                _ if node.duty != Duty::Serving => {}
                Liveness::Leaving => self.warn(names.silence(node), names.start(node.node)),
                Liveness::Suspect => self.warn(names.silence(node), names.start(node.node)),
                Liveness::Dead => {
                    self.warn(format!("{}, its chunks are copied again", names.silence(node)), names.start(node.node));
                }
            }
            for volume in &node.volumes {
                if let Some(reason) = &volume.failed {
                    self.err(
                        format!("disk {} of {name} failed: {reason}", volume.path),
                        format!("dfs volume replace {name} {}", volume.path),
                    );
                } else if volume.draining {
                    let left = units::count(volume.chunks);
                    self.warn(
                        format!("disk {} of {name} is being emptied, {left} chunks left", volume.path),
                        "dfs volume list",
                    );
                } else if volume.free_bytes == 0 && node.liveness == Liveness::Live {
                    self.warn(format!("disk {} of {name} is full", volume.path), format!("dfs volume add {name} DIR"));
                }
            }
            if let Some(scrub) = node.scrub.filter(|scrub| scrub.chunks > 0 && node.liveness == Liveness::Live) {
                let age_s = super::ago_s(scrub.oldest_s);
                if age_s > scrub.period_s + scrub.period_s / SCRUB_SLACK {
                    let age = units::duration(Duration::from_secs(age_s));
                    self.warn(
                        format!("scrub of {name} is overdue: a replica waits for {age}"),
                        format!("dfs scrub --now {name}"),
                    );
                }
            }
            if node.slow && node.liveness == Liveness::Live {
                let pace = match node.pace.syncs {
                    0 => "its syncs took long".to_owned(),
                    _ => format!("one sync in ten takes over {} ms", node.pace.sync_ms),
                };
                self.warn(
                    format!("{name} is slow beside the others ({pace}), new chunks go elsewhere"),
                    format!("dfs datanode decommission {name}"),
                );
            }
            if node.liveness == Liveness::Live && node.skew_ms.abs() > SKEW_MAX_MS {
                self.warn(format!("clock of {name} is off by {} ms", node.skew_ms), "chronyc tracking");
            }
        }
        if live < usize::from(status.min_copies) {
            self.err(format!("{live} live datanodes, and a write needs {}", status.min_copies), "dfs up");
        } else if live < usize::from(status.default_replication) {
            self.warn(format!("{live} live datanodes for {} copies", status.default_replication), "dfs up");
        }
        let (total, free) = super::capacity(status);
        if total > 0 && free * 100 / total < FREE_PERCENT_MIN {
            self.warn(format!("{} of room left", units::human(free)), "dfs du -sh /");
        }
    }

    fn judge_duty(&mut self, node: &DatanodeStatus, name: &str) {
        let left = node.drain.map_or(0, |left| left.chunks);
        match node.duty {
            Duty::Serving => {}
            Duty::Maintenance { until } => {
                let text = format!("{name} is in maintenance until {}", units::local_time(until));
                self.warn(text, format!("dfs datanode recommission {name}"));
            }
            Duty::Decommissioning { .. } => {
                self.warn(
                    format!("{name} is being decommissioned, {} chunks left", units::count(left)),
                    "dfs datanode list",
                );
            }
            Duty::Decommissioned { .. } => {
                self.warn(format!("{name} is decommissioned"), format!("dfs datanode remove {name}"));
            }
            Duty::Removing { .. } | Duty::Removed { .. } => {
                self.warn(format!("{name} is being removed, {} chunks left", units::count(left)), "dfs datanode list");
            }
        }
    }

    fn judge_chunks(&mut self, status: &Status) {
        let chunks = &status.chunks;
        if chunks.missing > 0 {
            self.err(format!("{} chunks have no good replica", units::count(chunks.missing)), "dfs fsck");
        }
        if chunks.lost_ends > 0 {
            let ends = units::count(chunks.lost_ends);
            self.warn(format!("{ends} chunks lost their ends when the power went"), "dfs fsck");
        }
        if status.repair.damaged > 0 {
            let damaged = units::count(status.repair.damaged);
            self.warn(format!("{damaged} replicas are damaged and not healed yet"), "dfs watch");
        }
        if chunks.under_replicated > 0 {
            let one = match chunks.one_copy {
                0 => String::new(),
                n => format!(", {} of them on one node only", units::count(n)),
            };
            self.warn(format!("{} chunks lack copies{one}", units::count(chunks.under_replicated)), "dfs watch");
        }
        if chunks.age_ms > VERDICT_AGE_MAX_MS {
            let age = units::duration(Duration::from_millis(chunks.age_ms));
            self.warn(format!("chunks were last looked at {age} ago"), "dfs fsck");
        }
    }

    fn warn(&mut self, text: impl Into<String>, command: impl Into<String>) {
        self.reasons.push(Reason { word: Word::Warn, text: text.into(), command: command.into() });
    }

    fn err(&mut self, text: impl Into<String>, command: impl Into<String>) {
        self.reasons.push(Reason { word: Word::Err, text: text.into(), command: command.into() });
    }
}

/// For how long the cluster has looked the same: the same leader, the same nodes alive. What is older
/// proves nothing: a datanode that was killed a moment ago is taken for alive until it has been silent
/// for some seconds, and a look at the chunks from before its death found them all well.
pub struct Settling {
    since: Instant,
    seen: Option<Looks>,
}

#[derive(PartialEq, Eq)]
struct Looks {
    leader: Option<NodeId>,
    term: u64,
    nodes: Vec<(NodeId, Liveness)>,
}

impl Settling {
    pub fn new(now: Instant) -> Settling {
        Settling { since: now, seen: None }
    }

    /// Takes in one more answer; how long there has been no change.
    pub fn observe(&mut self, status: &Status, now: Instant) -> Duration {
        let nodes = status.datanodes.iter().map(|node| (node.node, node.liveness)).collect();
        let looks = Some(Looks { leader: status.leader, term: status.term, nodes });
        if self.seen.is_some() && self.seen != looks {
            self.since = now;
        }
        self.seen = looks;
        now.saturating_duration_since(self.since)
    }
}

/// What is left until nothing more needs to happen: every sealed chunk has its copies on live nodes,
/// everyone agrees on who has what, nothing is being copied, every namenode is there and caught up.
/// Empty means that all of it holds, by what has been heard in the time `settled`.
pub fn left_to_do(status: &Status, names: &NodeNames, settled: Duration) -> Vec<String> {
    let settled_ms = settled.as_millis() as u64;
    let mut left = Vec::new();
    if status.cluster.is_none() {
        left.push("the cluster to be formed".to_owned());
    }
    if status.leader != Some(status.from) {
        left.push(match status.leader {
            Some(leader) => format!("an answer of the leader {}", names.of(leader)),
            None => "a leader".to_owned(),
        });
        return left;
    }
    let log_end = status.namenodes.iter().find(|node| node.node == status.from).map_or(0, |node| node.last_log_index);
    for node in &status.namenodes {
        let name = names.of(node.node);
        if !node.reachable {
            left.push(format!("namenode {name} to answer"));
        } else if node.node != status.from && node.matched_index.is_none_or(|index| index + LAG_MAX < log_end) {
            let behind = node.matched_index.map_or(log_end, |index| log_end - index);
            left.push(format!("namenode {name} to catch up {behind} entries"));
        }
    }
    // A node that may be away, or that nothing is expected of any more, is not waited for.
    let awaited = |node: &&DatanodeStatus| {
        node.liveness != Liveness::Dead
            && (node.liveness == Liveness::Live
                || !matches!(node.duty, Duty::Maintenance { .. } | Duty::Decommissioned { .. }))
    };
    for node in status.datanodes.iter().filter(awaited) {
        let name = names.of(node.node);
        if node.liveness != Liveness::Live || node.silent_ms > settled_ms {
            let silence = units::duration(Duration::from_millis(node.silent_ms));
            left.push(format!("a sign of datanode {name}, silent for {silence}"));
        } else if !node.digest_agrees {
            left.push(format!("datanode {name} to agree on its replicas"));
        }
    }
    let chunks = &status.chunks;
    if chunks.missing > 0 {
        left.push(format!("{} chunks without a live replica", chunks.missing));
    }
    if chunks.under_replicated > 0 {
        left.push(format!("copies of {} chunks", chunks.under_replicated));
    }
    let repair = &status.repair;
    if repair.unattended > 0 {
        left.push(format!("{} chunks to be sealed that silent clients have open", repair.unattended));
    }
    if !repair.copying.is_empty() || repair.queued > 0 {
        left.push(format!("{} copies under way, {} queued", repair.copying.len(), repair.queued));
    }
    if chunks.age_ms > settled_ms {
        left.push("the next look at all chunks".to_owned());
    }
    left
}

#[cfg(test)]
mod tests {
    use super::*;
    use dfs_proto::msg::admin::{
        BalanceStatus, ChunkHealth, CompactionStatus, CopyStatus, Counts, DatanodeStatus, NamenodeStatus, RepairStatus,
    };
    use dfs_proto::msg::node::Pace;
    use dfs_proto::{ChunkId, ClusterId};
    use std::collections::BTreeMap;

    fn names() -> NodeNames {
        let name = |id: u64| (NodeId(id), if id > 100 { format!("dn{}", id - 100) } else { format!("nn{id}") });
        NodeNames { names: BTreeMap::from_iter([1, 2, 3, 101, 102, 103].map(name)), starts: None }
    }

    fn healthy() -> Status {
        let namenode = |id| NamenodeStatus {
            node: NodeId(id),
            addr: "127.0.0.1:1".parse().unwrap(),
            reachable: true,
            matched_index: Some(500),
            last_log_index: 500,
            applied_index: 500,
            snapshot_index: 0,
        };
        let datanode = |id| DatanodeStatus {
            node: NodeId(id),
            addr: "127.0.0.1:2".parse().unwrap(),
            liveness: Liveness::Live,
            silent_ms: 300,
            volumes: Vec::new(),
            replicas: 4,
            digest_agrees: true,
            skew_ms: 0,
            duty: Duty::Serving,
            drain: None,
            scrub: None,
            pace: Pace::default(),
            slow: false,
        };
        Status {
            cluster: Some(ClusterId([1; 16])),
            from: NodeId(1),
            leader: Some(NodeId(1)),
            term: 2,
            namenodes: [1, 2, 3].map(namenode).into(),
            datanodes: [101, 102, 103].map(datanode).into(),
            counts: Counts::default(),
            chunks: ChunkHealth { total: 4, healthy: 4, ..ChunkHealth::default() },
            repair: RepairStatus::default(),
            compaction: CompactionStatus::default(),
            balance: BalanceStatus::default(),
            default_replication: 3,
            min_copies: 2,
            removed: Vec::new(),
        }
    }

    fn judged(change: impl FnOnce(&mut Status)) -> (Word, String, String) {
        let mut status = healthy();
        change(&mut status);
        let health = Health::of(&status, &names());
        let reasons = health.reasons.iter().map(|reason| format!("{} -> {}", reason.text, reason.command));
        (
            health.word(),
            reasons.collect::<Vec<_>>().join("\n"),
            left_to_do(&status, &names(), Duration::from_secs(5)).join("\n"),
        )
    }

    #[test]
    fn a_cluster_where_all_is_well_is_ok_and_has_nothing_left_to_do() {
        assert_eq!(judged(|_| {}), (Word::Ok, String::new(), String::new()));
    }

    #[test]
    fn a_silent_datanode_warns_and_is_waited_for() {
        let (word, reasons, left) = judged(|status| {
            status.datanodes[1].liveness = Liveness::Suspect;
            status.datanodes[1].silent_ms = 4_000;
        });
        assert_eq!(word, Word::Warn);
        assert!(reasons.contains("dn2 silent for 4.0 s -> start dn2 again"), "{reasons}");
        assert!(left.contains("dn2"), "{left}");
    }

    #[test]
    fn a_dead_datanode_is_not_waited_for_once_its_chunks_are_whole_again() {
        let (word, _, left) = judged(|status| status.datanodes[1].liveness = Liveness::Dead);
        assert_eq!((word, left.as_str()), (Word::Warn, ""));
    }

    #[test]
    fn a_datanode_killed_just_now_is_waited_for_until_it_is_dead_and_its_chunks_were_looked_at() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let mut settling = Settling::new(start);
        let mut look = |ms: u64, liveness, silent_ms, age_ms| {
            let mut status = healthy();
            status.datanodes[1] = DatanodeStatus { liveness, silent_ms, ..status.datanodes[1].clone() };
            status.chunks.age_ms = age_ms;
            let settled = settling.observe(&status, at(ms));
            left_to_do(&status, &names(), settled).join("; ")
        };
        // Killed 400 ms before the first look; everybody else speaks every 300 ms.
        assert!(look(1_000, Liveness::Live, 1_400, 500).contains("a sign of datanode dn2"));
        assert!(look(3_000, Liveness::Suspect, 3_400, 500).contains("a sign of datanode dn2"));
        // Dead, but the last look at the chunks still found its replicas alive.
        assert!(look(10_000, Liveness::Dead, 10_400, 500).contains("the next look"));
        assert_eq!(look(11_000, Liveness::Dead, 11_400, 500), "");
    }

    #[test]
    fn every_open_end_of_repair_is_waited_for() {
        let copy = CopyStatus { chunk: ChunkId(1), target: NodeId(101), len: 1, since_ms: 1 };
        type Change = Box<dyn FnOnce(&mut Status)>;
        let changes: [(&str, Change); 9] = [
            ("2 chunks to be sealed", Box::new(|status| status.repair.unattended = 2)),
            ("copies of 2", Box::new(|status| status.chunks.under_replicated = 2)),
            ("without a live", Box::new(|status| status.chunks.missing = 1)),
            ("under way", Box::new(|status| status.repair.copying.push(copy))),
            ("queued", Box::new(|status| status.repair.queued = 1)),
            ("agree", Box::new(|status| status.datanodes[0].digest_agrees = false)),
            ("nn3 to catch up 400", Box::new(|status| status.namenodes[2].matched_index = Some(100))),
            ("nn3 to answer", Box::new(|status| status.namenodes[2].reachable = false)),
            ("next look", Box::new(|status| status.chunks.age_ms = 5_001)),
        ];
        for (expected, change) in changes {
            let (_, _, left) = judged(change);
            assert!(left.contains(expected), "{expected}: {left}");
        }
    }

    #[test]
    fn a_node_in_maintenance_may_be_silent_and_is_not_waited_for() {
        let (word, reasons, left) = judged(|status| {
            let until = dfs_proto::Timestamp { secs: 1000, nanos: 0 };
            status.datanodes[1] = DatanodeStatus {
                liveness: Liveness::Suspect,
                silent_ms: 9000,
                duty: Duty::Maintenance { until },
                ..status.datanodes[1].clone()
            };
        });
        assert_eq!((word, left.as_str()), (Word::Warn, ""));
        assert!(reasons.contains("dn2 is in maintenance") && !reasons.contains("silent"), "{reasons}");
    }

    #[test]
    fn every_duty_but_service_is_shown_with_what_comes_next() {
        let since = dfs_proto::Timestamp::default();
        for (duty, what) in [
            (Duty::Decommissioning { since, chunks: 9, bytes: 9 }, "7 chunks left -> dfs datanode list"),
            (Duty::Decommissioned { since }, "decommissioned -> dfs datanode remove dn1"),
            (Duty::Removing { since, chunks: 9, bytes: 9 }, "being removed, 7 chunks left"),
        ] {
            let drain = Some(dfs_proto::msg::admin::Drain { chunks: 7, bytes: 7, open: 0 });
            let (_, reasons, _) = judged(|status| {
                status.datanodes[0] = DatanodeStatus { duty, drain, ..status.datanodes[0].clone() };
            });
            assert!(reasons.contains(what), "{reasons}");
        }
    }

    #[test]
    fn disks_say_what_is_wrong_with_them_and_what_to_do() {
        let volume = dfs_proto::msg::node::VolumeStatus {
            path: "/mnt/d1".into(),
            total_bytes: 100,
            free_bytes: 50,
            chunks: 12,
            failed: None,
            draining: false,
        };
        let with = |volume| judged(|status| status.datanodes[0].volumes = vec![volume]);
        assert_eq!(with(volume.clone()).0, Word::Ok);
        let failed = dfs_proto::msg::node::VolumeStatus { failed: Some("sync: EIO".into()), ..volume.clone() };
        let (word, reasons, _) = with(failed);
        assert_eq!(
            (word, reasons.as_str()),
            (Word::Err, "disk /mnt/d1 of dn1 failed: sync: EIO -> dfs volume replace dn1 /mnt/d1")
        );
        let (_, reasons, _) = with(dfs_proto::msg::node::VolumeStatus { free_bytes: 0, ..volume.clone() });
        assert!(reasons.contains("disk /mnt/d1 of dn1 is full -> dfs volume add dn1 DIR"), "{reasons}");
        let (_, reasons, _) = with(dfs_proto::msg::node::VolumeStatus { draining: true, ..volume });
        assert!(reasons.contains("being emptied, 12 chunks left"), "{reasons}");
    }

    #[test]
    fn clocks_scrubs_and_damage_that_nobody_sees_to_warn() {
        let (_, reasons, _) = judged(|status| status.datanodes[0].skew_ms = -501);
        assert!(reasons.contains("clock of dn1 is off by -501 ms"), "{reasons}");
        assert_eq!(judged(|status| status.datanodes[0].skew_ms = 500).0, Word::Ok);
        let (_, reasons, _) = judged(|status| {
            (status.datanodes[1].slow, status.datanodes[1].pace) = (true, Pace { syncs: 20, sync_ms: 310 });
        });
        assert!(reasons.contains("dn2 is slow beside the others (one sync in ten takes over 310 ms)"), "{reasons}");
        assert!(reasons.contains("-> dfs datanode decommission dn2"), "{reasons}");
        let scrub = |oldest_s| {
            let scrub = dfs_proto::msg::node::ScrubStatus { period_s: 1000, chunks: 1, oldest_s, ..Default::default() };
            judged(|status| status.datanodes[2].scrub = Some(scrub))
        };
        assert_eq!(scrub(super::super::ago_s(900)).0, Word::Ok);
        let (_, reasons, _) = scrub(super::super::ago_s(1200));
        assert!(reasons.contains("scrub of dn3 is overdue"), "{reasons}");
        let (_, reasons, _) = judged(|status| status.repair.damaged = 2);
        assert!(reasons.contains("2 replicas are damaged and not healed yet"), "{reasons}");
    }

    #[test]
    fn an_end_that_is_lost_for_good_warns_and_is_not_waited_for() {
        let (word, reasons, left) = judged(|status| status.chunks.lost_ends = 2);
        assert_eq!((word, left.as_str()), (Word::Warn, ""));
        assert_eq!(reasons, "2 chunks lost their ends when the power went -> dfs fsck");
    }

    #[test]
    fn missing_chunks_and_a_missing_leader_are_errors() {
        assert_eq!(judged(|status| status.chunks.missing = 1).0, Word::Err);
        assert_eq!(judged(|status| status.leader = None).0, Word::Err);
        let (word, reasons, _) = judged(|status| status.namenodes[2].reachable = false);
        assert_eq!(word, Word::Warn);
        assert!(reasons.contains("one more loss stops the cluster"));
    }

    #[test]
    fn too_few_datanodes_for_the_copies_is_said_aloud() {
        let (word, reasons, _) = judged(|status| status.default_replication = 5);
        assert_eq!(word, Word::Warn);
        assert!(reasons.contains("3 live datanodes for 5 copies"));
    }
}
