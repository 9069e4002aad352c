//! Serves the version that the registry names, whoever promoted it: the trainer of another process, or
//! `adapters promote`.

use std::sync::Arc;
use std::time::Duration;

use speechverse::registry::{ModelIdentity, Registry, RegistryError};
use speechverse_actors::current::{CurrentAdapter, Swap};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::Common;

/// How often the registry's pointer is read.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// Follows the registry's pointer until `stop`, unless the settings name a version.
pub(super) fn start(common: &Common, stop: CancellationToken) {
    if !common.settings.adapters.version.is_empty() {
        return;
    }
    let follower = Follower {
        registry: common.registry.clone(),
        identities: Arc::clone(&common.identities),
        current: common.current.clone(),
    };
    tokio::spawn(stop.run_until_cancelled_owned(follower.follow()));
}

#[derive(Clone)]
struct Follower {
    registry: Registry,
    identities: Arc<(ModelIdentity, ModelIdentity)>,
    current: CurrentAdapter,
}

/// Why a look at the registry changed nothing.
#[derive(Debug)]
enum Stays {
    /// It names the version that serves.
    Same,
    /// The version that it names cannot be served.
    Refused(RegistryError),
}

impl From<RegistryError> for Stays {
    fn from(error: RegistryError) -> Self {
        Self::Refused(error)
    }
}

impl Follower {
    async fn follow(self) {
        let mut refused = None;
        loop {
            tokio::time::sleep(LOOK_INTERVAL).await;
            let follower = self.clone();
            let reason = match tokio::task::spawn_blocking(move || follower.look()).await {
                Ok(Ok(Swap { from, to })) => {
                    info!(
                        from,
                        to, "the registry names another version, new requests get it"
                    );
                    None
                }
                Ok(Err(Stays::Same)) => None,
                Ok(Err(Stays::Refused(error))) => Some(error.to_string()),
                Err(panic) => Some(format!("a fault of this program: {panic}")),
            };
            if let Some(reason) = &reason
                && refused.as_ref() != Some(reason)
            {
                warn!(
                    reason,
                    "the version that the registry names is not served, the one before goes on"
                );
            }
            refused = reason;
        }
    }

    /// Reads the pointer, and serves the version that it names; reads and hashes that version.
    fn look(&self) -> Result<Swap, Stays> {
        let named = self.registry.current()?.ok_or(Stays::Same)?;
        if named == self.current.get().version() {
            return Err(Stays::Same);
        }
        let loaded = self.registry.load(&named)?;
        loaded.check_models(&self.identities.0, &self.identities.1)?;
        self.current.change(|| {
            // An order to this process may have moved both meanwhile.
            let stands = self.registry.current()?.as_ref() == Some(&named);
            match stands && self.current.get().version() != named {
                true => Ok(loaded.adapter),
                false => Err(Stays::Same),
            }
        })
    }
}
