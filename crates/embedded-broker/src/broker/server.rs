//! The listening side: accepts clients up to a bound, and wakes the sweeper.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::time::{MissedTickBehavior, interval, sleep};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::warn;

use super::connection::serve;
use super::limits::SWEEP_EVERY;
use super::state::Shared;

/// Accepts clients until asked to stop.
pub(super) async fn accept(
    broker: Arc<Shared>,
    listener: TcpListener,
    tasks: TaskTracker,
    stop: CancellationToken,
) {
    let places = Arc::new(Semaphore::new(broker.config.connections_max));
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = stop.cancelled() => return,
        };
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                // Usually out of file descriptors: others must close theirs first.
                const PAUSE: Duration = Duration::from_millis(100);
                warn!(%error, "the embedded broker could not accept a connection");
                sleep(PAUSE).await;
                continue;
            }
        };
        let Ok(place) = places.clone().try_acquire_owned() else {
            let connections_max = broker.config.connections_max;
            warn!(%peer, connections_max, "the embedded broker takes no further connection");
            continue; // dropping the stream closes it
        };
        let (broker, stop) = (broker.clone(), stop.clone());
        tasks.spawn(async move {
            tokio::select! {
                () = serve(broker, stream, peer) => {}
                () = stop.cancelled() => {}
            }
            drop(place);
        });
    }
}

/// Looks at deadlines until asked to stop.
pub(super) async fn sweep(broker: Arc<Shared>, stop: CancellationToken) {
    let mut ticks = interval(SWEEP_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = ticks.tick() => broker.sweep(Instant::now()),
            () = stop.cancelled() => return,
        }
    }
}
