//! What the kernel was told to believe for a moment without asking. It cannot be made to forget, not without a
//! lock of its own that a call of this very mount may hold; so others' changes wait until its time is over.

use std::time::Duration;

use dfs_proto::InodeId;
use dfs_rpc::Moment;

/// How long the kernel may believe something. A change by somebody else waits for it, at most once in [`DISPUTED`].
const LOAN: Duration = Duration::from_millis(50);

/// How much later the kernel may stop: it counts in ticks, of 10 ms at most, and rounds up twice.
pub(super) const SLACK: Duration = Duration::from_millis(20);

/// What others have changed is not lent for so long, because it is likely to be changed again.
const DISPUTED: Duration = Duration::from_secs(1);

/// When all loans are over that were made until now.
pub(super) const ALL_OVER: Duration = Duration::from_millis(70);
const _: () = assert!(ALL_OVER.as_millis() == LOAN.as_millis() + SLACK.as_millis());

/// Inodes share so many marks.
const MARKS: usize = 4096;

pub(crate) struct Loans {
    /// When the last loan of one of the inodes that share the mark is over.
    over: Vec<Moment>,
    /// Until when nothing is lent of them.
    disputed: Vec<Moment>,
}

impl Loans {
    pub fn new() -> Loans {
        let never = Moment::from_boot(Duration::ZERO);
        Loans { over: vec![never; MARKS], disputed: vec![never; MARKS] }
    }

    /// Lends what is known of an inode: its attributes, or the names in it. Zero if nothing is lent.
    pub fn lend(&mut self, inode: InodeId, valid_until: Moment, now: Moment) -> Duration {
        let mark = mark_of(inode);
        if now < self.disputed[mark] {
            return Duration::ZERO;
        }
        let loan = LOAN.min(valid_until.since(now).saturating_sub(SLACK));
        if !loan.is_zero() {
            self.given(inode, now);
        }
        loan
    }

    /// A loan of the inode was given until `now`.
    pub fn given(&mut self, inode: InodeId, now: Moment) {
        let over = &mut self.over[mark_of(inode)];
        *over = (*over).max(now + ALL_OVER);
    }

    /// Somebody else changes these inodes: nothing of them is lent for some time. Returns when what was lent is over.
    pub fn recall(&mut self, inodes: &[InodeId], now: Moment) -> Moment {
        let mut over = now;
        for mark in inodes.iter().map(|inode| mark_of(*inode)) {
            self.disputed[mark] = now + DISPUTED;
            over = over.max(self.over[mark]);
        }
        over
    }
}

fn mark_of(inode: InodeId) -> usize {
    (inode.0 % MARKS as u64) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: InodeId = InodeId(1);
    const B: InodeId = InodeId(2);

    fn at(ms: u64) -> Moment {
        Moment::from_boot(Duration::from_millis(ms))
    }

    #[test]
    fn a_loan_ends_before_what_it_rests_on_and_is_waited_for_when_it_is_recalled() {
        let mut loans = Loans::new();
        assert_eq!(loans.lend(A, at(5400), at(5000)), LOAN);
        assert_eq!(loans.lend(A, at(5400), at(5370)), Duration::from_millis(10));
        assert_eq!(loans.lend(A, at(5400), at(5380)), Duration::ZERO);
        assert_eq!(loans.recall(&[B], at(5381)), at(5381));
        assert_eq!(loans.recall(&[A, B], at(5381)), at(5370) + ALL_OVER);
    }

    #[test]
    fn the_kernel_counts_from_when_it_got_the_answer() {
        let mut loans = Loans::new();
        loans.lend(A, at(9000), at(5000));
        loans.given(A, at(5300));
        assert_eq!(loans.recall(&[A], at(5301)), at(5300) + ALL_OVER);
    }

    #[test]
    fn what_is_disputed_is_not_lent_for_a_while() {
        let mut loans = Loans::new();
        loans.recall(&[A], at(5000));
        assert_eq!(loans.lend(A, at(9000), at(5999)), Duration::ZERO);
        assert_eq!(loans.lend(B, at(9000), at(5999)), LOAN);
        assert_eq!(loans.lend(A, at(9000), at(6000)), LOAN);
    }
}
