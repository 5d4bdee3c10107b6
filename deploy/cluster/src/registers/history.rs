//! Whether what clients saw of a register can be explained by one order of events. Pure.
//!
//! A register holds one value. Every value is written at most once, which makes the question easy (Gibbons and
//! Korach, "Testing shared memories", 1997): the write of a value and all reads that returned it must have happened
//! without another write in between. Each value therefore has a *zone*, between the earliest end and the latest
//! begin of its operations. If the end comes first, the register must have held the value for the whole of that
//! time: a forward zone. Otherwise all of the value's operations overlap at some moment and can be placed there: a
//! backward zone. The history is linearizable if and only if
//!
//! * each read returns a value whose write had begun before the read ended;
//! * no two forward zones overlap;
//! * no backward zone lies within a forward zone.

use std::collections::BTreeMap;

/// Operations are ordered by a clock that all clients share: nanoseconds since the start of the run.
pub type Nanos = u64;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Action {
    /// Values are never written twice.
    Write(u64),
    Read(u64),
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Operation {
    pub action: Action,
    pub begin: Nanos,
    /// `None` for a write that was not acknowledged: it may take effect at any time, or never. A read that failed
    /// says nothing and is left out.
    pub end: Option<Nanos>,
}

/// What every register holds in the beginning.
pub const INITIAL: u64 = 0;

#[derive(Clone, Copy, Debug)]
struct Zone {
    value: u64,
    earliest_end: Nanos,
    latest_begin: Nanos,
}

impl Zone {
    fn is_forward(&self) -> bool {
        self.earliest_end < self.latest_begin
    }

    fn low(&self) -> Nanos {
        self.earliest_end.min(self.latest_begin)
    }

    fn high(&self) -> Nanos {
        self.earliest_end.max(self.latest_begin)
    }
}

/// Says why the history of one register cannot be put in order.
pub fn check(history: &[Operation]) -> Result<(), String> {
    let zones = zones(history)?;
    let (mut forward, backward): (Vec<Zone>, Vec<Zone>) = zones.into_iter().partition(Zone::is_forward);
    forward.sort_by_key(Zone::low);
    for pair in forward.windows(2) {
        if pair[1].low() < pair[0].high() {
            return Err(format!(
                "{} was seen after {}, and {} before the end of that: from {} to {} ns it held both",
                pair[1].value,
                pair[0].value,
                pair[0].value,
                pair[1].low(),
                pair[0].high().min(pair[1].high())
            ));
        }
    }
    for zone in &backward {
        let after = forward.partition_point(|other| other.low() < zone.low());
        // Forward zones do not overlap, so only the last one that began before can reach so far.
        if let Some(around) = after.checked_sub(1).map(|index| &forward[index])
            && zone.high() < around.high()
        {
            return Err(format!(
                "{} was written or read between {} and {} ns, when it held {} from {} to {} ns",
                zone.value,
                zone.low(),
                zone.high(),
                around.value,
                around.low(),
                around.high()
            ));
        }
    }
    Ok(())
}

fn zones(history: &[Operation]) -> Result<Vec<Zone>, String> {
    // The first value was there before everything.
    let mut writes = BTreeMap::from([(INITIAL, (0, Some(0)))]);
    for operation in history {
        if let Action::Write(value) = operation.action
            && writes.insert(value, (operation.begin, operation.end)).is_some()
        {
            return Err(format!("{value} was written twice: the history cannot be judged"));
        }
    }
    let mut zones: BTreeMap<u64, Zone> = BTreeMap::new();
    for (value, (begin, end)) in &writes {
        // Nobody saw a write that was not acknowledged: it need not have happened.
        if let Some(end) = end {
            zones.insert(*value, Zone { value: *value, earliest_end: *end, latest_begin: *begin });
        }
    }
    for operation in history {
        let (Action::Read(value), Some(end)) = (operation.action, operation.end) else { continue };
        let (written, _) = writes.get(&value).ok_or_else(|| format!("{value} was read and never written"))?;
        if end < *written {
            return Err(format!("{value} was read at {end} ns, before its write began at {written} ns"));
        }
        let zone = zones.entry(value).or_insert(Zone { value, earliest_end: end, latest_begin: *written });
        zone.earliest_end = zone.earliest_end.min(end);
        zone.latest_begin = zone.latest_begin.max(operation.begin);
    }
    Ok(zones.into_values().collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dice::Dice;

    fn write(value: u64, begin: Nanos, end: Nanos) -> Operation {
        Operation { action: Action::Write(value), begin, end: Some(end) }
    }

    fn unanswered(value: u64, begin: Nanos) -> Operation {
        Operation { action: Action::Write(value), begin, end: None }
    }

    fn read(value: u64, begin: Nanos, end: Nanos) -> Operation {
        Operation { action: Action::Read(value), begin, end: Some(end) }
    }

    #[test]
    fn one_after_the_other_is_in_order() {
        check(&[read(0, 1, 2), write(1, 3, 4), read(1, 5, 6), write(2, 7, 8), read(2, 9, 10)]).unwrap();
        check(&[]).unwrap();
    }

    #[test]
    fn a_read_of_an_older_value_after_the_new_one_was_acknowledged_is_refused() {
        let stale = [write(1, 1, 2), write(2, 3, 4), read(1, 5, 6)];
        check(&stale).unwrap_err();
        // The value of the beginning counts as well.
        check(&[write(1, 1, 2), read(0, 3, 4)]).unwrap_err();
    }

    #[test]
    fn a_reader_that_goes_back_is_refused_even_while_the_write_is_under_way() {
        let overlapping = [write(1, 1, 2), write(2, 3, 20)];
        check(&[&overlapping[..], &[read(1, 5, 6), read(2, 7, 8)]].concat()).unwrap();
        check(&[&overlapping[..], &[read(2, 5, 6), read(1, 7, 8)]].concat()).unwrap_err();
    }

    #[test]
    fn concurrent_operations_may_be_in_either_order() {
        check(&[write(1, 1, 10), write(2, 1, 10), read(1, 11, 12)]).unwrap();
        check(&[write(1, 1, 10), write(2, 1, 10), read(2, 11, 12)]).unwrap();
        check(&[write(1, 1, 10), write(2, 1, 10), read(2, 11, 12), read(1, 13, 14)]).unwrap_err();
    }

    #[test]
    fn a_write_without_an_answer_happens_late_or_never() {
        check(&[write(1, 1, 2), unanswered(2, 3), read(1, 10, 11)]).unwrap();
        check(&[write(1, 1, 2), unanswered(2, 3), read(1, 10, 11), read(2, 12, 13)]).unwrap();
        check(&[write(1, 1, 2), unanswered(2, 3), read(2, 10, 11), read(1, 12, 13)]).unwrap_err();
    }

    #[test]
    fn values_from_nowhere_and_from_the_future_are_refused() {
        check(&[read(7, 1, 2)]).unwrap_err();
        check(&[read(7, 1, 2), write(7, 3, 4)]).unwrap_err();
        check(&[write(7, 1, 2), write(7, 3, 4)]).unwrap_err();
    }

    /// Histories made by a register, where each operation takes effect at some moment of its time.
    fn honest(dice: &mut Dice) -> Vec<Operation> {
        let mut moments: Vec<(Nanos, Nanos, Nanos)> = (0..12)
            .map(|_| {
                let begin = dice.between(1, 60);
                let effect = begin + dice.between(0, 9);
                (effect, begin, effect + dice.between(1, 9))
            })
            .collect();
        moments.sort_unstable();
        let mut held = INITIAL;
        let numbered = moments.into_iter().zip(1..);
        numbered
            .map(|((_, begin, end), number)| {
                if dice.one_in(2) {
                    held = number;
                    write(number, begin, end)
                } else {
                    read(held, begin, end)
                }
            })
            .collect()
    }

    /// Tries every order: slow, and hard to get wrong.
    fn can_be_ordered(left: &[Operation], held: u64) -> bool {
        let earliest_end = left.iter().map(|operation| operation.end.unwrap_or(Nanos::MAX)).min();
        let Some(earliest_end) = earliest_end else { return true };
        left.iter().enumerate().any(|(index, next)| {
            let next_held = match next.action {
                Action::Write(value) => value,
                Action::Read(value) if value == held => held,
                Action::Read(_) => return false,
            };
            let mut rest = left.to_vec();
            rest.remove(index);
            // Nothing that has ended before it began may come later.
            next.begin <= earliest_end && can_be_ordered(&rest, next_held)
        })
    }

    #[test]
    fn it_agrees_with_trying_every_order() {
        let mut dice = Dice::new(4);
        let mut refused = 0;
        for _ in 0..2000 {
            let mut history = honest(&mut dice);
            check(&history).unwrap_or_else(|why| panic!("{why}: {history:?}"));
            history.truncate(7);
            // One read returns something else.
            let values: Vec<u64> = (0..=7).collect();
            let read = history.iter_mut().find(|operation| matches!(operation.action, Action::Read(_)));
            if let Some(read) = read {
                read.action = Action::Read(*dice.pick(&values));
            }
            let expected = can_be_ordered(&history, INITIAL);
            assert_eq!(check(&history).is_ok(), expected, "{history:?}: {:?}", check(&history));
            refused += usize::from(!expected);
        }
        assert!(refused > 200, "only {refused} histories were wrong");
    }
}
