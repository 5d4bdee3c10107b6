//! Which changes of the membership are allowed, and what they consist of. Pure; `membership.rs` acts.

use std::collections::{BTreeMap, BTreeSet};

use dfs_proto::limits::{NAMENODES_MAX, NODE_NAME_MAX};
use dfs_proto::{ErrorKind, WireError};

use super::node::Standing;
use super::types::Member;

/// What an administrator wants.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Change {
    Add { id: u64, member: Member },
    Remove { id: u64 },
    Replace { old: u64, id: u64, member: Member },
}

impl Change {
    /// For people: what runs, or what is in the way.
    pub fn words(&self) -> String {
        match self {
            Change::Add { member, .. } => format!("adding {}", member.name),
            Change::Remove { id } => format!("removing namenode {id}"),
            Change::Replace { old, member, .. } => format!("replacing namenode {old} by {}", member.name),
        }
    }
}

/// What has to be done, in this order.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Steps {
    /// This node is to go: another one has to lead first, and does the rest.
    pub hand_over: bool,
    /// Receives the log until it has nearly all of it.
    pub learn: Option<(u64, Member)>,
    /// The voters from then on; `None` leaves them.
    pub voters: Option<BTreeSet<u64>>,
    /// A learner that goes.
    pub forget: Option<u64>,
    /// A number that is used up.
    pub retire: Option<u64>,
}

/// What is known when a change is asked for.
pub struct Picture<'a> {
    pub standing: &'a Standing,
    /// Every number ever used, and whether it is used up.
    pub used: &'a BTreeMap<u64, bool>,
    pub reachable: &'a dyn Fn(u64) -> bool,
}

/// The steps of a change, from wherever an earlier attempt at it may have left the group; none if it is done.
///
/// # Errors
/// `InvalidArgument` for what may not be done; `Unavailable` while another change is being brought to its end.
pub fn plan(change: &Change, picture: &Picture<'_>) -> Result<Steps, WireError> {
    let standing = picture.standing;
    let [voters] = &standing.voters[..] else {
        return Err(WireError::new(ErrorKind::Unavailable, "a change of the group is being finished"));
    };
    let mut steps = Steps::default();
    let mut next = voters.clone();
    let (gone, new) = match change {
        Change::Add { id, member } => (None, Some((*id, member))),
        Change::Remove { id } => (Some(*id), None),
        Change::Replace { old, id, member } => (Some(*old), Some((*id, member))),
    };
    if let Some((id, member)) = new {
        check_newcomer(id, member, picture)?;
        if !voters.contains(&id) {
            steps.learn = Some((id, member.clone()));
            next.insert(id);
        }
    }
    if let Some(id) = gone {
        if new.is_some_and(|(new, _)| new == id) {
            return refuse("a namenode is not replaced by one with its own number");
        }
        if standing.members.contains_key(&id) {
            steps.hand_over = id == standing.node;
            next.remove(&id);
            steps.forget = (!voters.contains(&id)).then_some(id);
        } else if !picture.used.contains_key(&id) {
            return Err(WireError::new(ErrorKind::NotFound, format!("namenode {id} is no member of the group")));
        }
        steps.retire = (picture.used.get(&id) != Some(&true)).then_some(id);
    }
    if next == *voters {
        return Ok(steps);
    }
    check_majority(&next, &steps, picture)?;
    steps.voters = Some(next);
    Ok(steps)
}

fn refuse<T>(text: impl Into<String>) -> Result<T, WireError> {
    Err(WireError::new(ErrorKind::InvalidArgument, text))
}

