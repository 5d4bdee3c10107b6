//! What may be answered without asking: names and attributes that the namenode said are true until it
//! says otherwise, or until it has not been heard for too long.

use std::collections::{HashMap, HashSet};
use std::hash::Hash;
use std::time::Duration;

use dfs_proto::msg::meta::Told;
use dfs_proto::{Attr, FileKind, InodeId, Name};
use dfs_rpc::Moment;

use super::ahead::Ahead;

/// Names and attributes kept; when there are more all are forgotten. About 40 MiB.
const ENTRIES_MAX: usize = 128 << 10;

/// Inodes share so many marks of the last time they were forgotten.
const MARKS: usize = 4096;

pub(crate) struct Memory {
    attrs: HashMap<InodeId, Attr>,
    /// By directory. `None`: there is nothing of that name.
    names: HashMap<InodeId, HashMap<Name, Option<InodeId>>>,
    /// Directories of which every name is in `names`: they were seen empty, and nobody else has touched them since.
    whole: HashSet<InodeId>,
    /// How often everything was dropped to make room.
    dropped: u64,
    entries: usize,
    /// Goes up with everything that is forgotten.
    clock: u64,
    /// Of inodes that share a mark: when one of them was forgotten last.
    marks: Vec<u64>,
    /// When everything was.
    cleared: u64,
    valid_until: Moment,
    pub ahead: Ahead,
    /// What changes of our own are about to touch: the attributes of inodes, and names in directories; and how many.
    changing: HashMap<InodeId, usize>,
    changing_names: HashMap<(InodeId, Name), usize>,
}

/// What a change of our own may touch.
#[derive(Debug, Default)]
pub(crate) struct Concerned {
    pub inodes: Vec<InodeId>,
    /// By directory. Of the directory itself only the attributes are concerned.
    pub names: Vec<(InodeId, Name)>,
}

/// The moment at which a question was sent. What was forgotten after it must not be learned from its
/// answer, which may be older.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Asked {
    clock: u64,
    at: Moment,
}

impl Asked {
    pub fn at(self) -> Moment {
        self.at
    }
}

impl Memory {
    pub fn new() -> Memory {
        Memory {
            attrs: HashMap::new(),
            names: HashMap::new(),
            whole: HashSet::new(),
            dropped: 0,
            entries: 0,
            clock: 0,
            marks: vec![0; MARKS],
            cleared: 0,
            valid_until: Moment::from_boot(Duration::ZERO),
            ahead: Ahead::default(),
            changing: HashMap::new(),
            changing_names: HashMap::new(),
        }
    }

    /// To be called before a change is sent. Until `change_ended` nothing about what is concerned is answered from
    /// memory: others may see the change before its reply is here, which is what tells this session to forget. Adds
    /// what the names are known to lead to, and their directories.
    pub fn change_begins(&mut self, concerned: &mut Concerned) {
        for (parent, name) in &concerned.names {
            concerned.inodes.push(*parent);
            concerned.inodes.extend(self.names.get(parent).and_then(|names| names.get(name)).copied().flatten());
            *self.changing_names.entry((*parent, name.clone())).or_default() += 1;
        }
        for inode in &concerned.inodes {
            *self.changing.entry(*inode).or_default() += 1;
        }
    }

    /// The change has been answered, or given up.
    pub fn change_ended(&mut self, concerned: &Concerned) {
        self.clock += 1;
        for inode in &concerned.inodes {
            self.forget_attr(*inode);
            one_less(&mut self.changing, inode);
        }
        self.forget_names(&concerned.names);
        for name in &concerned.names {
            one_less(&mut self.changing_names, name);
        }
    }

