//! The embedded broker: a small single-node, in-memory Kafka broker for trying, developing and testing.
//!
//! It lets one command start the whole pipeline with nothing else installed, and any Kafka client can connect
//! while it runs. It is not a substitute for Kafka: what it holds is gone when the process ends, it listens
//! on loopback only, and when a topic is full its oldest records go. It does topics, headers, all codecs
//! (untouched), idempotent and transactional producers, classic consumer groups, committed offsets with
//! metadata, offsets by time, retention by bytes and by time. It does not do: KIP-848 groups, compaction,
//! quotas, authentication, replicas.
//!
//! ```text
//! server ─▶ connection ─▶ wire (outline, decode) ─▶ handlers ─▶ state {topics, groups, transactions} ─▶ log
//! ```
//!
//! Invariants: the one lock is never held across an await; nothing a client sends can panic or allocate
//! without bound (`wire::shape`, `limits`); a fetch listens for news before it looks; batches stay the bytes
//! that came.
//!
//! Without the feature `server` (on by default) the crate is its settings only.

#[cfg(feature = "server")]
mod broker;
mod config;

#[cfg(feature = "server")]
pub use broker::{BrokerError, EmbeddedBroker};
pub use config::{BrokerConfig, BrokerConfigError};
