//! Exactly once: what a request was answered is remembered in the state until the client has it.

use dfs_proto::msg::meta::OpReply;
use dfs_proto::{ErrorKind, RequestId, WireError};

use crate::rows::{self, ReplyRow, SessionRow};
use crate::tx::Tx;
use crate::view::Fault;

/// Requests that a session may have without acknowledging the first of them. What fills it is a
/// client that never raises `acked_below`; the bound keeps it from filling the state with replies.
const UNACKED_MAX: u64 = 65_536;

pub(crate) enum Request {
    /// Not seen before: do it, then `remember`.
    New,
    /// Already answered, or not to be done at all.
    Answered(Result<OpReply, WireError>),
}

/// Looks a request up, and forgets the replies that its client says it has.
pub(crate) fn admit(tx: &mut Tx<'_>, id: RequestId, acked_below: u64) -> Result<Request, Fault> {
    let refused = |kind, message: &str| Ok(Request::Answered(Err(WireError::new(kind, message))));
    let Some(mut session) = rows::session(tx.view(), id.session)? else {
        return refused(ErrorKind::SessionExpired, "the session has ended");
    };
    if let Some(reply) = tx.get(&ReplyRow::key(id.session, id.number))? {
        return Ok(Request::Answered(reply.outcome));
    }
    if id.number < session.acked_below {
        return refused(ErrorKind::Malformed, "this request was answered and its answer acknowledged");
    }
    if acked_below > id.number {
        return refused(ErrorKind::Malformed, "a request cannot be acknowledged before it is answered");
    }
    if acked_below > session.acked_below {
        forget(tx, id, &mut session, acked_below)?;
    }
    if id.number - session.acked_below >= UNACKED_MAX {
        return refused(ErrorKind::Malformed, "too many requests of this session are not acknowledged");
    }
    Ok(Request::New)
}

/// Remembers the answer, a refusal as well: a late duplicate must not do what the first was refused.
pub(crate) fn remember(tx: &mut Tx<'_>, id: RequestId, outcome: &Result<OpReply, WireError>) -> Result<(), Fault> {
    // The request may have ended its own session.
    if tx.get(&SessionRow::key(id.session))?.is_none() {
        return Ok(());
    }
    tx.put(ReplyRow::key(id.session, id.number), &ReplyRow { outcome: outcome.clone() })
}

fn forget(tx: &mut Tx<'_>, id: RequestId, session: &mut SessionRow, below: u64) -> Result<(), Fault> {
    for number in rows::replies_below(tx.view(), id.session, session.acked_below, below)? {
        tx.delete(ReplyRow::key(id.session, number));
    }
    session.acked_below = below;
    tx.put(SessionRow::key(id.session), session)
}

#[cfg(test)]
mod tests {
    use dfs_proto::msg::meta::Op;
    use dfs_proto::{Caller, InodeId, SessionId};

    use crate::command::{Body, Outcome};
    use crate::rows;
    use crate::testing::{Rig, kind_of, mkdir};
    use dfs_proto::ErrorKind;

    fn client(rig: &Rig, number: u64, acked_below: u64, op: Op) -> Body {
        let id = dfs_proto::RequestId { session: rig.session, number };
        Body::Client { id, acked_below, caller: Caller::ROOT, op, placement: Vec::new() }
    }

    fn error(outcome: Outcome) -> Option<ErrorKind> {
        outcome.err().map(|error| error.kind)
    }

    #[test]
    fn a_retry_is_answered_and_not_done_twice() {
        let mut rig = Rig::new();
        let first = rig.apply(client(&rig, 1, 1, mkdir(InodeId::ROOT, "a")));
        let before = rig.state.clone();
        let again = rig.apply(client(&rig, 1, 1, mkdir(InodeId::ROOT, "a")));
        assert!(first.is_ok());
        assert_eq!(first, again);
        assert_eq!(rig.state, before);
    }

    #[test]
    fn a_retry_in_the_same_batch_is_answered_too() {
        let mut rig = Rig::new();
        let body = client(&rig, 1, 1, mkdir(InodeId::ROOT, "a"));
        let outcomes = rig.apply_batch(vec![body.clone(), body]);
        assert!(outcomes[0].is_ok());
        assert_eq!(outcomes[0], outcomes[1]);
    }

    #[test]
    fn a_refusal_stays_a_refusal_for_its_late_duplicate() {
        let mut rig = Rig::new();
        rig.mkdir(InodeId::ROOT, "a");
        let make = client(&rig, 100, 1, mkdir(InodeId::ROOT, "a"));
        assert_eq!(error(rig.apply(make.clone())), Some(ErrorKind::Exists));
        rig.rmdir(InodeId::ROOT, "a").unwrap();
        assert_eq!(error(rig.apply(make)), Some(ErrorKind::Exists));
    }

    #[test]
    fn acknowledged_replies_are_forgotten_and_their_requests_never_done_again() {
        let mut rig = Rig::new();
        for number in 1..=5 {
            rig.apply(client(&rig, number, 1, mkdir(InodeId::ROOT, &format!("d{number}")))).unwrap();
        }
        rig.apply(client(&rig, 6, 4, mkdir(InodeId::ROOT, "d6"))).unwrap();
        assert_eq!(rows::replies_below(&rig.state, rig.session, 0, 99).unwrap(), [4, 5, 6]);
        let late = rig.apply(client(&rig, 2, 1, mkdir(InodeId::ROOT, "late")));
        assert_eq!(error(late), Some(ErrorKind::Malformed));
        assert_eq!(kind_of(rig.lookup(InodeId::ROOT, "late")), Some(ErrorKind::NotFound));
        // Out of order but not acknowledged is in order.
        assert!(rig.apply(client(&rig, 9, 4, mkdir(InodeId::ROOT, "d9"))).is_ok());
        assert!(rig.apply(client(&rig, 8, 4, mkdir(InodeId::ROOT, "d8"))).is_ok());
    }

    #[test]
    fn nonsense_numbers_are_refused() {
        let mut rig = Rig::new();
        let early = rig.apply(client(&rig, 3, 4, mkdir(InodeId::ROOT, "a")));
        assert_eq!(error(early), Some(ErrorKind::Malformed));
        let far = rig.apply(client(&rig, 1 << 40, 1, mkdir(InodeId::ROOT, "a")));
        assert_eq!(error(far), Some(ErrorKind::Malformed));
        let mut foreign = client(&rig, 1, 1, mkdir(InodeId::ROOT, "a"));
        if let Body::Client { id, .. } = &mut foreign {
            id.session = SessionId(77);
        }
        assert_eq!(error(rig.apply(foreign)), Some(ErrorKind::SessionExpired));
    }
}
