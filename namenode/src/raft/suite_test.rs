//! openraft's own suite over our log and state.

use std::sync::Arc;

use openraft::testing::{StoreBuilder, Suite};
use tokio::sync::mpsc;

use super::clock::Clock;
use super::log_store::LogStore;
use super::snapshot::Snapshots;
use super::state_machine::StateMachine;
use super::types::{StorageError, TypeConfig};
use crate::fail_stop::FailStop;
use crate::store::log::LogDb;
use crate::store::state::StateStore;

struct Builder;

impl StoreBuilder<TypeConfig, LogStore, StateMachine, tempfile::TempDir> for Builder {
    async fn build(&self) -> Result<(tempfile::TempDir, LogStore, StateMachine), StorageError> {
        let dir = tempfile::tempdir().unwrap();
        let fail = FailStop::default();
        let log = LogStore::open(9, LogDb::open(&dir.path().join("log")).unwrap(), fail.clone()).unwrap();
        let state = Arc::new(StateStore::open(&dir.path().join("state")).unwrap());
        let snapshots = Snapshots::open(dir.path()).unwrap();
        let machine =
            StateMachine::new(state, log.disk(), snapshots, Clock::default(), mpsc::channel(1).0, Arc::default(), fail)
                .unwrap();
        Ok((dir, log, machine))
    }
}

#[test]
fn log_and_state_machine_keep_every_promise_that_openraft_tests() {
    Suite::test_all(Builder).unwrap();
}
