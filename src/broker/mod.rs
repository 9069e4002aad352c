//! The embedded broker: a small single-node, in-memory Kafka broker for trying, developing and testing.
//!
//! It lets one command start the whole pipeline with nothing else installed, and any Kafka client can connect while
//! it runs. It is not a substitute for Kafka: what it holds is gone when the process ends, it listens on loopback
//! only, and when a topic is full its oldest records go. It does topics, headers, all codecs (untouched), idempotent
//! and transactional producers, classic consumer groups, committed offsets with metadata, offsets by time, retention
//! by bytes and by time. It does not do: KIP-848 groups, compaction, quotas, authentication, replicas.
//!
//! ```text
//! server ─▶ connection ─▶ wire (outline, decode) ─▶ handlers ─▶ state { topics, groups, transactions } ─▶ log
//! ```
//!
//! Invariants: the one lock is never held across an await; nothing a client sends can panic or allocate without
//! bound (`wire::shape`, `limits`); a fetch listens for news before it looks; batches stay the bytes that came.

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

pub use error::BrokerError;

use crate::config::broker::BrokerConfig;
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
