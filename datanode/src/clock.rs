//! The wall clock, read in one place.

use dfs_proto::Timestamp;
use dfs_rpc::since_1970;

pub fn now() -> Timestamp {
    let now = since_1970();
    Timestamp { secs: now.as_secs() as i64, nanos: now.subsec_nanos() }
}

/// Seconds since 1970.
pub fn now_s() -> u64 {
    since_1970().as_secs()
}
