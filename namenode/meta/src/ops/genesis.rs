//! Genesis: the cluster begins. And its capability keys, which it hands out first.

use dfs_proto::limits::REPLICATION_MAX;
use dfs_proto::{CapabilityKey, ClusterId, ErrorKind, InodeId, Timestamp};

use crate::command::Reply;
use crate::rows::{self, CapabilityKeys, Config, Content, FIRST_COOKIE, InodeRow};
use crate::tx::{Failure, Tx, refuse};

/// Keys that are accepted at a time: what was signed just before a rotation stays good until the next.
const KEYS_MAX: usize = 2;

const ROOT_MODE: u16 = 0o755;

/// Once in a cluster's life.
pub(crate) fn apply(
    tx: &mut Tx<'_>,
    now: Timestamp,
    cluster: ClusterId,
    default_replication: u8,
    min_copies: u8,
    lease_ms: u64,
    key: &CapabilityKey,
) -> Result<Reply, Failure> {
    if tx.config.is_some() {
        return Err(refuse(ErrorKind::Exists, "the cluster has been initialised before"));
    }
    if min_copies == 0 || min_copies > default_replication || default_replication > REPLICATION_MAX || lease_ms == 0 {
        let message = format!(
            "need 1 <= min_copies ({min_copies}) <= replication ({default_replication}) <= {REPLICATION_MAX}, \
             and a lease above 0 ms ({lease_ms})"
        );
        return Err(refuse(ErrorKind::InvalidArgument, message));
    }
    let config = Config { cluster, default_replication, min_copies, lease_ms };
    tx.put(Config::key(), &config)?;
    tx.config = Some(config);
    tx.put(CapabilityKeys::key(), &CapabilityKeys(vec![key.clone()]))?;
    let root = InodeRow {
        mode: ROOT_MODE,
        nlink: 2,
        uid: 0,
        gid: 0,
        atime: now,
        mtime: now,
        ctime: now,
        crtime: now,
        version: 1,
        content: Content::Directory { parent: InodeId::ROOT, next_cookie: FIRST_COOKIE, private: None },
        orphan: None,
        xattrs: dfs_proto::XattrKinds::NONE,
    };
    tx.put(InodeRow::key(InodeId::ROOT), &root)?;
    tx.totals.counts.directories = 1;
    Ok(Reply::Done)
}

pub(crate) fn rotate_key(tx: &mut Tx<'_>, key: &CapabilityKey) -> Result<Reply, Failure> {
    tx.config()?;
    let CapabilityKeys(mut keys) = rows::capability_keys(tx.view())?;
    if keys.last().is_some_and(|newest| newest.number >= key.number) {
        return Err(refuse(ErrorKind::InvalidArgument, "keys are numbered upwards"));
    }
    keys.push(key.clone());
    keys.drain(..keys.len().saturating_sub(KEYS_MAX));
    tx.put(CapabilityKeys::key(), &CapabilityKeys(keys))?;
    Ok(Reply::Done)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::Body;
    use crate::testing::{Rig, kind_of};

    fn genesis(default_replication: u8, min_copies: u8) -> Body {
        let key = CapabilityKey { number: 1, secret: [9; 32] };
        Body::Genesis { cluster: ClusterId([1; 16]), default_replication, min_copies, lease_ms: 10_000, key }
    }

    #[test]
    fn a_cluster_begins_once() {
        let mut rig = Rig::new();
        let before = rig.state.clone();
        assert_eq!(kind_of(rig.apply(genesis(2, 1))), Some(ErrorKind::Exists));
        assert_eq!(rig.state, before);
        assert_eq!(rig.attr(InodeId::ROOT).nlink, 2);
    }

    #[test]
    fn impossible_settings_are_refused() {
        for (replication, min_copies) in [(3, 0), (0, 0), (2, 3), (9, 2)] {
            let mut rig = Rig::empty();
            let outcome = rig.apply(genesis(replication, min_copies));
            assert_eq!(kind_of(outcome), Some(ErrorKind::InvalidArgument), "{replication} {min_copies}");
            assert_eq!(rig.state.rows().count(), 0);
        }
    }

    #[test]
    fn nothing_works_before_genesis() {
        let mut rig = Rig::empty();
        let open = Body::OpenSession { description: String::new(), holder: dfs_proto::NodeId(1) };
        assert_eq!(kind_of(rig.apply(open)), Some(ErrorKind::Unavailable));
        let key = CapabilityKey { number: 1, secret: [9; 32] };
        assert_eq!(kind_of(rig.apply(Body::RotateKey { key })), Some(ErrorKind::Unavailable));
    }

    #[test]
    fn the_two_newest_keys_are_kept() {
        let mut rig = Rig::new();
        let first = rig.keys().last().unwrap().number;
        for number in [first + 1, first + 2] {
            rig.apply(Body::RotateKey { key: CapabilityKey { number, secret: [3; 32] } }).unwrap();
        }
        let numbers: Vec<_> = rig.keys().iter().map(|key| key.number).collect();
        assert_eq!(numbers, [first + 1, first + 2]);
        let stale = Body::RotateKey { key: CapabilityKey { number: first, secret: [3; 32] } };
        assert_eq!(kind_of(rig.apply(stale)), Some(ErrorKind::InvalidArgument));
    }
}
