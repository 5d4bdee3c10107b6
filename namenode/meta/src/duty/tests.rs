use dfs_proto::InodeId;

use super::*;
use crate::testing::{NODES, Rig};

const NOW: Timestamp = Timestamp { secs: 5000, nanos: 600_000_000 };

fn nodes(rig: &Rig, dead: &[NodeId]) -> Vec<NodeView> {
    let duties = rows::duties(&rig.state).unwrap();
    let view = |node: &NodeId| NodeView {
        node: *node,
        liveness: if dead.contains(node) { Liveness::Dead } else { Liveness::Live },
        since_ms: 0,
        free_bytes: 1 << 30,
        total_bytes: 1 << 31,
        writable: !duties.contains_key(node),
        excused: false,
        scanned: true,
    };
    NODES.iter().map(view).collect()
}

fn asked(rig: &Rig, change: DutyChange, dead: &[NodeId]) -> Result<DutyPlan, WireError> {
    plan(&rig.state, NODES[0], change, &nodes(rig, dead), &|_, _| false, NOW).unwrap()
}

fn take(rig: &mut Rig, plan: &DutyPlan) {
    rig.apply(Body::SetDuty { node: NODES[0], before: plan.before, after: plan.after }).unwrap();
}

#[test]
fn a_plan_counts_what_hangs_on_the_node() {
    let mut rig = Rig::new();
    rig.write_new(InodeId::ROOT, "a", 100);
    rig.allocate(1);
    let plan = asked(&rig, DutyChange::Decommission, &[]).unwrap();
    assert_eq!((plan.chunks, plan.bytes, plan.open, plan.stuck, plan.lost), (2, 100, 1, 0, 0));
    assert_eq!(plan.after, Duty::Decommissioning { since: NOW, chunks: 2, bytes: 100 });
    assert_eq!(plan.room_bytes, 3 << 30);
    // With the fourth node dead there are two left for three copies.
    assert_eq!(asked(&rig, DutyChange::Decommission, &NODES[3..]).unwrap().stuck, 2);
}

#[test]
fn what_would_be_lost_is_named() {
    let mut rig = Rig::new();
    rig.write_new(InodeId::ROOT, "precious", 100);
    let plan = asked(&rig, DutyChange::Remove, &NODES[..3]).unwrap();
    assert_eq!((plan.lost, plan.lost_files), (1, vec!["/precious".to_owned()]));
    assert_eq!(asked(&rig, DutyChange::Remove, &NODES[..2]).unwrap().one_copy, 1);
    assert_eq!(asked(&rig, DutyChange::Remove, &NODES[..1]).unwrap().lost, 0);
}

#[test]
fn only_a_node_that_is_empty_or_dead_may_be_removed() {
    let mut rig = Rig::new();
    assert_eq!(asked(&rig, DutyChange::Remove, &[]).unwrap_err().kind, ErrorKind::InvalidArgument);
    let leave = asked(&rig, DutyChange::Decommission, &[]).unwrap();
    take(&mut rig, &leave);
    let mut bodies = due(&rig.state, NOW).unwrap();
    rig.apply(bodies.remove(0)).unwrap();
    let remove = asked(&rig, DutyChange::Remove, &[]).unwrap();
    assert_eq!(remove.after, Duty::Removed { since: NOW });
    take(&mut rig, &remove);
    assert_eq!(asked(&rig, DutyChange::Recommission, &[]).unwrap_err().kind, ErrorKind::NotFound);
}

#[test]
fn asking_twice_does_not_begin_again_and_cancel_brings_back() {
    let mut rig = Rig::new();
    let leave = asked(&rig, DutyChange::Decommission, &[]).unwrap();
    take(&mut rig, &leave);
    let again = asked(&rig, DutyChange::Decommission, &[]).unwrap();
    assert_eq!((again.before, again.after), (leave.after, leave.after));
    let back = asked(&rig, DutyChange::Recommission, &[]).unwrap();
    take(&mut rig, &back);
    assert_eq!(rows::duty(&rig.state, NODES[0]).unwrap(), Duty::Serving);
}

#[test]
fn a_maintenance_ends_by_itself_and_not_before_its_time() {
    let mut rig = Rig::new();
    for bad in [0, MAINTENANCE_MAX_MS + 1] {
        assert!(asked(&rig, DutyChange::Maintenance { for_ms: bad }, &[]).is_err());
    }
    let pause = asked(&rig, DutyChange::Maintenance { for_ms: 1500 }, &[]).unwrap();
    let until = Timestamp { secs: 5002, nanos: 100_000_000 };
    assert_eq!(pause.after, Duty::Maintenance { until });
    take(&mut rig, &pause);
    assert!(due(&rig.state, NOW).unwrap().is_empty());
    let [Body::SetDuty { after: Duty::Serving, .. }] = due(&rig.state, until).unwrap()[..] else {
        panic!("not over");
    };
}

#[test]
fn writers_on_a_leaving_node_are_found_through_their_sessions() {
    let mut rig = Rig::new();
    let chunk = rig.allocate(1)[0];
    assert!(open_on(&rig.state, &leaving(&rows::duties(&rig.state).unwrap()), 9).unwrap().is_empty());
    let leave = asked(&rig, DutyChange::Decommission, &[]).unwrap();
    take(&mut rig, &leave);
    let found = open_on(&rig.state, &leaving(&rows::duties(&rig.state).unwrap()), 9).unwrap();
    assert_eq!(found.iter().map(|(node, chunk, _)| (*node, *chunk)).collect::<Vec<_>>(), [(NODES[0], chunk)]);
    assert_eq!(drain(&rig.state, NODES[0], &leave.after).unwrap(), Some(Drain { chunks: 1, bytes: 0, open: 1 }));
}
