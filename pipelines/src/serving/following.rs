//! Serves the version that the registry names, whoever promoted it: the trainer of another process, or
//! `adapters promote`.

use std::sync::Arc;
use std::time::{Duration, Instant};

use speechverse::registry::{ModelIdentity, Registry, RegistryError};
use speechverse_actors::current::{CurrentAdapter, Swap};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::Common;

/// How often the registry's pointer is read.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);
/// How long a version that was refused is left alone: to look at it means to read and hash its files.
const REFUSED_PAUSE: Duration = Duration::from_secs(60);

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
    /// It names the version that serves, or one that was refused a moment ago.
    Same,
    /// The version that it names, if it can be told, cannot be served.
    Refused(Option<String>, RegistryError),
}

/// The version that was refused last, and when; none where the pointer itself cannot be read.
type Refused = Option<(Option<String>, Instant)>;

impl Follower {
    async fn follow(self) {
        let (mut refused, mut said): (Refused, Option<String>) = (None, None);
        loop {
            tokio::time::sleep(LOOK_INTERVAL).await;
            let (follower, left_alone) = (self.clone(), refused.clone());
            match tokio::task::spawn_blocking(move || follower.look(left_alone)).await {
                Ok(Ok(Swap { from, to })) => {
                    info!(
                        from,
                        to, "the registry names another version, new requests get it"
                    );
                    (refused, said) = (None, None);
                }
                Ok(Err(Stays::Same)) => {}
                Ok(Err(Stays::Refused(version, error))) => {
                    refused = Some((version, Instant::now()));
                    let reason = error.to_string();
                    if said.as_ref() != Some(&reason) {
                        warn!(
                            reason,
                            "the version that the registry names is not served, the one before goes on"
                        );
                        said = Some(reason);
                    }
                }
                Err(panic) => warn!(%panic, "a look at the registry failed"),
            }
        }
    }

    /// Reads the pointer, and serves the version that it names; reads and hashes that version.
    fn look(&self, refused: Refused) -> Result<Swap, Stays> {
        let pointer = self.registry.current();
        let named = pointer
            .map_err(|error| Stays::Refused(None, error))?
            .ok_or(Stays::Same)?;
        let was_refused = refused.is_some_and(|(version, when)| {
            version.as_ref() == Some(&named) && when.elapsed() < REFUSED_PAUSE
        });
        if was_refused || named == self.current.get().version() {
            return Err(Stays::Same);
        }
        let serve = || {
            let loaded = self.registry.load(&named)?;
            loaded.check_models(&self.identities.0, &self.identities.1)?;
            Ok(loaded.adapter)
        };
        let adapter = serve().map_err(|error| Stays::Refused(Some(named.clone()), error))?;
        self.current.change(|| {
            // An order to this process may have moved both meanwhile.
            let stands = (self.registry.current()).is_ok_and(|current| current.as_ref() == Some(&named));
            match stands && self.current.get().version() != named {
                true => Ok(adapter),
                false => Err(Stays::Same),
            }
        })
    }
}
