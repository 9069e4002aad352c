//! `ConnectionMonitor`: whether the clients of this process reach a broker, said once an outage.
//!
//! Each client reports through its [`ClientMonitor`]: librdkafka's statistics every second, its errors and
//! logs when they come. While no broker is in reach, what librdkafka and the callers complain of is counted
//! and logged at `debug` only; the outage itself is one line at its begin and one at its end.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::{KafkaError as ClientError, RDKafkaErrorCode as Code};
use rdkafka::statistics::{Broker, Statistics};
use tracing::{debug, error, info, trace, warn};

use super::bootstrap::knows_no_broker;
use super::offset_tracker::TopicPartition;
use crate::telemetry::metrics;

mod complaints;

use complaints::{COMPLAINT_INTERVAL, Complaints};

/// A broker that owes an answer and has sent nothing for so long is not in reach, though its connection
/// stands.
const SILENT_MAX: Duration = Duration::from_secs(10);
/// How much later than `limit` a client may report before [`ConnectionMonitor::check`] takes it for stuck.
const REPORT_SLACK: Duration = Duration::from_secs(5);
/// How often connections that fail beside one that stands are logged.
const PARTIAL_INTERVAL: Duration = Duration::from_secs(60);
/// Reports of deleted records that may wait for their reader.
const REPORTS_MAX: usize = 256;

/// Records that the topic's retention deleted before they were read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecordsDeleted {
    /// Where they were.
    pub partition: TopicPartition,
    /// Offset of the first one.
    pub first_offset: i64,
    /// How many offsets from there on are gone.
    pub records: i64,
}

/// What the clients of a process know of their connections. Clones are the same monitor.
///
/// A default one belongs to a command's single client: it keeps the log short and exports no metrics.
#[derive(Clone, Debug, Default)]
pub struct ConnectionMonitor {
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    /// Where deleted records are reported; only the monitor of a pipeline has one, and only that one exports
    /// metrics.
    reports: Option<flume::Sender<RecordsDeleted>>,
}

#[derive(Debug, Default)]
struct State {
    clients: BTreeMap<String, Client>,
    /// Topics that the broker does not let us write: since when, and its reason.
    refused: BTreeMap<String, (Instant, String)>,
    outage: Option<Outage>,
    complaints: Complaints,
}

#[derive(Debug)]
struct Outage {
    since: Instant,
    errors: u64,
}

/// What is known of one client.
#[derive(Debug)]
struct Client {
    reported: Instant,
    reach: Reach,
    /// Failed connections since a broker was last in reach, and the latest reason.
    failures: u64,
    reason: String,
    /// It failed for good, and the next one has not taken its place yet.
    fatal: bool,
    /// Of a member of a group.
    group: Option<Group>,
}

/// Whether a client has a broker.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Reach {
    Connecting,
    Reached,
    Lost(Instant),
}

#[derive(Clone, Copy, Debug, Default)]
struct Group {
    /// The group has given it its share of the partitions, which may be none, at least once.
    assigned: bool,
    /// Since when the group's coordinator is not in reach.
    lost: Option<Instant>,
}

impl ConnectionMonitor {
    /// The monitor of a pipeline, which exports metrics, and where it reports records that were deleted
    /// unread.
    pub fn new() -> (Self, flume::Receiver<RecordsDeleted>) {
        let (sender, receiver) = flume::bounded(REPORTS_MAX);
        let shared = Shared {
            state: Mutex::default(),
            reports: Some(sender),
        };
        let shared = Arc::new(shared);
        (Self { shared }, receiver)
    }

    /// Whether every client has had a broker within `limit`, every group its partitions, and every topic
    /// takes records.
    ///
    /// # Errors
    /// What is missing, in words.
    pub fn check(&self, limit: Duration) -> Result<(), String> {
        let state = self.state();
        if state.clients.is_empty() {
            return Err("no Kafka client has been started".to_owned());
        }
        for (name, client) in &state.clients {
            client
                .check(limit)
                .map_err(|problem| format!("the {name} {problem}"))?;
        }
        let lasting = state
            .refused
            .iter()
            .find(|(_, (since, _))| since.elapsed() >= limit);
        match lasting {
            Some((topic, (_, reason))) => Err(format!("topic `{topic}` cannot be written: {reason}")),
            None => Ok(()),
        }
    }