    /// As `forget_own` and `change_ended` for a change that was asked for at `asked`, and learns what was told with its
    /// answer: of what was forgotten meanwhile, for whatever other reason, nothing.
    pub fn change_told(
        &mut self,
        concerned: &Concerned,
        inodes: &[InodeId],
        asked: Asked,
        told: &[Told],
        valid_until: Moment,
    ) {
        let fresh: Vec<&Told> = told
            .iter()
            .filter(|told| {
                let leads_to = told.leads_to.as_ref().map_or(told.directory.inode, |attr| attr.inode);
                self.may_learn(asked, &[told.directory.inode, leads_to])
            })
            .collect();
        let parents = concerned.names.iter().map(|(parent, _)| *parent);
        let whole: Vec<InodeId> = parents.filter(|parent| self.whole.contains(parent)).collect();
        let dropped = self.dropped;
        self.forget_own(inodes, &concerned.names);
        self.change_ended(concerned);
        // Nothing can come between what was just forgotten and this.
        let now = Asked { clock: self.clock, ..asked };
        for told in &fresh {
            self.learn_attr(now, &told.directory, valid_until);
            self.learn_name(now, told.directory.inode, &told.name, told.leads_to.as_ref(), valid_until);
        }
        if dropped != self.dropped {
            return;
        }
        // Of a whole directory only these names were forgotten, and are known again.
        if fresh.len() == concerned.names.len() {
            self.whole.extend(whole);
        }
        let empty = fresh.iter().filter(|told| told.empty).filter_map(|told| told.leads_to.as_ref());
        self.whole.extend(empty.map(|attr| attr.inode));
    }

    /// To be called before a question is sent.
    pub fn ask(&self, now: Moment) -> Asked {
        Asked { clock: self.clock, at: now }
    }

    pub fn attr(&self, inode: InodeId, now: Moment) -> Option<&Attr> {
        self.attrs.get(&inode).filter(|_| now < self.valid_until && !self.changing.contains_key(&inode))
    }

    /// Until when these attributes are believed, if they are the latest known. The atime need not be: reads of this
    /// client's own go into it later.
    pub fn believed_until(&self, attr: &Attr, now: Moment) -> Option<Moment> {
        let known = self.attr(attr.inode, now)?;
        let same = Attr { atime: attr.atime, ..known.clone() } == *attr;
        same.then_some(self.valid_until)
    }

    /// Until when everything here is believed.
    pub fn valid_until(&self) -> Moment {
        self.valid_until
    }

    /// What the name leads to; `Some(None)` if it is known to lead nowhere.
    pub fn name(&self, parent: InodeId, name: &Name, now: Moment) -> Option<Option<&Attr>> {
        let known = match self.names.get(&parent).and_then(|names| names.get(name)) {
            None if self.whole.contains(&parent) => &None,
            known => known?,
        };
        match known {
            _ if now >= self.valid_until => None,
            // Few changes are under way at a time, and mostly none.
            _ if !self.changing_names.is_empty() && self.is_changing(parent, name) => None,
            None => Some(None),
            Some(inode) if self.changing.contains_key(inode) => None,
            Some(inode) => self.attrs.get(inode).map(Some),
        }
    }

    /// The regular files that names in the directory are known to lead to; none if more than `max` names are known.
    pub fn files_in(&self, directory: InodeId, max: usize) -> Vec<InodeId> {
        let names = self.names.get(&directory).filter(|names| names.len() <= max);
        let names = names.into_iter().flat_map(|names| names.values().copied().flatten());
        names.filter(|inode| self.attrs.get(inode).is_some_and(|attr| attr.kind == FileKind::File)).collect()
    }

    pub fn learn_attr(&mut self, asked: Asked, attr: &Attr, valid_until: Moment) {
        if self.may_learn(asked, &[attr.inode]) {
            self.make_room();
            self.entries += usize::from(self.attrs.insert(attr.inode, attr.clone()).is_none());
            self.valid_until = self.valid_until.max(valid_until);
        }
    }

    pub fn learn_name(&mut self, asked: Asked, parent: InodeId, name: &Name, to: Option<&Attr>, valid_until: Moment) {
        let inode = to.map(|attr| attr.inode);
        if !self.may_learn(asked, &[parent, inode.unwrap_or(parent)]) {
            return;
        }
        if let Some(attr) = to {
            self.learn_attr(asked, attr, valid_until);
        }
        self.make_room();
        let names = self.names.entry(parent).or_default();
        self.entries += usize::from(names.insert(name.clone(), inode).is_none());
        self.valid_until = self.valid_until.max(valid_until);
    }

