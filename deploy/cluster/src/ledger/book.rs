//! What a writer was told, and what may therefore be found. No file is touched here.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// What a name leads to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum State {
    Absent,
    Folder,
    File(Vec<u8>),
    /// Only ever found, never expected: it cannot be told what is there.
    Unreadable(String),
    /// Only ever found: as many bytes as were asked for could be read, and what follows them could not.
    Torn(Vec<u8>),
}

/// One step of a writer, which either happens or does not.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Step {
    /// An empty file where nothing was.
    Create(PathBuf),
    /// Bytes written to the end of a file and synced. Cut off, any front part of them may be there.
    Append(PathBuf, Vec<u8>),
    /// A file gets another name, on which nothing or another file may be.
    Rename(PathBuf, PathBuf),
    Remove(PathBuf),
    MakeFolder(PathBuf),
    RemoveFolder(PathBuf),
}

/// When the file system promises that a change of names is not lost.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Names {
    /// As soon as the call returns.
    Committed,
    /// With the next sync. Until then a mount that dies may take the last changes with it, in the order in which they were
    /// made.
    WrittenBehind,
}

/// The names that one writer has ever used, all relative to where it works.
#[derive(Clone, Debug)]
pub struct Book {
    names: Names,
    /// What was acknowledged, and nothing since.
    certain: BTreeMap<PathBuf, State>,
    /// Steps that were begun and not acknowledged: each may have happened or not. Their names are used in no
    /// later step.
    unsure: Vec<Unsure>,
    under_way: Option<Step>,
    /// Acknowledged and not promised yet, in order: what the names of each step led to before it.
    not_promised: Vec<Vec<(PathBuf, State)>>,
}

/// A step whose outcome nobody knows, with what its names led to before.
#[derive(Clone, Debug)]
struct Unsure {
    step: Step,
    before: Vec<(PathBuf, State)>,
    /// How many steps were acknowledged before it and not promised: if one of them is lost, so is this.
    after: usize,
}

/// Something that contradicts what was acknowledged.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Finding {
    /// It is not there, or a part of it is not.
    Lost(String),
    /// Other bytes are there than were written.
    Wrong(String),
    /// It was removed and is there, or nobody ever made it.
    Back(String),
}

/// What a book says about what is there.
#[derive(Debug)]
pub struct Checked {
    pub findings: Vec<Finding>,
    /// Steps that were acknowledged, not promised, and are gone.
    pub lost: usize,
}

impl Book {
    pub fn new(names: Names) -> Book {
        let (certain, unsure, not_promised) = (BTreeMap::new(), Vec::new(), Vec::new());
        Book { names, certain, unsure, under_way: None, not_promised }
    }

    /// To be called before the step is tried.
    pub fn begin(&mut self, step: Step) {
        assert!(self.under_way.is_none(), "one step after the other");
        debug_assert!(step.names().iter().all(|name| !self.is_unsure(name)), "{step:?} uses a doubtful name");
        self.under_way = Some(step);
    }

    /// The step under way was acknowledged.
    pub fn acknowledge(&mut self) {
        let step = self.under_way.take().expect("a step is under way");
        let after = step.after(|name| self.state(name));
        self.not_promised.push(after.iter().map(|(name, _)| (name.clone(), self.state(name))).collect());
        self.certain.extend(after);
        if self.names == Names::Committed || matches!(step, Step::Append(..)) {
            self.synced();
        }
    }

    /// Everything acknowledged so far is promised.
    pub fn synced(&mut self) {
        self.not_promised.clear();
        self.unsure.iter_mut().for_each(|unsure| unsure.after = 0);
    }

    /// As if the last step that was acknowledged and not promised had not happened. `false` if there is none.
    fn take_back(&mut self) -> bool {
        let Some(before) = self.not_promised.pop() else { return false };
        let left = self.not_promised.len();
        let later = self.unsure.extract_if(.., |unsure| unsure.after > left);
        self.certain.extend(later.flat_map(|unsure| unsure.before));
        self.certain.extend(before);
        true
    }

    /// The step under way was cut off, or ended with an error: it may have happened.
    pub fn doubt(&mut self) {
        let Some(step) = self.under_way.take() else { return };
        let before = step.names().into_iter().map(|name| (name.to_owned(), self.state(name))).collect();
        for name in step.names() {
            self.certain.remove(name);
        }
        self.unsure.push(Unsure { step, before, after: self.not_promised.len() });
    }

    /// What the name is known to lead to.
    pub fn state(&self, name: &Path) -> State {
        self.certain.get(name).cloned().unwrap_or(State::Absent)
    }

