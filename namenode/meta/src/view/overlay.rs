//! Changes laid over a view, so that a later command of a batch sees what an earlier one did.

use std::collections::BTreeMap;
use std::ops::Bound;

use super::{Change, Fault, Table, View};

/// A view with changes over it. Changes made after a [`Mark`] can be taken back, so that a command
/// that is refused half way leaves nothing behind.
pub struct Overlay<'v> {
    base: &'v dyn View,
    /// One map per table, by `Table as usize`. `None` hides a row of `base`.
    tables: Vec<BTreeMap<Vec<u8>, Option<Vec<u8>>>>,
    /// What each write since the last `forget_undo` replaced in `tables`.
    undo: Vec<Undo>,
}

/// How far the undo list had grown at some moment.
#[derive(Clone, Copy, Debug)]
pub struct Mark(usize);

struct Undo {
    table: Table,
    key: Vec<u8>,
    /// The entry in the overlay's map before the write; the outer `None` says there was none.
    before: Option<Option<Vec<u8>>>,
}

impl<'v> Overlay<'v> {
    pub fn new(base: &'v dyn View) -> Overlay<'v> {
        Overlay { base, tables: vec![BTreeMap::new(); Table::ALL.len()], undo: Vec::new() }
    }

    pub fn put(&mut self, table: Table, key: Vec<u8>, value: Vec<u8>) {
        self.set(table, key, Some(value));
    }

    pub fn delete(&mut self, table: Table, key: Vec<u8>) {
        self.set(table, key, None);
    }

    pub fn mark(&self) -> Mark {
        Mark(self.undo.len())
    }

    /// Takes back every write since `mark`.
    pub fn roll_back(&mut self, mark: Mark) {
        while self.undo.len() > mark.0 {
            let Some(Undo { table, key, before }) = self.undo.pop() else { break };
            let rows = &mut self.tables[table as usize];
            match before {
                Some(entry) => rows.insert(key, entry),
                None => rows.remove(&key),
            };
        }
    }

    /// The keys of a table that were written since the last `forget_undo`, in order of time.
    pub fn written(&self, table: Table) -> impl Iterator<Item = &[u8]> {
        self.undo.iter().filter(move |undo| undo.table == table).map(|undo| undo.key.as_slice())
    }

    /// Makes everything so far permanent: earlier marks may no longer be rolled back to.
    pub fn forget_undo(&mut self) {
        self.undo.clear();
    }

    /// The net result, one change per key, by table and key.
    pub fn into_changes(self) -> Vec<Change> {
        let tables = Table::ALL.into_iter().zip(self.tables);
        tables
            .flat_map(|(table, rows)| rows.into_iter().map(move |(key, value)| Change { table, key, value }))
            .collect()
    }

    fn set(&mut self, table: Table, key: Vec<u8>, value: Option<Vec<u8>>) {
        let before = self.tables[table as usize].insert(key.clone(), value);
        self.undo.push(Undo { table, key, before });
    }
}

impl View for Overlay<'_> {
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, Fault> {
        match self.tables[table as usize].get(key) {
            Some(entry) => Ok(entry.clone()),
            None => self.base.get(table, key),
        }
    }

    fn scan(
        &self,
        table: Table,
        start: &[u8],
        end: &[u8],
        visit: &mut dyn FnMut(&[u8], &[u8]) -> bool,
    ) -> Result<(), Fault> {
        if start >= end {
            return Ok(());
        }
        let over = self.tables[table as usize].range::<[u8], _>(range(start, end));
        merge(over, |upper, key| upper < key, visit, |visit| self.base.scan(table, start, end, visit))
    }

    fn scan_back(
        &self,
        table: Table,
        start: &[u8],
        end: &[u8],
        visit: &mut dyn FnMut(&[u8], &[u8]) -> bool,
    ) -> Result<(), Fault> {
        if start >= end {
            return Ok(());
        }
        let over = self.tables[table as usize].range::<[u8], _>(range(start, end)).rev();
        merge(over, |upper, key| upper > key, visit, |visit| self.base.scan_back(table, start, end, visit))
    }
}

fn range<'k>(start: &'k [u8], end: &'k [u8]) -> (Bound<&'k [u8]>, Bound<&'k [u8]>) {
    (Bound::Included(start), Bound::Excluded(end))
}

