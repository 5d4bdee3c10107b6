//! Who is told that bytes of a file were lost: every descriptor that was open then, once each. If there was none, the
//! next one that is opened. (The rule of Linux since 4.13 for files on local disks.)

use crate::error::Error;

/// The failures of one file.
#[derive(Default, Debug)]
pub(crate) struct Failures {
    count: u64,
    last: Option<Error>,
    /// Somebody has been told of the last one.
    told: bool,
}

/// How much of it a descriptor has been told.
#[derive(Debug)]
pub(crate) struct Heard(u64);

impl Failures {
    pub fn note(&mut self, error: Error) {
        self.count += 1;
        self.last = Some(error);
        self.told = false;
    }

    /// For a descriptor that is opened now.
    pub fn heard(&self) -> Heard {
        Heard(if self.told { self.count } else { self.count.saturating_sub(1) })
    }

    /// How many there were so far: for `since`.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// The last one, if it came after so many.
    pub fn since(&self, count: u64) -> Option<Error> {
        self.last.clone().filter(|_| self.count > count)
    }

    /// What the descriptor has not been told yet.
    pub fn tell(&mut self, heard: &mut Heard) -> Option<Error> {
        let error = self.since(heard.0)?;
        heard.0 = self.count;
        self.told = true;
        Some(error)
    }
}

#[cfg(test)]
mod tests {
    use dfs_proto::ErrorKind;

    use super::*;

    fn error(text: &str) -> Error {
        Error::new(ErrorKind::Internal, text.to_owned())
    }

    #[test]
    fn every_descriptor_is_told_once() {
        let mut failures = Failures::default();
        let (mut first, mut second) = (failures.heard(), failures.heard());
        assert!(failures.tell(&mut first).is_none());
        failures.note(error("one"));
        for heard in [&mut first, &mut second] {
            assert_eq!(failures.tell(heard).map(|error| error.message), Some("one".to_owned()));
            assert!(failures.tell(heard).is_none());
        }
        assert!(failures.tell(&mut failures.heard()).is_none(), "opened when it was known");
        failures.note(error("two"));
        failures.note(error("three"));
        assert_eq!(failures.tell(&mut first).map(|error| error.message), Some("three".to_owned()));
        assert!(failures.tell(&mut first).is_none());
    }

    #[test]
    fn what_nobody_was_told_the_next_descriptor_is() {
        let mut failures = Failures::default();
        failures.note(error("one"));
        let (mut first, mut second) = (failures.heard(), failures.heard());
        assert!(failures.tell(&mut first).is_some() && failures.tell(&mut second).is_some());
        assert!(failures.tell(&mut failures.heard()).is_none());
    }

    #[test]
    fn only_what_came_meanwhile_ends_a_wait() {
        let mut failures = Failures::default();
        failures.note(error("one"));
        let begun = failures.count();
        assert!(failures.since(begun).is_none());
        failures.note(error("two"));
        assert!(failures.since(begun).is_some());
    }
}