    /// The monitor's end for a client called `name`, such as `producer`.
    pub(super) fn client(&self, name: impl Into<String>, member: bool) -> ClientMonitor {
        let name = name.into();
        let client = Client {
            reported: Instant::now(),
            reach: Reach::Connecting,
            failures: 0,
            reason: String::new(),
            fatal: false,
            group: member.then(Group::default),
        };
        self.state().clients.insert(name.clone(), client);
        ClientMonitor {
            monitor: self.clone(),
            name,
            lacks_brokers: Arc::default(),
        }
    }

    fn exports(&self) -> bool {
        self.shared.reports.is_some()
    }

    /// A poisoned lock is sound here: every critical section leaves whole values.
    fn state(&self) -> MutexGuard<'_, State> {
        self.shared.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Client {
    fn check(&self, limit: Duration) -> Result<(), String> {
        let silent = self.reported.elapsed();
        if silent > limit + REPORT_SLACK {
            return Err(format!("has not reported for {} s", silent.as_secs()));
        }
        match self.reach {
            Reach::Connecting => return Err("has no broker yet".to_owned()),
            Reach::Lost(since) if since.elapsed() >= limit => {
                let seconds = since.elapsed().as_secs();
                return Err(format!("has had no broker for {seconds} s: {}", self.reason));
            }
            Reach::Lost(_) | Reach::Reached => {}
        }
        match self.group {
            Some(Group { assigned: false, .. }) => Err("waits for its partitions".to_owned()),
            Some(Group {
                lost: Some(since), ..
            }) if since.elapsed() >= limit => {
                let seconds = since.elapsed().as_secs();
                Err(format!("has had no group coordinator for {seconds} s"))
            }
            _ => Ok(()),
        }
    }
}

/// Where one client reports.
#[derive(Clone, Debug)]
pub(super) struct ClientMonitor {
    monitor: ConnectionMonitor,
    name: String,
    /// By the latest statistics, it knows of no broker.
    lacks_brokers: Arc<AtomicBool>,
}

impl ClientMonitor {
    /// Takes librdkafka's statistics: which brokers are up, and for a member, the state of its group. Returns
    /// whether the client has its broker.
    pub(super) fn statistics(&self, statistics: &Statistics) -> bool {
        let up = statistics.brokers.values().any(is_in_reach);
        self.lacks_brokers
            .store(knows_no_broker(statistics), Ordering::Relaxed);
        // A producer is of use when it has the id that makes it idempotent, or had it and gets another.
        let identity = statistics.eos.as_ref().map(|eos| eos.idemp_state.as_str());
        let group = statistics.cgrp.as_ref();
        let mut state = self.monitor.state();
        let State {
            clients,
            outage,
            complaints,
            ..
        } = &mut *state;
        let Some(client) = clients.get_mut(&self.name) else {
            return false;
        };
        client.reported = Instant::now();
        let identified = match identity {
            None | Some("Assigned") => true,
            Some("FatalError") => false,
            Some(_) => client.reach == Reach::Reached,
        };
        if up && identified {
            let failures = std::mem::take(&mut client.failures);
            if failures > 0 && client.reach == Reach::Reached {
                let (client, reason) = (&self.name, &client.reason);
                let fresh = complaints.said("partial", client, PARTIAL_INTERVAL);
                if let Some(unsaid) = fresh {
                    warn!(
                        client,
                        reason, unsaid, "a connection to a Kafka broker failed, another one stands"
                    );
                }
            }
            client.reach = Reach::Reached;
            client.fatal = false;
        } else if client.failures > 0 && !matches!(client.reach, Reach::Lost(_)) {
            client.reach = Reach::Lost(Instant::now());
        }
        if let (Some(group), Some(found)) = (&mut client.group, group) {
            group.assigned |= found.join_state == "steady";
            group.lost = match found.state.as_str() {
                "up" => None,
                _ => group.lost.or_else(|| Some(Instant::now())),
            };
        }
        let lost = clients
            .values()
            .find(|client| matches!(client.reach, Reach::Lost(_)) && !client.fatal);
        match (lost, &outage) {
            (Some(lost), None) => {
                let errors = lost.failures;
                warn!(
                    reason = lost.reason,
                    "no Kafka broker in reach; what comes of it is only counted until one is"
                );
                *outage = Some(Outage {
                    since: Instant::now(),
                    errors,
                });
                if self.monitor.exports() {
                    metrics::kafka_outage();
                }
            }
            (None, Some(over)) => {
                let (seconds, errors) = (over.since.elapsed().as_secs_f64(), over.errors);
                info!(seconds, errors, "a Kafka broker is in reach again");
                *outage = None;
            }
            _ => {}
        }
        let connected = state.clients.get(&self.name).is_some_and(Client::is_connected);
        if self.monitor.exports() {
            metrics::kafka_connected(&self.name, connected);
        }
        connected
    }

