//! Whether this node leads, and is ready to.

use dfs_proto::{ErrorKind, WireError};
use parking_lot::Mutex;

/// The term for which this node leads with its soft state in place. Being elected is not enough: the
/// state must hold everything that was committed before, and the sessions must have their leases.
#[derive(Default)]
pub struct Reign(Mutex<Option<u64>>);

impl Reign {
    pub fn begin(&self, term: u64) {
        *self.0.lock() = Some(term);
    }

    pub fn end(&self) {
        *self.0.lock() = None;
    }

    pub fn term(&self) -> Option<u64> {
        *self.0.lock()
    }

    /// The term.
    ///
    /// # Errors
    /// `NotLeader`, with the leader where it is known; `Unavailable` while this node gets ready to lead.
    pub fn require(&self, me: u64, leader: Option<u64>) -> Result<u64, WireError> {
        match (*self.0.lock(), leader) {
            (Some(term), Some(leader)) if leader == me => Ok(term),
            (_, Some(leader)) if leader == me => {
                Err(WireError::new(ErrorKind::Unavailable, "this namenode has just been elected"))
            }
            (_, Some(leader)) => Err(WireError {
                leader: Some(leader),
                ..WireError::new(ErrorKind::NotLeader, format!("namenode {leader} leads"))
            }),
            (_, None) => Err(WireError::new(ErrorKind::NotLeader, "no namenode leads at the moment")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_leader_that_is_ready_answers() {
        let reign = Reign::default();
        let kind = |leader| reign.require(1, leader).map_err(|error| error.kind);
        assert_eq!(kind(None), Err(ErrorKind::NotLeader));
        assert_eq!(kind(Some(2)), Err(ErrorKind::NotLeader));
        assert_eq!(kind(Some(1)), Err(ErrorKind::Unavailable));
        reign.begin(5);
        assert_eq!(kind(Some(1)), Ok(5));
        // It has lost the lead and not noticed yet.
        assert_eq!(kind(Some(2)), Err(ErrorKind::NotLeader));
    }
}