fn check_newcomer(id: u64, member: &Member, picture: &Picture<'_>) -> Result<(), WireError> {
    let members = &picture.standing.members;
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    if member.name.is_empty() || member.name.len() > NODE_NAME_MAX || !member.name.bytes().all(plain) {
        return refuse(format!("a name has 1 to {NODE_NAME_MAX} letters, digits, dots, dashes or underscores"));
    }
    let Some(raft_addr) = member.raft_addr else {
        return refuse("the address of the raft plane is missing");
    };
    for addr in [member.addr, raft_addr] {
        if addr.ip().is_unspecified() || addr.port() == 0 {
            return refuse(format!("nobody can reach {addr}"));
        }
    }
    if let Some(known) = members.get(&id) {
        // An earlier attempt at the same change.
        return match known == member {
            true => Ok(()),
            false => refuse(format!("namenode {id} is a member already, as {} at {}", known.name, known.addr)),
        };
    }
    if picture.used.get(&id) == Some(&true) {
        let next = picture.used.keys().chain(members.keys()).max().map_or(1, |last| last + 1);
        return refuse(format!("number {id} was used before and is not given again; {next} is free"));
    }
    for (other, known) in members {
        if known.name == member.name {
            return refuse(format!("namenode {other} has the name {} already", known.name));
        }
        let theirs = [Some(known.addr), known.raft_addr];
        if theirs.contains(&Some(member.addr)) || theirs.contains(&Some(raft_addr)) {
            return refuse(format!("namenode {other} has one of these addresses already"));
        }
    }
    if members.len() >= NAMENODES_MAX {
        return refuse(format!("a group has at most {NAMENODES_MAX} namenodes"));
    }
    Ok(())
}