    /// The group has given this member its partitions.
    pub(super) fn assigned(&self) {
        self.change(|client| {
            client.reach = Reach::Reached; // only a broker can have said so
            if let Some(group) = &mut client.group {
                group.assigned = true;
            }
        });
    }

    /// Whether the client knew of no broker when it last reported; said once.
    pub(super) fn take_lacks_brokers(&self) -> bool {
        self.lacks_brokers.swap(false, Ordering::Relaxed)
    }

    /// Whether no broker is in reach, and that has been said.
    pub(super) fn in_outage(&self) -> bool {
        self.monitor.state().outage.is_some()
    }

    /// A line of librdkafka's own log.
    pub(super) fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        match level {
            RDKafkaLogLevel::Notice | RDKafkaLogLevel::Info => {
                debug!(target: "librdkafka", facility, "{message}");
            }
            RDKafkaLogLevel::Debug => trace!(target: "librdkafka", facility, "{message}"),
            _ if matches!(facility, "FAIL" | "ERROR") => self.connection_failed(message),
            _ if facility == "FATAL" => self.fatal(message),
            // Where retention has deleted what should be read next: the source counts it and says so.
            _ if facility == "OFFSET" => debug!(target: "librdkafka", facility, "{message}"),
            _ => self.complain(facility, message),
        }
    }

    /// An error that librdkafka reports to the application. Those of connections, and fatal ones, are in its
    /// log too.
    pub(super) fn error(&self, error: &ClientError, reason: &str) {
        match error.rdkafka_error_code() {
            // The end of a partition is an answer to readers that ask for it, not an error.
            Some(Code::PartitionEOF) => {}
            // A producer's has the code of its cause, a consumer's its own.
            Some(Code::Fatal) => debug!(target: "librdkafka", %error, "{reason}"),
            _ if reason.starts_with("Fatal error") => debug!(target: "librdkafka", %error, "{reason}"),
            Some(code) if is_connection(code) => {
                debug!(target: "librdkafka", %error, "{reason}");
                self.change(|client| client.failures += u64::from(client.failures == 0));
            }
            _ => self.complain("error", reason),
        }
    }

    /// The client cannot go on and has to be made anew.
    pub(super) fn fatal(&self, reason: &str) {
        self.count();
        self.mark_failed(reason);
        if let Some(unsaid) = self.said("fatal", reason) {
            error!(
                client = self.name,
                reason, unsaid, "a Kafka client failed for good; it has to be made anew"
            );
        }
    }

    /// Another client has taken the place of the one that failed for good, or for too long.
    pub(super) fn renewed(&self, reason: &str) {
        if self.monitor.exports() {
            metrics::kafka_producer_renewed();
        }
        self.mark_failed(reason); // until the new one shows that it works
        if let Some(unsaid) = self.said("renewed", reason) {
            warn!(
                client = self.name,
                reason, unsaid, "a Kafka client that failed was made anew"
            );
        }
    }

