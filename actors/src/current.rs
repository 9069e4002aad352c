//! `CurrentAdapter`: the version that new utterances are pinned to. A swap changes what comes after it, never what is
//! under way.

use std::sync::{Arc, PoisonError, RwLock};

use speechverse::models::adapter::AdapterSnapshot;
use speechverse::telemetry::metrics;

/// The adapter version that new utterances are pinned to, shared by the ingest, the trainer and the supervisor.
#[derive(Clone, Debug)]
pub struct CurrentAdapter(Arc<RwLock<AdapterSnapshot>>);

impl CurrentAdapter {
    /// Begins with `snapshot`.
    pub fn new(snapshot: AdapterSnapshot) -> Self {
        metrics::adapter_serving(snapshot.version(), None);
        Self(Arc::new(RwLock::new(snapshot)))
    }

    /// The version of this moment; cheap.
    pub fn get(&self) -> AdapterSnapshot {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Pins new utterances to `snapshot` from now on; returns the version until now.
    pub fn swap(&self, snapshot: AdapterSnapshot) -> AdapterSnapshot {
        let mut current = self.0.write().unwrap_or_else(PoisonError::into_inner);
        metrics::adapter_serving(snapshot.version(), Some(current.version()));
        std::mem::replace(&mut *current, snapshot)
    }
}