    fn is_unsure(&self, name: &Path) -> bool {
        self.unsure.iter().any(|unsure| unsure.step.names().contains(&name))
    }

    /// Whether something in this folder may be there or not.
    pub fn doubts_below(&self, folder: &Path) -> bool {
        self.unsure.iter().flat_map(|unsure| unsure.step.names()).any(|name| name.parent() == Some(folder))
    }

    pub fn knows(&self, name: &Path) -> bool {
        self.certain.contains_key(name) || self.is_unsure(name)
    }

    /// Every name that is in it.
    pub fn names(&self) -> impl Iterator<Item = &Path> {
        let unsure = self.unsure.iter().flat_map(|unsure| unsure.step.names());
        self.certain.keys().map(PathBuf::as_path).chain(unsure)
    }

    /// Acknowledged names that lead to something.
    pub fn present(&self) -> impl Iterator<Item = (&Path, &State)> {
        let there = self.certain.iter().filter(|(_, state)| **state != State::Absent);
        there.map(|(name, state)| (name.as_path(), state))
    }

    /// Compares with what is `found` under each name, where so many bytes must be readable: with all that was
    /// acknowledged, and if that does not fit, with as much of it as was promised or more.
    pub fn check(&self, mut found: impl FnMut(&Path, usize) -> State) -> Checked {
        let mut seen: BTreeMap<(PathBuf, usize), State> = BTreeMap::new();
        let mut found = |name: &Path, least: usize| {
            seen.entry((name.to_owned(), least)).or_insert_with(|| found(name, least)).clone()
        };
        let findings = self.compare(&mut found);
        let (mut earlier, mut lost) = (self.clone(), 0);
        while !findings.is_empty() && earlier.take_back() {
            lost += 1;
            if earlier.compare(&mut found).is_empty() {
                return Checked { findings: Vec::new(), lost };
            }
        }
        Checked { findings, lost: 0 }
    }

    fn compare(&self, mut found: impl FnMut(&Path, usize) -> State) -> Vec<Finding> {
        let mut findings = Vec::new();
        for (name, expected) in &self.certain {
            let least = if let State::File(bytes) = expected { bytes.len() } else { 0 };
            findings.extend(compare(name, expected, &found(name, least)));
        }
        for unsure in &self.unsure {
            findings.extend(unsure.check(&mut found));
        }
        findings
    }
}

impl Step {
    pub fn names(&self) -> Vec<&Path> {
        match self {
            Step::Create(name) | Step::Append(name, _) | Step::Remove(name) => vec![name],
            Step::MakeFolder(name) | Step::RemoveFolder(name) => vec![name],
            Step::Rename(from, to) => vec![from, to],
        }
    }

    /// What its names lead to when it has happened.
    fn after(&self, before: impl Fn(&Path) -> State) -> Vec<(PathBuf, State)> {
        match self {
            Step::Create(name) => vec![(name.clone(), State::File(Vec::new()))],
            Step::Append(name, more) => {
                let State::File(mut bytes) = before(name) else { panic!("{} is no file", name.display()) };
                bytes.extend_from_slice(more);
                vec![(name.clone(), State::File(bytes))]
            }
            Step::Rename(from, to) => vec![(to.clone(), before(from)), (from.clone(), State::Absent)],
            Step::Remove(name) | Step::RemoveFolder(name) => vec![(name.clone(), State::Absent)],
            Step::MakeFolder(name) => vec![(name.clone(), State::Folder)],
        }
    }
}

impl Unsure {
    /// Fits what is found, if it fits either the state before or the state after as a whole.
    fn check(&self, found: &mut impl FnMut(&Path, usize) -> State) -> Option<Finding> {
        let known = |name: &Path| {
            let of_name = self.before.iter().find(|(known, _)| known == name);
            of_name.map_or(State::Absent, |(_, state)| state.clone())
        };
        let after = self.step.after(known);
        if let Step::Append(name, _) = &self.step {
            let (State::File(before), State::File(after)) = (known(name), &after[0].1) else { return None };
            // An end that nobody was promised may be lost: then it is an error, and what was synced is there.
            return match found(name, before.len()) {
                State::Torn(front) => between(name, &before, after, &State::File(front)),
                found => between(name, &before, after, &found),
            };
        }
        let fits = |states: &[(PathBuf, State)], found: &mut dyn FnMut(&Path, usize) -> State| {
            states.iter().all(|(name, state)| found(name, 0) == *state)
        };
        if fits(&self.before, found) || fits(&after, found) {
            return None;
        }
        let seen: Vec<String> =
            self.before.iter().map(|(name, _)| format!("{}: {}", name.display(), describe(&found(name, 0)))).collect();
        Some(Finding::Lost(format!("{} was under way, and neither done nor undone: {seen:?}", self.step.describe())))
    }
}