    fn mark_failed(&self, reason: &str) {
        let since = Instant::now();
        self.change(|client| {
            client.reason = reason.to_owned();
            client.failures += 1;
            client.fatal = true;
            if !matches!(client.reach, Reach::Lost(_)) {
                client.reach = Reach::Lost(since);
            }
        });
    }

    fn said(&self, subject: &str, message: &str) -> Option<u64> {
        self.monitor
            .state()
            .complaints
            .said(subject, message, COMPLAINT_INTERVAL)
    }

    /// Logs what goes wrong for now and is tried again: once in a while, and only counted during an outage.
    pub(super) fn complain(&self, subject: &str, message: &str) {
        self.count();
        if let Some(outage) = &mut self.monitor.state().outage {
            outage.errors += 1;
            debug!(client = self.name, subject, "{message}");
            return;
        }
        match self.said(subject, message) {
            Some(unsaid) => warn!(client = self.name, subject, unsaid, "{message}"),
            None => debug!(client = self.name, subject, "{message}"),
        }
    }

    /// The broker does not let us write `topic`.
    pub(super) fn topic_refused(&self, topic: &str, reason: &str) {
        let mut state = self.monitor.state();
        let refusal = state.refused.entry(topic.to_owned());
        refusal.or_insert_with(|| (Instant::now(), reason.to_owned()));
    }

    /// The broker has acknowledged a record of `topic`.
    pub(super) fn topic_written(&self, topic: &str) {
        self.monitor.state().refused.remove(topic);
    }

    /// Records were deleted before they were read.
    pub(super) fn records_deleted(&self, deleted: RecordsDeleted) {
        let RecordsDeleted {
            partition,
            first_offset,
            records,
        } = &deleted;
        let TopicPartition { topic, partition } = partition;
        error!(
            %topic,
            partition,
            first_offset,
            records,
            "records were deleted by the topic's retention before they were read: raise it, or add processes"
        );
        let Some(reports) = &self.monitor.shared.reports else {
            return;
        };
        metrics::kafka_records_deleted(topic, records.unsigned_abs());
        if reports.try_send(deleted).is_err() {
            warn!("too many events wait, the event of deleted records is left out");
        }
    }

    fn connection_failed(&self, message: &str) {
        if !self.monitor.exports() {
            self.complain("connection", message);
        } else {
            self.count();
            debug!(target: "librdkafka", "{message}");
        }
        self.change(|client| {
            client.failures += 1;
            client.reason = message.to_owned();
        });
        if let Some(outage) = &mut self.monitor.state().outage {
            outage.errors += 1;
        }
    }

    fn count(&self) {
        if self.monitor.exports() {
            metrics::kafka_client_error();
        }
    }

    fn change(&self, change: impl FnOnce(&mut Client)) {
        if let Some(client) = self.monitor.state().clients.get_mut(&self.name) {
            change(client);
        }
    }
}

impl Client {
    fn is_connected(&self) -> bool {
        self.reach == Reach::Reached && self.group.is_none_or(|group| group.lost.is_none())
    }
}

/// Whether a broker's connection stands, and it answers what it is asked.
fn is_in_reach(broker: &Broker) -> bool {
    let silent = Duration::from_micros(broker.rxidle.max(0).unsigned_abs());
    // The coordinator of a group that shares out its partitions answers late, and rightly so.
    let owes = broker.waitresp_cnt > 0 && broker.source != "logical";
    broker.state == "UP" && !(owes && silent > SILENT_MAX)
}

/// Whether an error says that a broker cannot be reached.
pub(super) fn is_connection(code: Code) -> bool {
    matches!(
        code,
        Code::BrokerTransportFailure
            | Code::AllBrokersDown
            | Code::Resolve
            | Code::Authentication
            | Code::SSL
            | Code::OperationTimedOut
            | Code::RequestTimedOut
    )
}

#[cfg(test)]
mod tests;