/// The group must be able to decide the change, and anything after it, with those that answer now.
fn check_majority(next: &BTreeSet<u64>, steps: &Steps, picture: &Picture<'_>) -> Result<(), WireError> {
    if next.is_empty() {
        return refuse("the last voting namenode cannot be removed");
    }
    let learning = steps.learn.as_ref().map(|(id, _)| *id);
    let answers = |id: &u64| *id == picture.standing.node || Some(*id) == learning || (picture.reachable)(*id);
    let silent: Vec<String> = next.iter().filter(|id| !answers(id)).map(u64::to_string).collect();
    if (next.len() - silent.len()) * 2 > next.len() {
        return Ok(());
    }
    refuse(format!(
        "of the {} namenodes left, {} would not answer ({}): no majority could be reached",
        next.len(),
        silent.len(),
        silent.join(", ")
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(id: u64) -> Member {
        let addr = |port: u64| format!("10.0.0.{id}:{port}").parse().unwrap();
        Member { addr: addr(8020), name: format!("nn{id}"), raft_addr: Some(addr(8030)) }
    }

    fn add(id: u64) -> Change {
        Change::Add { id, member: member(id) }
    }

    fn standing(voters: &[u64], learners: &[u64]) -> Standing {
        Standing {
            node: 1,
            leader: Some(1),
            members: voters.iter().chain(learners).map(|id| (*id, member(*id))).collect(),
            voters: vec![voters.iter().copied().collect()],
            ..Standing::default()
        }
    }

    /// The steps in a group where `dead` do not answer and the numbers of `retired` are used up.
    fn steps(change: &Change, standing: &Standing, dead: &[u64], retired: &[u64]) -> Result<Steps, ErrorKind> {
        let mut used: BTreeMap<u64, bool> = standing.members.keys().map(|id| (*id, false)).collect();
        used.extend(retired.iter().map(|id| (*id, true)));
        let picture = Picture { standing, used: &used, reachable: &|id| !dead.contains(&id) };
        plan(change, &picture).map_err(|error| error.kind)
    }

    const INVALID: Result<Steps, ErrorKind> = Err(ErrorKind::InvalidArgument);

    #[test]
    fn a_newcomer_learns_and_then_votes() {
        let done = steps(&add(4), &standing(&[1, 2, 3], &[]), &[], &[]).unwrap();
        assert_eq!(done.learn, Some((4, member(4))));
        assert_eq!(done.voters, Some([1, 2, 3, 4].into()));
        assert!(!done.hand_over && done.retire.is_none());
    }

    #[test]
    fn an_attempt_that_was_cut_off_is_taken_up_and_a_finished_one_is_done() {
        let learner = standing(&[1, 2, 3], &[4]);
        assert_eq!(steps(&add(4), &learner, &[], &[]), steps(&add(4), &standing(&[1, 2, 3], &[]), &[], &[]));
        assert_eq!(steps(&add(4), &standing(&[1, 2, 3, 4], &[]), &[], &[]), Ok(Steps::default()));
        assert_eq!(steps(&Change::Remove { id: 4 }, &standing(&[1, 2, 3], &[]), &[], &[4]), Ok(Steps::default()));
        // The voters were changed, and the leader died before the number was retired.
        let used = BTreeMap::from([(4, false)]);
        let standing = standing(&[1, 2, 3], &[]);
        let picture = Picture { standing: &standing, used: &used, reachable: &|_| true };
        let left = plan(&Change::Remove { id: 4 }, &picture).unwrap();
        assert_eq!(left, Steps { retire: Some(4), ..Steps::default() });
    }

    #[test]
    fn no_change_begins_while_another_is_half_done() {
        let mut joint = standing(&[1, 2, 3], &[]);
        joint.voters.push([1, 2].into());
        assert_eq!(steps(&add(4), &joint, &[], &[]), Err(ErrorKind::Unavailable));
    }

    #[test]
    fn numbers_names_and_addresses_are_not_given_twice() {
        let group = standing(&[1, 2, 3], &[]);
        assert_eq!(steps(&add(4), &group, &[], &[4]), INVALID);
        let other = |member| Change::Add { id: 4, member };
        assert_eq!(steps(&other(Member { name: "nn2".into(), ..member(4) }), &group, &[], &[]), INVALID);
        assert_eq!(steps(&other(Member { addr: member(2).addr, ..member(4) }), &group, &[], &[]), INVALID);
        assert_eq!(steps(&other(Member { raft_addr: Some(member(2).addr), ..member(4) }), &group, &[], &[]), INVALID);
        for name in ["", "a/b", "nn 4", &"x".repeat(65)] {
            assert_eq!(steps(&other(Member { name: name.into(), ..member(4) }), &group, &[], &[]), INVALID, "{name}");
        }
        assert_eq!(steps(&Change::Add { id: 2, member: member(5) }, &group, &[], &[]), INVALID);
        let full: Vec<u64> = (1..=9).collect();
        assert_eq!(steps(&add(10), &standing(&full, &[]), &[], &[]), INVALID);
    }

    #[test]
    fn whoever_is_left_must_have_a_majority_that_answers() {
        let three = standing(&[1, 2, 3], &[]);
        // Two of two would have to answer, and one does.
        assert_eq!(steps(&Change::Remove { id: 2 }, &three, &[3], &[]), INVALID);
        // The dead one itself may go.
        assert_eq!(steps(&Change::Remove { id: 3 }, &three, &[3], &[]).unwrap().voters, Some([1, 2].into()));
        // Three of four would have to answer: with one dead, three do.
        assert!(steps(&add(4), &three, &[3], &[]).is_ok());
        assert_eq!(steps(&add(4), &three, &[2, 3], &[]), INVALID);
        let replace = Change::Replace { old: 3, id: 4, member: member(4) };
        assert_eq!(steps(&replace, &three, &[3], &[]).unwrap().voters, Some([1, 2, 4].into()));
        assert_eq!(steps(&Change::Remove { id: 1 }, &standing(&[1], &[]), &[], &[]), INVALID);
    }

    #[test]
    fn a_leader_that_is_to_go_hands_over_first() {
        assert!(steps(&Change::Remove { id: 1 }, &standing(&[1, 2, 3], &[]), &[], &[]).unwrap().hand_over);
        let replace = Change::Replace { old: 1, id: 4, member: member(4) };
        assert!(steps(&replace, &standing(&[1, 2, 3], &[]), &[], &[]).unwrap().hand_over);
    }

    #[test]
    fn a_learner_is_forgotten_and_an_unknown_one_not_found() {
        let done = steps(&Change::Remove { id: 4 }, &standing(&[1, 2, 3], &[4]), &[2], &[]).unwrap();
        assert_eq!(done, Steps { forget: Some(4), retire: Some(4), ..Steps::default() });
        assert_eq!(steps(&Change::Remove { id: 7 }, &standing(&[1, 2, 3], &[]), &[], &[]), Err(ErrorKind::NotFound));
        let same = Change::Replace { old: 2, id: 2, member: member(2) };
        assert_eq!(steps(&same, &standing(&[1, 2, 3], &[]), &[], &[]), INVALID);
    }
}