impl Step {
    fn describe(&self) -> String {
        match self {
            Step::Create(name) => format!("create {}", name.display()),
            Step::Append(name, more) => format!("append {} bytes to {}", more.len(), name.display()),
            Step::Rename(from, to) => format!("rename {} to {}", from.display(), to.display()),
            Step::Remove(name) => format!("unlink {}", name.display()),
            Step::MakeFolder(name) => format!("mkdir {}", name.display()),
            Step::RemoveFolder(name) => format!("rmdir {}", name.display()),
        }
    }
}

fn compare(name: &Path, expected: &State, found: &State) -> Option<Finding> {
    let name_text = name.display();
    match (expected, found) {
        (State::File(bytes), State::File(_)) => between(name, bytes, bytes, found),
        (State::Absent, State::Absent) | (State::Folder, State::Folder) => None,
        (State::Absent, found) => Some(Finding::Back(format!("{name_text} was removed and is {}", describe(found)))),
        (expected, found) => {
            Some(Finding::Lost(format!("{name_text} was {} and is {}", describe(expected), describe(found))))
        }
    }
}

/// `found` must begin with `least` and be a front part of `most`.
fn between(name: &Path, least: &[u8], most: &[u8], found: &State) -> Option<Finding> {
    let State::File(bytes) = found else {
        return Some(Finding::Lost(format!("{} had {} bytes and is {}", name.display(), least.len(), describe(found))));
    };
    if let Some(at) = bytes.iter().zip(most).position(|(found, written)| found != written) {
        let zeros = bytes[at..].iter().take_while(|byte| **byte == 0).count();
        return Some(Finding::Wrong(format!(
            "{} differs from byte {at} on ({zeros} zeros there); {} bytes found, {} acknowledged",
            name.display(),
            bytes.len(),
            least.len()
        )));
    }
    if bytes.len() > most.len() {
        return Some(Finding::Wrong(format!(
            "{} has {} bytes, {} were written",
            name.display(),
            bytes.len(),
            most.len()
        )));
    }
    if bytes.len() < least.len() {
        return Some(Finding::Lost(format!(
            "{} has {} of {} acknowledged bytes",
            name.display(),
            bytes.len(),
            least.len()
        )));
    }
    None
}

