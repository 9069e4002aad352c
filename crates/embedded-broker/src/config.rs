//! The `[broker]` table: how large the embedded broker may grow and where it listens.

use std::net::{Ipv4Addr, SocketAddr};

use serde::de::{self, Deserializer};
use serde::{Deserialize, Serialize};

/// Settings of the embedded broker, which keeps everything in memory and listens on this machine only.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct BrokerConfig {
    /// Loopback address and port to listen on. Port 0 lets the system choose a free one.
    #[serde(deserialize_with = "loopback")]
    pub address: SocketAddr,
    /// Partitions of a topic whose creator does not say how many.
    pub partitions: u32,
    /// Largest record batch that is accepted, bytes; a topic's `max.message.bytes` may only lower it.
    pub message_bytes_max: usize,
    /// Bytes kept per topic, all partitions together; beyond it the oldest batches go.
    pub bytes_per_topic_max: u64,
    /// Bytes kept in all topics together; beyond it the oldest batches of the largest topic go.
    pub bytes_max: u64,
    /// Topics that may exist at once.
    pub topics_max: usize,
    /// Client connections that may be open at once. A client of librdkafka opens two or three.
    pub connections_max: usize,
}

impl Default for BrokerConfig {
    fn default() -> Self {
        const MIB: u64 = 1 << 20;
        Self {
            address: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
            partitions: 4,
            message_bytes_max: 16 << 20, // 8 minutes of 16 kHz mono 16-bit sound
            bytes_per_topic_max: 256 * MIB,
            bytes_max: 1024 * MIB,
            topics_max: 1_000,
            connections_max: 256,
        }
    }
}

/// Reads an address; `localhost` is 127.0.0.1.
fn loopback<'de, D: Deserializer<'de>>(deserializer: D) -> Result<SocketAddr, D::Error> {
    let text = String::deserialize(deserializer)?;
    let address = match text.strip_prefix("localhost:") {
        Some(port) => port
            .parse()
            .ok()
            .map(|port: u16| SocketAddr::from((Ipv4Addr::LOCALHOST, port))),
        None => text.parse().ok(),
    };
    address.ok_or_else(|| {
        let found = text.escape_debug();
        de::Error::custom(format!(
            "`{found}` is no address such as 127.0.0.1:9092 or localhost:9092"
        ))
    })
}

/// What is wrong with a [`BrokerConfig`].
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum BrokerConfigError {
    /// The address can be reached from other machines.
    #[error(
        "`broker.address` is {address}, which other machines can reach; the embedded broker has no authentication \
         and listens on loopback only: use 127.0.0.1:PORT or [::1]:PORT, or a real Kafka"
    )]
    NotLoopback {
        /// The address that was asked for.
        address: SocketAddr,
    },
    /// A number lies outside what the broker can work with.
    #[error("`broker.{setting}` is {found}, it must be from {least} to {most}")]
    OutOfRange {
        /// Name of the setting.
        setting: &'static str,
        /// Its value.
        found: u64,
        /// Smallest value that works.
        least: u64,
        /// Largest value that works.
        most: u64,
    },
}

impl BrokerConfig {
    /// Largest number of partitions a topic may have.
    pub const PARTITIONS_MAX: u32 = 1_000;

    /// Checks each setting and the rules between them.
    ///
    /// # Errors
    /// [`BrokerConfigError`] names the first setting that does not fit.
    pub fn validate(&self) -> Result<(), BrokerConfigError> {
        if !self.address.ip().is_loopback() {
            return Err(BrokerConfigError::NotLoopback {
                address: self.address,
            });
        }
        // A Kafka length is an i32, and a request carries a little more than its batch.
        const MESSAGE_BYTES_MOST: u64 = 1 << 30;
        const MESSAGE_BYTES_LEAST: u64 = 1 << 10;
        let message_bytes = self.message_bytes_max as u64;
        let rules = [
            (
                "partitions",
                u64::from(self.partitions),
                1,
                u64::from(Self::PARTITIONS_MAX),
            ),
            (
                "message_bytes_max",
                message_bytes,
                MESSAGE_BYTES_LEAST,
                MESSAGE_BYTES_MOST,
            ),
            // Twice, so that the newest batch is never deleted for its own sake.
            (
                "bytes_per_topic_max",
                self.bytes_per_topic_max,
                message_bytes.saturating_mul(2),
                u64::MAX,
            ),
            ("bytes_max", self.bytes_max, self.bytes_per_topic_max, u64::MAX),
            ("topics_max", self.topics_max as u64, 1, 10_000),
            ("connections_max", self.connections_max as u64, 1, 10_000),
        ];
        for (setting, found, least, most) in rules {
            if found < least || found > most {
                return Err(BrokerConfigError::OutOfRange {
                    setting,
                    found,
                    least,
                    most,
                });
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_are_valid_and_an_empty_table_means_them() {
        let config: BrokerConfig = toml::from_str("").unwrap();

        assert_eq!(config, BrokerConfig::default());
        assert_eq!(config.validate(), Ok(()));
    }

    #[test]
    fn an_address_that_other_machines_reach_is_refused_by_name() {
        let config = BrokerConfig {
            address: "0.0.0.0:9092".parse().unwrap(),
            ..BrokerConfig::default()
        };

        let error = config.validate().unwrap_err().to_string();

        assert!(
            error.contains("0.0.0.0:9092") && error.contains("loopback"),
            "{error}"
        );
    }

    #[test]
    fn a_topic_must_hold_at_least_two_of_the_largest_messages() {
        let config = BrokerConfig {
            message_bytes_max: 1 << 20,
            bytes_per_topic_max: 1 << 20,
            ..BrokerConfig::default()
        };

        let error = config.validate().unwrap_err().to_string();

        assert!(
            error.contains("bytes_per_topic_max") && error.contains("2097152"),
            "{error}"
        );
    }

    #[test]
    fn a_misspelt_key_is_an_error_that_names_the_key() {
        let error = toml::from_str::<BrokerConfig>("adress = \"127.0.0.1:0\"")
            .unwrap_err()
            .to_string();

        assert!(error.contains("adress"), "{error}");
    }
}
