//! The embedded broker: a small single-node, in-memory Kafka broker for trying, developing and testing.
