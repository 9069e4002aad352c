//! The broker itself: listens, answers, and stops.

mod connection;
mod error;
mod groups;
mod handlers;
mod limits;
mod log;
mod server;
mod state;
mod topic_settings;
mod topics;
mod transactions;
mod wire;

use std::net::SocketAddr;
use std::sync::Arc;

use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::info;

use crate::BrokerConfig;

pub use error::BrokerError;

use state::Shared;

/// A running broker. Dropping it stops it; [`shutdown`](Self::shutdown) also waits until it has stopped.
#[derive(Debug)]
pub struct EmbeddedBroker {
    address: SocketAddr,
    tasks: TaskTracker,
    stop: CancellationToken,
}

impl EmbeddedBroker {
    /// Starts listening and serving on the current tokio runtime.
    ///
    /// # Errors
    /// [`BrokerError::Config`] when a setting does not fit, above all an address that is not loopback;
    /// [`BrokerError::Listen`] when the address is taken.
    pub async fn start(config: BrokerConfig) -> Result<Self, BrokerError> {
        config.validate()?;
        let listen_error = |source| BrokerError::Listen {
            address: config.address,
            source,
        };
        let listener = TcpListener::bind(config.address).await.map_err(listen_error)?;
        let address = listener.local_addr().map_err(listen_error)?;
        info!(
            %address,
            bytes_per_topic_max = config.bytes_per_topic_max,
            "embedded Kafka broker listening: for trying, developing and testing only; it keeps everything in memory \
             and forgets it when this process ends"
        );
        let broker = Arc::new(Shared::new(config, address.ip().to_string(), address.port()));
        let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
        tasks.spawn(server::sweep(broker.clone(), stop.clone()));
        tasks.spawn(server::accept(broker, listener, tasks.clone(), stop.clone()));
        Ok(Self { address, tasks, stop })
    }

    /// The address that it listens on; the port is the real one where the settings said 0.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// What clients write as `bootstrap.servers`.
    pub fn bootstrap(&self) -> String {
        self.address.to_string()
    }

    /// Closes every connection and waits until all is quiet.
    pub async fn shutdown(self) {
        self.stop.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }
}

impl Drop for EmbeddedBroker {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}
