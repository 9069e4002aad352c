//! The only room that says rdkafka: source, sink, offset ledger, rebalance.