    pub fn forget(&mut self, inodes: &[InodeId]) {
        self.clock += 1;
        for inode in inodes {
            self.marks[mark_of(*inode)] = self.clock;
            self.entries -= usize::from(self.attrs.remove(inode).is_some());
            self.entries -= self.names.remove(inode).map_or(0, |names| names.len());
            self.whole.remove(inode);
            self.ahead.forget(*inode);
        }
    }

    /// As `forget`, after a change of our own that came or went with these names: of their directories, which are
    /// still watched, the other names are kept.
    pub fn forget_own(&mut self, inodes: &[InodeId], names: &[(InodeId, Name)]) {
        let (parents, others): (Vec<InodeId>, Vec<InodeId>) =
            inodes.iter().partition(|inode| names.iter().any(|(parent, _)| parent == *inode));
        self.forget(&others);
        parents.into_iter().for_each(|inode| self.forget_attr(inode));
        self.forget_names(names);
    }

    fn forget_attr(&mut self, inode: InodeId) {
        self.marks[mark_of(inode)] = self.clock;
        self.entries -= usize::from(self.attrs.remove(&inode).is_some());
    }

    fn is_changing(&self, parent: InodeId, name: &Name) -> bool {
        self.changing_names.keys().any(|(directory, changing)| *directory == parent && changing == name)
    }

    /// Forgets names, and what is being asked now of their directories.
    fn forget_names(&mut self, names: &[(InodeId, Name)]) {
        self.clock += 1;
        for (parent, name) in names {
            self.marks[mark_of(*parent)] = self.clock;
            self.whole.remove(parent);
            let forgotten = self.names.get_mut(parent).and_then(|names| names.remove(name));
            self.entries -= usize::from(forgotten.is_some());
        }
    }

    /// Forgets everything, and what is being asked now.
    pub fn clear(&mut self) {
        self.clock += 1;
        self.cleared = self.clock;
        self.attrs.clear();
        self.names.clear();
        self.whole.clear();
        self.entries = 0;
        self.ahead.clear();
        self.valid_until = Moment::from_boot(Duration::ZERO);
    }

    pub fn may_learn(&self, asked: Asked, inodes: &[InodeId]) -> bool {
        asked.clock >= self.cleared && inodes.iter().all(|inode| self.marks[mark_of(*inode)] <= asked.clock)
    }

    fn make_room(&mut self) {
        if self.entries + self.whole.len() >= ENTRIES_MAX {
            self.attrs.clear();
            self.names.clear();
            self.whole.clear();
            self.dropped += 1;
            self.entries = 0;
            self.ahead.clear();
        }
    }
}

fn one_less<K: Eq + Hash>(counts: &mut HashMap<K, usize>, key: &K) {
    if let Some(count) = counts.get_mut(key) {
        *count -= 1;
        if *count == 0 {
            counts.remove(key);
        }
    }
}

