//! What can go wrong with the broker itself; what goes wrong with a request is answered in Kafka's own error
//! codes.

use std::net::SocketAddr;

use crate::BrokerConfigError;

/// Why the embedded broker did not start.
#[derive(Debug, thiserror::Error)]
pub enum BrokerError {
    /// The settings contradict each other or would open the broker to other machines.
    #[error(transparent)]
    Config(#[from] BrokerConfigError),
    /// The address could not be taken.
    #[error(
        "the embedded broker cannot listen on {address}: {source}; choose another port, or 0 for any free one"
    )]
    Listen {
        /// The address that was asked for.
        address: SocketAddr,
        /// What the system said.
        source: std::io::Error,
    },
}
