use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;

use crate::endpoint::{Connection, Endpoint, Target};
use crate::error::RpcError;

/// One connection per target. Whoever finds none dials; others who want it meanwhile wait for that dial.
#[derive(Clone)]
pub struct Pool {
    endpoint: Endpoint,
    /// Bounded by the number of nodes there are; closed connections are replaced in place.
    slots: Arc<Mutex<HashMap<Target, Arc<Slot>>>>,
}

#[derive(Default)]
struct Slot {
    connection: Mutex<Option<Connection>>,
    /// Held while dialling.
    dialling: tokio::sync::Mutex<()>,
}

impl Slot {
    fn usable(&self) -> Option<Connection> {
        self.connection.lock().as_ref().filter(|connection| !connection.is_closed()).cloned()
    }
}

impl Pool {
    pub fn new(endpoint: Endpoint) -> Pool {
        Pool { endpoint, slots: Arc::default() }
    }

    pub fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// The connection to `target`, dialled if there is none that lives.
    pub async fn get(&self, target: &Target) -> Result<Connection, RpcError> {
        let slot = self.slots.lock().entry(*target).or_default().clone();
        if let Some(connection) = slot.usable() {
            return Ok(connection);
        }
        let _dialling = slot.dialling.lock().await;
        if let Some(connection) = slot.usable() {
            return Ok(connection);
        }
        let connection = self.endpoint.connect(target).await?;
        *slot.connection.lock() = Some(connection.clone());
        Ok(connection)
    }

    /// Drops the connection to a target that does not answer: the next `get` dials anew.
    pub fn forget(&self, target: &Target) {
        let slot = self.slots.lock().remove(target);
        if let Some(connection) = slot.and_then(|slot| slot.connection.lock().take()) {
            connection.close();
        }
    }
}
