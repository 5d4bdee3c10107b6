//! The wall clock, read in one place.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use dfs_proto::Timestamp;

/// The time since 1970; 0 if the clock stands before that.
fn since_1970() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

pub fn now() -> Timestamp {
    let now = since_1970();
    Timestamp { secs: now.as_secs() as i64, nanos: now.subsec_nanos() }
}

/// Seconds since 1970.
pub fn now_s() -> u64 {
    since_1970().as_secs()
}
