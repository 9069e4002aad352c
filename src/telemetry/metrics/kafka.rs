//! What the Kafka clients tell: connections, outages, lag.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::{Mutex, PoisonError};

use metrics::{counter, describe_counter, describe_gauge, gauge};

/// Lag by topic and partition. The recorder cannot take a series back, and a lag that is not known must be
/// absent.
static LAG: Mutex<BTreeMap<(String, i32), i64>> = Mutex::new(BTreeMap::new());

pub(super) fn describe() {
    describe_gauge!(
        "speechverse_kafka_connected",
        "1 while the Kafka client has a broker, and its group a coordinator."
    );
    describe_gauge!(
        "speechverse_kafka_partitions_paused",
        "Partitions that are not read because enough of them is in flight, by topic."
    );
    describe_counter!(
        "speechverse_kafka_outages_total",
        "How often no broker was in reach."
    );
    describe_counter!(
        "speechverse_kafka_client_errors_total",
        "What Kafka clients complained of, logged or not."
    );
    describe_counter!(
        "speechverse_kafka_producers_renewed_total",
        "Producers that failed for good, or for too long, and were made anew."
    );
    describe_counter!(
        "speechverse_kafka_records_deleted_total",
        "Records that retention deleted before they were read, by topic."
    );
}

pub(super) fn counters_at_zero() {
    for name in [
        "speechverse_kafka_outages_total",
        "speechverse_kafka_client_errors_total",
        "speechverse_kafka_producers_renewed_total",
    ] {
        counter!(name).increment(0);
    }
}

/// Whether a Kafka client has a broker.
pub fn kafka_connected(client: &str, connected: bool) {
    gauge!("speechverse_kafka_connected", "client" => client.to_owned()).set(f64::from(u8::from(connected)));
}

/// So many partitions of `topic` are not read, because enough is in flight.
pub fn partitions_paused(topic: &str, partitions: usize) {
    gauge!("speechverse_kafka_partitions_paused", "topic" => topic.to_owned()).set(partitions as f64);
}

/// No broker is in reach any more.
pub fn kafka_outage() {
    counter!("speechverse_kafka_outages_total").increment(1);
}

/// A Kafka client complained of something that it tries again.
pub fn kafka_client_error() {
    counter!("speechverse_kafka_client_errors_total").increment(1);
}

/// A producer that had failed for good, or for too long, was made anew.
pub fn kafka_producer_renewed() {
    counter!("speechverse_kafka_producers_renewed_total").increment(1);
}

/// `records` of `topic` were deleted before they were read; 0 makes the series.
pub fn kafka_records_deleted(topic: &str, records: u64) {
    counter!("speechverse_kafka_records_deleted_total", "topic" => topic.to_owned()).increment(records);
}

/// Records of a partition that are still to be finished; `None`: not known.
pub fn consumer_lag(topic: &str, partition: i32, records: Option<i64>) {
    let mut lag = LAG.lock().unwrap_or_else(PoisonError::into_inner);
    let key = (topic.to_owned(), partition);
    match records {
        Some(records) => lag.insert(key, records),
        None => lag.remove(&key),
    };
}

/// Adds the lag that is known to the text that Prometheus reads.
pub(super) fn render_lag(text: &mut String) {
    const NAME: &str = "speechverse_kafka_consumer_lag_records";
    let lag = LAG.lock().unwrap_or_else(PoisonError::into_inner);
    if lag.is_empty() {
        return;
    }
    let _ = writeln!(
        text,
        "# HELP {NAME} Records not yet finished, by topic and partition; absent where not known."
    );
    let _ = writeln!(text, "# TYPE {NAME} gauge");
    for ((topic, partition), records) in &*lag {
        // Names of topics need no escapes: letters, digits, `.`, `_`, `-`.
        let _ = writeln!(
            text,
            "{NAME}{{topic=\"{topic}\",partition=\"{partition}\"}} {records}"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lag_that_is_not_known_is_absent() {
        let render = || {
            let mut text = String::new();
            render_lag(&mut text);
            text
        };
        consumer_lag("metrics-test", 3, Some(17));
        assert!(
            render().contains("{topic=\"metrics-test\",partition=\"3\"} 17\n"),
            "{}",
            render()
        );

        consumer_lag("metrics-test", 3, None);

        assert!(!render().contains("metrics-test"), "{}", render());
    }
}
