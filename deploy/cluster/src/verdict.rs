//! What was checked, and which promise was found broken, with the evidence.

use std::collections::BTreeMap;
use std::fmt;

use anyhow::{Error, Result};

/// What must hold whatever is done to the machines. The numbers are used in reports.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Invariant {
    /// I1
    AcknowledgedSurvives,
    /// I2
    OnlyRightBytes,
    /// I3
    Linearizable,
    /// I4
    NamespaceSound,
    /// I5
    ReplicasAgree,
    /// I6
    NamenodesAgree,
    /// I7
    OneLeader,
    /// I8
    NothingOrphaned,
    /// I9
    NothingTwice,
    /// I10
    UsageCounted,
    /// I11
    CallsEnd,
    /// I12
    ResourcesReturn,
    /// I13
    NothingAllowedInError,
    /// I14
    FsckAgrees,
}

impl Invariant {
    pub fn number(self) -> u8 {
        self as u8 + 1
    }

    pub fn text(self) -> &'static str {
        match self {
            Invariant::AcknowledgedSurvives => "what was acknowledged is there",
            Invariant::OnlyRightBytes => "no read returns bytes that nobody wrote there",
            Invariant::Linearizable => "nobody goes back in time",
            Invariant::NamespaceSound => "the namespace is a tree, each name in it once",
            Invariant::ReplicasAgree => "replicas are whole, alike and as many as wanted",
            Invariant::NamenodesAgree => "the namenodes agree",
            Invariant::OneLeader => "one leader, and no hole in its log",
            Invariant::NothingOrphaned => "no chunk is orphaned, none that is used is missing",
            Invariant::NothingTwice => "nothing is done twice",
            Invariant::UsageCounted => "what is counted equals a recount",
            Invariant::CallsEnd => "every call ends in time, and well where it can",
            Invariant::ResourcesReturn => "memory and descriptors go back to where they were",
            Invariant::NothingAllowedInError => "nothing is allowed that should be refused",
            Invariant::FsckAgrees => "fsck agrees with what lies on the disks",
        }
    }
}

impl fmt::Display for Invariant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "I{} ({})", self.number(), self.text())
    }
}

/// A broken promise.
#[derive(Clone, Debug)]
pub struct Violation {
    pub invariant: Invariant,
    /// What was seen, in words that lead to the place.
    pub evidence: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.invariant, self.evidence)
    }
}

/// How often each promise was checked, and every time that it was broken.
#[derive(Clone, Default, Debug)]
pub struct Verdict {
    pub checked: BTreeMap<Invariant, u64>,
    pub violations: Vec<Violation>,
}

impl Verdict {
    /// Notes that so many things were looked at and found in order.
    pub fn fine(&mut self, invariant: Invariant, count: u64) {
        *self.checked.entry(invariant).or_default() += count;
    }

    pub fn broken(&mut self, invariant: Invariant, evidence: impl Into<String>) {
        self.fine(invariant, 1);
        self.violations.push(Violation { invariant, evidence: evidence.into() });
    }

    /// Notes a check whose failure means that `invariant` is broken. Returns what it returned.
    pub fn hold<T>(&mut self, invariant: Invariant, outcome: Result<T>) -> Result<T> {
        match &outcome {
            Ok(_) => self.fine(invariant, 1),
            Err(error) => self.broken(invariant, describe(error)),
        }
        outcome
    }

    pub fn is_clean(&self) -> bool {
        self.violations.is_empty()
    }

    pub fn add(&mut self, other: Verdict) {
        for (invariant, count) in other.checked {
            self.fine(invariant, count);
        }
        self.violations.extend(other.violations);
    }
}

fn describe(error: &Error) -> String {
    format!("{error:#}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_check_is_a_violation_with_its_evidence() {
        let mut verdict = Verdict::default();
        verdict.hold(Invariant::ReplicasAgree, Ok(())).unwrap();
        assert!(verdict.is_clean());
        let outcome: Result<()> = Err(anyhow::anyhow!("chunk 7").context("dn2"));
        verdict.hold(Invariant::ReplicasAgree, outcome).unwrap_err();
        assert_eq!(verdict.checked[&Invariant::ReplicasAgree], 2);
        let said = verdict.violations[0].to_string();
        assert!(said.starts_with("I5 (") && said.ends_with("dn2: chunk 7"), "{said}");
    }

    #[test]
    fn numbers_are_those_of_the_list() {
        assert_eq!((Invariant::AcknowledgedSurvives.number(), Invariant::FsckAgrees.number()), (1, 14));
    }
}
