//! One batch being applied: typed rows over an overlay, the totals, the events, and a way back.

use dfs_proto::{ErrorKind, InodeId, WireError};

use crate::command::Event;
use crate::rows::{self, Config, InodeRow, Key, Row, Totals};
use crate::view::{Change, Fault, Mark, Overlay, Table, View};

/// Why a command was not done.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The state is unreadable: applying stops.
    Fault(Fault),
    /// The command is refused, and what it did so far is taken back.
    Refused(WireError),
}

impl From<Fault> for Failure {
    fn from(fault: Fault) -> Failure {
        Failure::Fault(fault)
    }
}

impl From<WireError> for Failure {
    fn from(error: WireError) -> Failure {
        Failure::Refused(error)
    }
}

/// A refusal as an error, for `ok_or_else` and `Err(..)?`.
pub(crate) fn refuse(kind: ErrorKind, message: impl Into<String>) -> Failure {
    Failure::Refused(WireError::new(kind, message))
}

pub(crate) struct Tx<'v> {
    rows: Overlay<'v>,
    /// `None` until genesis.
    pub config: Option<Config>,
    pub totals: Totals,
    /// The totals as the rows have them.
    stored_totals: Totals,
    events: Vec<Event>,
}

/// A moment to go back to.
pub(crate) struct SavePoint {
    mark: Mark,
    config: Option<Config>,
    totals: Totals,
    events: usize,
}

impl<'v> Tx<'v> {
    pub fn open(view: &'v dyn View) -> Result<Tx<'v>, Fault> {
        let totals = rows::totals(view)?;
        let config = rows::config(view)?;
        Ok(Tx { rows: Overlay::new(view), config, totals, stored_totals: totals, events: Vec::new() })
    }

    pub fn view(&self) -> &dyn View {
        &self.rows
    }

    pub fn get<R: Row>(&self, key: &Key<R>) -> Result<Option<R>, Fault> {
        rows::get(&self.rows, key)
    }

    pub fn put<R: Row>(&mut self, key: Key<R>, row: &R) -> Result<(), Fault> {
        let value = rows::encode(row)?;
        self.rows.put(R::TABLE, key.into_bytes(), value);
        Ok(())
    }

    pub fn delete<R: Row>(&mut self, key: Key<R>) {
        self.rows.delete(R::TABLE, key.into_bytes());
    }

    pub fn event(&mut self, event: Event) {
        self.events.push(event);
    }

    /// The configuration, of a cluster that exists.
    pub fn config(&self) -> Result<Config, Failure> {
        self.config.ok_or_else(|| refuse(ErrorKind::Unavailable, "the cluster has not been initialised"))
    }

    /// Does `work` wholly or not at all.
    pub fn attempt<T>(
        &mut self,
        work: impl FnOnce(&mut Tx<'v>) -> Result<T, Failure>,
    ) -> Result<Result<T, WireError>, Fault> {
        let before = self.save_point();
        match work(self) {
            Ok(done) => Ok(Ok(done)),
            Err(Failure::Refused(error)) => {
                self.roll_back(before);
                Ok(Err(error))
            }
            Err(Failure::Fault(fault)) => Err(fault),
        }
    }

    /// The command stands: there is no way back behind this moment. Returns the inodes whose rows it wrote.
    pub fn keep(&mut self) -> Vec<InodeId> {
        let mut changed: Vec<_> = self.rows.written(Table::Inodes).filter_map(InodeRow::inode_of_key).collect();
        changed.sort_unstable();
        changed.dedup();
        self.rows.forget_undo();
        changed
    }

    pub fn finish(mut self) -> Result<(Vec<Change>, Vec<Event>), Fault> {
        if self.totals != self.stored_totals {
            let totals = self.totals;
            self.put(Totals::key(), &totals)?;
        }
        Ok((self.rows.into_changes(), self.events))
    }

    fn save_point(&self) -> SavePoint {
        SavePoint { mark: self.rows.mark(), config: self.config, totals: self.totals, events: self.events.len() }
    }

    fn roll_back(&mut self, to: SavePoint) {
        self.rows.roll_back(to.mark);
        self.config = to.config;
        self.totals = to.totals;
        self.events.truncate(to.events);
    }
}
