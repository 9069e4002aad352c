//! `Supervisor`: the parent of all stages. It has no work of its own; a stage that fails is built anew by it.

use kameo::error::Infallible;
use kameo::prelude::*;
use kameo::supervision::SupervisionStrategy;

/// The parent of all stages.
pub struct Supervisor;

impl Actor for Supervisor {
    type Args = ();
    type Error = Infallible;

    /// Stages share nothing but messages, so one that fails is restarted alone.
    fn supervision_strategy() -> SupervisionStrategy {
        SupervisionStrategy::OneForOne
    }

    async fn on_start(_: Self::Args, _: ActorRef<Self>) -> Result<Self, Self::Error> {
        Ok(Self)
    }
}
