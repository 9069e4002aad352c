//! Clients that librdkafka leaves without any broker are given their bootstrap brokers again.
//!
//! A cluster whose brokers have all just come back answers for a moment with topics and no broker. librdkafka
//! (2.12) then drops the brokers that it knows, and orders itself to begin anew with the bootstrap brokers;
//! where the same answer is not yet done with, its end calls that order off, and the client never connects
//! again (librdkafka issue 5301).

use std::ffi::CString;

use rdkafka::bindings;
use rdkafka::client::{Client, ClientContext};
use rdkafka::statistics::Statistics;
use tracing::warn;

/// Whether a client knows of no broker that it could connect to.
pub(super) fn knows_no_broker(statistics: &Statistics) -> bool {
    let is_real = |source: &str| matches!(source, "learned" | "configured");
    !(statistics.brokers.values()).any(|broker| is_real(&broker.source))
}

/// Adds the brokers of `servers` (`kafka.bootstrap`), where the client does not know them. How many were
/// added.
pub(super) fn restore_brokers<C: ClientContext>(client: &Client<C>, servers: &str) -> usize {
    let Ok(servers) = CString::new(servers) else {
        return 0; // cannot be: librdkafka has taken it before
    };
    // SAFETY: the client lives as long as it is borrowed, and the text until the call returns, which copies
    // it; librdkafka allows the call from any thread.
    let added = unsafe { bindings::rd_kafka_brokers_add(client.native_ptr(), servers.as_ptr()) };
    warn!(
        added,
        "a Kafka client had no broker left, those of `kafka.bootstrap` are added again"
    );
    usize::try_from(added).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use rdkafka::ClientConfig;
    use rdkafka::consumer::{BaseConsumer, Consumer};
    use rdkafka::mocking::MockCluster;
    use rdkafka::statistics::Broker;

    use super::*;

    fn with_brokers(sources: &[&str]) -> Statistics {
        let brokers = sources.iter().enumerate().map(|(number, source)| {
            let broker = Broker {
                source: (*source).to_owned(),
                ..Broker::default()
            };
            (number.to_string(), broker)
        });
        Statistics {
            brokers: brokers.collect(),
            ..Statistics::default()
        }
    }

    #[test]
    fn a_client_with_nothing_but_logical_brokers_knows_none() {
        for (sources, knows_none) in [
            (&[][..], true),
            (&["logical", "internal"], true),
            (&["logical", "configured"], false),
            (&["learned"], false),
        ] {
            assert_eq!(knows_no_broker(&with_brokers(sources)), knows_none, "{sources:?}");
        }
    }

    #[test]
    fn a_client_without_brokers_reaches_those_that_are_restored() {
        let cluster = MockCluster::new(1).unwrap();
        let consumer: BaseConsumer = ClientConfig::new().create().unwrap();
        let reach = |limit| consumer.fetch_metadata(None, Duration::from_millis(limit));
        assert!(reach(200).is_err());

        assert_eq!(
            restore_brokers(consumer.client(), &cluster.bootstrap_servers()),
            1
        );

        assert_eq!(reach(10_000).unwrap().brokers().len(), 1);
        assert_eq!(restore_brokers(consumer.client(), "a\0b"), 0);
    }
}