fn mark_of(inode: InodeId) -> usize {
    (inode.0 % MARKS as u64) as usize
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use dfs_proto::{Timestamp, XattrKinds};

    const DIR: InodeId = InodeId(1);
    const FILE: InodeId = InodeId(2);

    pub fn attr(inode: InodeId) -> Attr {
        let epoch = Timestamp::default();
        Attr {
            inode,
            kind: FileKind::File,
            mode: 0o644,
            nlink: 1,
            uid: 0,
            gid: 0,
            rdev: 0,
            size_bytes: 0,
            mapped_bytes: 0,
            atime: epoch,
            mtime: epoch,
            ctime: epoch,
            crtime: epoch,
            version: 1,
            replication: 3,
            xattrs: XattrKinds::default(),
        }
    }

    fn at(ms: u64) -> Moment {
        Moment::from_boot(Duration::from_millis(ms))
    }

    fn name(text: &str) -> Name {
        Name::new(text.as_bytes()).unwrap()
    }

    #[test]
    fn what_was_learned_is_believed_until_its_time_is_over_and_again_when_the_namenode_answers_again() {
        let mut memory = Memory::new();
        let asked = memory.ask(at(0));
        memory.learn_name(asked, DIR, &name("file"), Some(&attr(FILE)), at(400));
        memory.learn_name(asked, DIR, &name("nothing"), None, at(400));
        assert_eq!(memory.name(DIR, &name("file"), at(399)), Some(Some(&attr(FILE))));
        assert_eq!(memory.name(DIR, &name("nothing"), at(399)), Some(None));
        assert_eq!(memory.name(DIR, &name("other"), at(399)), None);
        assert!(memory.attr(FILE, at(399)).is_some());
        assert_eq!(memory.name(DIR, &name("file"), at(400)), None);
        assert_eq!(memory.attr(FILE, at(400)), None);
        let asked = memory.ask(at(500));
        memory.learn_attr(asked, &attr(InodeId(9)), at(900));
        assert_eq!(memory.name(DIR, &name("file"), at(899)), Some(Some(&attr(FILE))));
    }

    #[test]
    fn the_files_of_a_directory_are_told_unless_there_are_many() {
        let mut memory = Memory::new();
        let asked = memory.ask(at(0));
        let folder = Attr { kind: FileKind::Directory, ..attr(InodeId(9)) };
        memory.learn_name(asked, DIR, &name("file"), Some(&attr(FILE)), at(400));
        memory.learn_name(asked, DIR, &name("folder"), Some(&folder), at(400));
        memory.learn_name(asked, DIR, &name("nothing"), None, at(400));
        assert_eq!(memory.files_in(DIR, 3), [FILE]);
        assert!(memory.files_in(DIR, 2).is_empty() && memory.files_in(FILE, 3).is_empty());
    }

    #[test]
    fn an_answer_that_was_overtaken_by_a_revocation_is_not_learned() {
        let mut memory = Memory::new();
        let asked = memory.ask(at(0));
        memory.forget(&[FILE]);
        memory.learn_name(asked, DIR, &name("file"), Some(&attr(FILE)), at(400));
        memory.learn_attr(asked, &attr(FILE), at(400));
        assert_eq!(memory.name(DIR, &name("file"), at(1)), None);
        assert_eq!(memory.attr(FILE, at(1)), None);
        // Another inode's answer is not concerned; a clear concerns all.
        memory.learn_attr(asked, &attr(InodeId(3)), at(400));
        assert!(memory.attr(InodeId(3), at(1)).is_some());
        memory.clear();
        memory.learn_attr(asked, &attr(InodeId(4)), at(400));
        assert_eq!(memory.attr(InodeId(4), at(1)), None);
    }

    #[test]
    fn a_directory_that_is_forgotten_takes_its_names_along() {
        let mut memory = Memory::new();
        let asked = memory.ask(at(0));
        memory.learn_name(asked, DIR, &name("file"), Some(&attr(FILE)), at(400));
        memory.learn_name(asked, DIR, &name("nothing"), None, at(400));
        memory.forget(&[DIR]);
        assert_eq!(memory.name(DIR, &name("file"), at(1)), None);
        assert_eq!(memory.name(DIR, &name("nothing"), at(1)), None);
        assert!(memory.attr(FILE, at(1)).is_some());
        assert_eq!(memory.entries, 1);
    }

    fn told(directory: InodeId, name: &Name, leads_to: Option<Attr>, empty: bool) -> Told {
        Told { directory: attr(directory), name: name.clone(), leads_to, empty }
    }

    /// A change of this name under way.
    fn change(memory: &mut Memory, directory: InodeId, name: &Name) -> (Concerned, Asked) {
        let mut concerned = Concerned { inodes: Vec::new(), names: vec![(directory, name.clone())] };
        memory.change_begins(&mut concerned);
        let asked = memory.ask(at(0));
        (concerned, asked)
    }

    /// Makes `NEW` in `DIR`, and is told that it is empty.
    const NEW: InodeId = InodeId(5);
    fn make_directory(memory: &mut Memory) {
        let (concerned, asked) = change(memory, DIR, &name("new"));
        let told = told(DIR, &name("new"), Some(attr(NEW)), true);
        memory.change_told(&concerned, &[DIR], asked, &[told], at(400));
    }

    #[test]
    fn what_an_own_change_was_told_is_remembered() {
        let mut memory = Memory::new();
        make_directory(&mut memory);
        assert_eq!(memory.name(DIR, &name("new"), at(1)), Some(Some(&attr(NEW))));
        assert!(memory.attr(DIR, at(1)).is_some());
        assert_eq!(memory.name(DIR, &name("other"), at(1)), None, "nobody said what else there is");
        let (concerned, asked) = change(&mut memory, DIR, &name("new"));
        assert_eq!(memory.name(DIR, &name("new"), at(1)), None, "it is on its way");
        memory.change_told(&concerned, &[DIR, NEW], asked, &[told(DIR, &name("new"), None, false)], at(400));
        assert_eq!(memory.name(DIR, &name("new"), at(1)), Some(None));
        assert_eq!(memory.attr(NEW, at(1)), None);
        assert!(memory.changing.is_empty() && memory.changing_names.is_empty());
    }

    #[test]
    fn an_empty_directory_is_known_whole_until_somebody_else_touches_it() {
        let mut memory = Memory::new();
        make_directory(&mut memory);
        assert_eq!(memory.name(NEW, &name("a"), at(1)), Some(None));
        assert_eq!(memory.name(NEW, &name("a"), at(400)), None, "nothing is believed for longer");
        let (concerned, asked) = change(&mut memory, NEW, &name("a"));
        assert_eq!(memory.name(NEW, &name("a"), at(1)), None);
        memory.change_told(&concerned, &[NEW], asked, &[told(NEW, &name("a"), Some(attr(FILE)), false)], at(400));
        assert_eq!(memory.name(NEW, &name("a"), at(1)), Some(Some(&attr(FILE))));
        assert_eq!(memory.name(NEW, &name("b"), at(1)), Some(None));
        // A change of which nothing was told.
        let (concerned, _) = change(&mut memory, NEW, &name("c"));
        memory.forget_own(&[NEW], &concerned.names);
        memory.change_ended(&concerned);
        assert_eq!(memory.name(NEW, &name("c"), at(1)), None);
        assert_eq!(memory.name(NEW, &name("b"), at(1)), None);
        let mut memory = Memory::new();
        make_directory(&mut memory);
        memory.forget(&[NEW]);
        assert_eq!(memory.name(NEW, &name("b"), at(1)), None);
    }

    #[test]
    fn what_was_told_and_overtaken_is_not_remembered() {
        let mut memory = Memory::new();
        make_directory(&mut memory);
        let (concerned, asked) = change(&mut memory, NEW, &name("a"));
        // Somebody else changes the directory before or after the answer was made; nobody knows.
        memory.forget(&[NEW]);
        memory.change_told(&concerned, &[NEW], asked, &[told(NEW, &name("a"), Some(attr(FILE)), false)], at(400));
        assert_eq!(memory.name(NEW, &name("a"), at(1)), None);
        assert_eq!(memory.name(NEW, &name("b"), at(1)), None);
        assert_eq!(memory.attr(NEW, at(1)), None);
        // Two of our own at a time: the one that is answered first may be the later one.
        let mut memory = Memory::new();
        make_directory(&mut memory);
        let (first, asked_first) = change(&mut memory, NEW, &name("a"));
        let (second, asked_second) = change(&mut memory, NEW, &name("b"));
        memory.change_told(&second, &[NEW], asked_second, &[told(NEW, &name("b"), Some(attr(FILE)), false)], at(400));
        assert_eq!(memory.attr(NEW, at(1)), None, "another change of it is under way");
        memory.change_told(&first, &[NEW], asked_first, &[told(NEW, &name("a"), Some(attr(FILE)), false)], at(400));
        assert_eq!(memory.name(NEW, &name("a"), at(1)), None);
        assert_eq!(memory.name(NEW, &name("c"), at(1)), None);
        assert_eq!(memory.attr(NEW, at(1)), None);
        // Nothing of what was dropped for want of room is taken for absent.
        let mut memory = Memory::new();
        make_directory(&mut memory);
        let (concerned, asked) = change(&mut memory, NEW, &name("a"));
        memory.entries = ENTRIES_MAX;
        memory.change_told(&concerned, &[], asked, &[told(NEW, &name("a"), Some(attr(FILE)), false)], at(400));
        assert_eq!(memory.name(NEW, &name("b"), at(1)), None);
    }

    #[test]
    fn an_own_change_takes_its_names_and_leaves_the_others_of_the_directory() {
        let mut memory = Memory::new();
        let asked = memory.ask(at(0));
        memory.learn_attr(asked, &attr(DIR), at(400));
        memory.learn_name(asked, DIR, &name("new"), None, at(400));
        memory.learn_name(asked, DIR, &name("file"), Some(&attr(FILE)), at(400));
        let asked = memory.ask(at(1));
        memory.forget_own(&[DIR], &[(DIR, name("new"))]);
        assert_eq!(memory.name(DIR, &name("new"), at(2)), None);
        assert_eq!(memory.attr(DIR, at(2)), None);
        assert!(memory.name(DIR, &name("file"), at(2)).is_some());
        // Asked before the change, answered after it.
        memory.learn_name(asked, DIR, &name("new"), None, at(400));
        memory.learn_attr(asked, &attr(DIR), at(400));
        assert_eq!(memory.name(DIR, &name("new"), at(2)), None);
        assert_eq!(memory.attr(DIR, at(2)), None);
        // A change that names nothing in the directory may have changed any of it.
        memory.forget_own(&[DIR], &[(FILE, name("elsewhere"))]);
        assert_eq!(memory.name(DIR, &name("file"), at(2)), None);
        assert_eq!(memory.entries, 1);
    }

    #[test]
    fn nothing_is_believed_of_what_a_change_under_way_may_have_changed_already() {
        let mut memory = Memory::new();
        let other = name("other");
        let learn = |memory: &mut Memory| {
            let asked = memory.ask(at(0));
            memory.learn_name(asked, DIR, &name("file"), Some(&attr(FILE)), at(400));
            memory.learn_name(asked, DIR, &other, Some(&attr(InodeId(3))), at(400));
            memory.learn_attr(asked, &attr(DIR), at(400));
        };
        learn(&mut memory);
        let file = name("file");
        // Two renames onto one name, for example.
        let mut first = Concerned { inodes: Vec::new(), names: vec![(DIR, file.clone())] };
        memory.change_begins(&mut first);
        let mut second = Concerned { inodes: vec![FILE], names: Vec::new() };
        memory.change_begins(&mut second);
        assert_eq!(memory.name(DIR, &file, at(1)), None);
        assert_eq!((memory.attr(DIR, at(1)), memory.attr(FILE, at(1))), (None, None));
        assert!(memory.name(DIR, &other, at(1)).is_some(), "of other names all is believed");
        memory.change_ended(&first);
        assert!(memory.name(DIR, &other, at(1)).is_some());
        // What is learned meanwhile may be of before the second change.
        learn(&mut memory);
        assert!(memory.attr(DIR, at(1)).is_some());
        assert_eq!((memory.name(DIR, &file, at(1)), memory.attr(FILE, at(1))), (None, None));
        memory.change_ended(&second);
        assert_eq!(memory.attr(FILE, at(1)), None, "it is asked again");
        learn(&mut memory);
        assert_eq!(memory.name(DIR, &file, at(1)), Some(Some(&attr(FILE))));
        assert!(memory.changing.is_empty() && memory.changing_names.is_empty());
    }

    #[test]
    fn memory_is_bounded() {
        let mut memory = Memory::new();
        let asked = memory.ask(at(0));
        for number in 0..2 * ENTRIES_MAX as u64 {
            memory.learn_attr(asked, &attr(InodeId(number)), at(400));
            assert!(memory.attrs.len() <= ENTRIES_MAX);
        }
    }
}