/// Visits the rows of the base, which `scan` hands on, together with those laid over them. `precedes`
/// is the order in which both come.
fn merge<'r>(
    over: impl Iterator<Item = (&'r Vec<u8>, &'r Option<Vec<u8>>)>,
    precedes: impl Fn(&[u8], &[u8]) -> bool,
    visit: &mut dyn FnMut(&[u8], &[u8]) -> bool,
    scan: impl FnOnce(&mut dyn FnMut(&[u8], &[u8]) -> bool) -> Result<(), Fault>,
) -> Result<(), Fault> {
    let mut over = over.peekable();
    let mut stopped = false;

    scan(&mut |key, value| {
        while let Some((upper, entry)) = over.next_if(|(upper, _)| precedes(upper.as_slice(), key)) {
            if entry.as_ref().is_some_and(|value| !visit(upper, value)) {
                stopped = true;
                return false;
            }
        }
        let goes_on = match over.next_if(|(upper, _)| upper.as_slice() == key) {
            Some((_, Some(value))) => visit(key, value),
            Some((_, None)) => true,
            None => visit(key, value),
        };
        stopped = !goes_on;
        goes_on
    })?;

    for (key, entry) in over {
        if stopped {
            break;
        }
        stopped = entry.as_ref().is_some_and(|value| !visit(key, value));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::view::MemoryView;

    const T: Table = Table::Inodes;

    fn seen(view: &dyn View, stop_after: usize) -> Vec<(Vec<u8>, Vec<u8>)> {
        let mut rows = Vec::new();
        view.scan(T, b"a", b"z", &mut |key, value| {
            rows.push((key.to_vec(), value.to_vec()));
            rows.len() < stop_after
        })
        .unwrap();
        rows
    }

    fn base() -> MemoryView {
        let mut base = MemoryView::new();
        let put = |key: &[u8]| Change { table: T, key: key.to_vec(), value: Some(b"old".to_vec()) };
        base.write(vec![put(b"b"), put(b"d"), put(b"f")]);
        base
    }

    #[test]
    fn a_scan_sees_written_rows_in_order_and_no_deleted_ones() {
        let base = base();
        let mut over = Overlay::new(&base);
        over.put(T, b"a".to_vec(), b"new".to_vec());
        over.put(T, b"d".to_vec(), b"new".to_vec());
        over.delete(T, b"b".to_vec());
        over.put(T, b"x".to_vec(), b"new".to_vec());
        let keys: Vec<_> = seen(&over, 99).into_iter().map(|(key, value)| (key[0], value[0])).collect();
        assert_eq!(keys, [(b'a', b'n'), (b'd', b'n'), (b'f', b'o'), (b'x', b'n')]);
    }

    #[test]
    fn a_scan_backwards_sees_the_same_rows_the_other_way_round() {
        let base = base();
        let mut over = Overlay::new(&base);
        over.put(T, b"a".to_vec(), b"new".to_vec());
        over.put(T, b"d".to_vec(), b"new".to_vec());
        over.delete(T, b"b".to_vec());
        over.put(T, b"x".to_vec(), b"new".to_vec());
        let mut forwards = seen(&over, 99);
        forwards.reverse();
        for count in 1..=4 {
            let mut rows = Vec::new();
            over.scan_back(T, b"a", b"z", &mut |key, value| {
                rows.push((key.to_vec(), value.to_vec()));
                rows.len() < count
            })
            .unwrap();
            assert_eq!(rows, forwards[..count]);
        }
    }

    #[test]
    fn a_scan_stops_where_the_visitor_says() {
        let base = base();
        let mut over = Overlay::new(&base);
        over.put(T, b"c".to_vec(), b"new".to_vec());
        for count in 1..=4 {
            assert_eq!(seen(&over, count).len(), count);
        }
    }

    #[test]
    fn rolling_back_restores_every_layer() {
        let base = base();
        let mut over = Overlay::new(&base);
        over.put(T, b"b".to_vec(), b"first".to_vec());
        let before = seen(&over, 99);
        let mark = over.mark();
        over.delete(T, b"b".to_vec());
        over.delete(T, b"d".to_vec());
        over.put(T, b"e".to_vec(), b"x".to_vec());
        over.put(T, b"b".to_vec(), b"y".to_vec());
        over.roll_back(mark);
        assert_eq!(seen(&over, 99), before);
        assert_eq!(over.into_changes().len(), 1);
    }
}