fn describe(state: &State) -> String {
    match state {
        State::Absent => "absent".to_owned(),
        State::Folder => "a folder".to_owned(),
        State::File(bytes) => format!("a file of {} bytes", bytes.len()),
        State::Torn(front) => format!("a file that can be read only up to byte {}", front.len()),
        State::Unreadable(why) => format!("unreadable ({why})"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(name: &str) -> PathBuf {
        name.into()
    }

    fn file(bytes: &[u8]) -> State {
        State::File(bytes.to_vec())
    }

    fn did(steps: &[Step]) -> Book {
        did_where(Names::Committed, steps)
    }

    fn did_where(names: Names, steps: &[Step]) -> Book {
        let mut book = Book::new(names);
        for step in steps {
            book.begin(step.clone());
            book.acknowledge();
        }
        book
    }

    fn check(book: &Book, disk: &[(&str, State)]) -> Vec<Finding> {
        checked(book, disk).findings
    }

    fn checked(book: &Book, disk: &[(&str, State)]) -> Checked {
        book.check(|name, _| {
            let there = disk.iter().find(|(on_disk, _)| Path::new(on_disk) == name);
            there.map_or(State::Absent, |(_, state)| state.clone())
        })
    }

    #[test]
    fn names_written_behind_may_be_lost_back_to_the_last_sync_and_only_in_order() {
        let steps = [
            Step::Create(path("a")),
            Step::Append(path("a"), b"abc".to_vec()),
            Step::Rename(path("a"), path("b")),
            Step::MakeFolder(path("d")),
            Step::Create(path("d/c")),
        ];
        let book = did_where(Names::WrittenBehind, &steps);
        let all = [("b", file(b"abc")), ("d", State::Folder), ("d/c", file(b""))];
        for (there, lost) in [(&all[..], 0), (&all[..2], 1), (&all[..1], 2), (&[("a", file(b"abc"))], 3)] {
            let checked = checked(&book, there);
            assert_eq!((&checked.findings[..], checked.lost), (&[][..], lost));
        }
        // Promised, out of order, and other bytes.
        for wrong in
            [&[][..], &[("a", file(b"abc")), ("d", State::Folder)], &[("b", file(b"ab")), ("d", State::Folder)]]
        {
            assert_ne!(check(&book, wrong), [], "{wrong:?}");
        }
        assert_ne!(check(&did(&steps), &all[..2]), [], "promised at once");
        let mut synced = book.clone();
        synced.synced();
        assert_ne!(check(&synced, &all[..2]), []);
    }

    #[test]
    fn what_was_cut_off_behind_a_lost_name_has_not_happened() {
        let mut book = did_where(Names::WrittenBehind, &[Step::Create(path("a")), Step::Create(path("b"))]);
        book.begin(Step::Append(path("b"), b"abc".to_vec()));
        book.doubt();
        for (there, lost) in [
            (&[("a", file(b"")), ("b", file(b"ab"))][..], 0),
            (&[("a", file(b"")), ("b", file(b""))], 0),
            (&[("a", file(b""))], 1),
            (&[], 2),
        ] {
            let checked = checked(&book, there);
            assert_eq!((&checked.findings[..], checked.lost), (&[][..], lost));
        }
        assert_ne!(check(&book, &[("b", file(b"ab"))]), []);
    }

    #[test]
    fn acknowledged_steps_must_all_be_there() {
        let book = did(&[
            Step::MakeFolder(path("d")),
            Step::Create(path("d/new")),
            Step::Append(path("d/new"), b"abc".to_vec()),
            Step::Rename(path("d/new"), path("d/1")),
            Step::Create(path("gone")),
            Step::Remove(path("gone")),
        ]);
        assert_eq!(check(&book, &[("d", State::Folder), ("d/1", file(b"abc"))]), []);
        let found = check(&book, &[("d", State::Folder), ("d/1", file(b"ab")), ("gone", file(b""))]);
        assert!(matches!(&found[..], [Finding::Lost(_), Finding::Back(_)]), "{found:?}");
        let zeros = check(&book, &[("d", State::Folder), ("d/1", file(b"a\0\0"))]);
        assert!(matches!(&zeros[..], [Finding::Wrong(why)] if why.contains("2 zeros")), "{zeros:?}");
        let longer = check(&book, &[("d", State::Folder), ("d/1", file(b"abcd"))]);
        assert!(matches!(&longer[..], [Finding::Wrong(_)]));
        assert!(matches!(&check(&book, &[("d", State::Folder)])[..], [Finding::Lost(_)]));
    }

    #[test]
    fn an_append_that_was_cut_off_leaves_any_front_part_and_nothing_else() {
        let mut book = did(&[Step::Create(path("f")), Step::Append(path("f"), b"abc".to_vec())]);
        book.begin(Step::Append(path("f"), b"def".to_vec()));
        book.doubt();
        for fine in [&b"abc"[..], b"abcd", b"abcdef"] {
            assert_eq!(check(&book, &[("f", file(fine))]), []);
        }
        assert_eq!(check(&book, &[("f", State::Torn(b"abc".to_vec()))]), []);
        assert!(matches!(&check(&book, &[("f", State::Torn(b"ab".to_vec()))])[..], [Finding::Lost(_)]));
        assert!(matches!(&check(&book, &[("f", file(b"ab"))])[..], [Finding::Lost(_)]));
        assert!(matches!(&check(&book, &[("f", file(b"abc\0\0f"))])[..], [Finding::Wrong(_)]));
        assert!(matches!(&check(&book, &[])[..], [Finding::Lost(_)]));
    }

    #[test]
    fn a_rename_that_was_cut_off_is_done_as_a_whole_or_not_at_all() {
        let mut book = did(&[
            Step::Create(path("a")),
            Step::Append(path("a"), b"new".to_vec()),
            Step::Create(path("b")),
            Step::Append(path("b"), b"old".to_vec()),
        ]);
        book.begin(Step::Rename(path("a"), path("b")));
        book.doubt();
        assert_eq!(check(&book, &[("a", file(b"new")), ("b", file(b"old"))]), []);
        assert_eq!(check(&book, &[("b", file(b"new"))]), []);
        for wrong in [&[("a", file(b"new"))][..], &[("a", file(b"new")), ("b", file(b"new"))], &[("b", file(b"old"))]] {
            assert!(matches!(&check(&book, wrong)[..], [Finding::Lost(_)]), "{wrong:?}");
        }
    }

    #[test]
    fn names_in_doubt_are_known_and_not_certain() {
        let mut book = did(&[Step::Create(path("a"))]);
        book.begin(Step::Remove(path("a")));
        book.doubt();
        assert_eq!(book.present().count(), 0);
        assert!(book.knows(Path::new("a")) && !book.knows(Path::new("b")));
        assert_eq!(book.names().count(), 1);
        assert_eq!(check(&book, &[]), []);
        assert_eq!(check(&book, &[("a", file(b""))]), []);
    }
}
