//! What is asked of the broker beside records: is it there, which topics has it, create those that are
//! missing.

use std::time::{Duration, Instant};

use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::error::{KafkaError as ClientError, RDKafkaErrorCode};
use tracing::info;

use super::client::{self, Reporting};
use super::error::{KafkaError, describe, reason};
use crate::kafka::config::KafkaConfig;

/// Partitions of the control topic.
const CONTROL_PARTITIONS: i32 = 1;
/// Least time for a second question to a broker that has answered the first.
const POLL_INTERVAL: Duration = Duration::from_secs(5);
/// How often a partition without a leader is asked for again.
const LEADER_INTERVAL: Duration = Duration::from_millis(100);

/// A broker as it describes itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BrokerInfo {
    /// Its number in the cluster.
    pub id: i32,
    /// `host:port` at which it says it can be reached.
    pub address: String,
}

/// A topic as the broker describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TopicInfo {
    /// Its name.
    pub name: String,
    /// How many partitions it has.
    pub partitions: usize,
    /// How many of them have no leader now, and so cannot be used.
    pub leaderless: usize,
}

/// What the cluster looks like.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClusterInfo {
    /// Brokers by number.
    pub brokers: Vec<BrokerInfo>,
    /// Topics by name, internal ones (`__…`) left out.
    pub topics: Vec<TopicInfo>,
    /// How long the answer took.
    pub answered_in: Duration,
}

impl ClusterInfo {
    /// The topic called `name`.
    pub fn topic(&self, name: &str) -> Option<&TopicInfo> {
        self.topics.iter().find(|topic| topic.name == name)
    }
}

/// Asks the cluster what it looks like.
///
/// # Errors
/// [`KafkaError::Unreachable`] when nobody answers within `limit`.
pub async fn broker_metadata(config: &KafkaConfig, limit: Duration) -> Result<ClusterInfo, KafkaError> {
    let admin = admin_client(config)?;
    let bootstrap = config.bootstrap.clone();
    let ask = move || {
        let began = Instant::now();
        let metadata =
            admin
                .inner()
                .fetch_metadata(None, limit)
                .map_err(|error| KafkaError::Unreachable {
                    bootstrap,
                    waited_ms: began.elapsed().as_millis(),
                    reason: reason(&error),
                })?;
        let mut brokers: Vec<BrokerInfo> = metadata
            .brokers()
            .iter()
            .map(|broker| BrokerInfo {
                id: broker.id(),
                address: format!("{}:{}", broker.host(), broker.port()),
            })
            .collect();
        brokers.sort_by_key(|broker| broker.id);
        let mut topics: Vec<TopicInfo> = metadata
            .topics()
            .iter()
            .filter(|topic| !topic.name().starts_with("__"))
            .map(|topic| TopicInfo {
                name: topic.name().to_owned(),
                partitions: topic.partitions().len(),
                leaderless: topic
                    .partitions()
                    .iter()
                    .filter(|partition| partition.leader() < 0)
                    .count(),
            })
            .collect();
        topics.sort_by(|one, other| one.name.cmp(&other.name));
        Ok(ClusterInfo {
            brokers,
            topics,
            answered_in: began.elapsed(),
        })
    };
    tokio::task::spawn_blocking(ask)
        .await
        .map_err(|_| KafkaError::Ended)?
}

/// Creates the configured topics that are missing, with the configured partitions and largest record; returns
/// which. The control topic gets one partition, because orders have to stay in the order in which they were
/// sent.
///
/// # Errors
/// [`KafkaError::Unreachable`], [`KafkaError::Topic`] for the first one that the broker refuses, or
/// [`KafkaError::OrdersOvertake`] when the control topic has several partitions.
pub async fn ensure_topics(config: &KafkaConfig, limit: Duration) -> Result<Vec<String>, KafkaError> {
    let began = Instant::now();
    let created = create_missing(config, limit).await?;
    let cluster = broker_metadata(config, limit.saturating_sub(began.elapsed()).max(POLL_INTERVAL)).await?;
    let topic = &config.topics.control;
    match cluster.topic(topic).map(|control| control.partitions) {
        Some(partitions) if partitions != CONTROL_PARTITIONS as usize => Err(KafkaError::OrdersOvertake {
            topic: topic.clone(),
            partitions,
        }),
        _ => Ok(created),
    }
}

/// Where a partition ends: the offset of the next record that is written to it. A partition that has just
/// been made may be without a leader for a moment.
///
/// # Errors
/// [`KafkaError::Unreachable`] when nobody answers within `limit`.
pub async fn end_of(
    config: &KafkaConfig,
    topic: &str,
    partition: i32,
    limit: Duration,
) -> Result<i64, KafkaError> {
    let admin = admin_client(config)?;
    let (topic, bootstrap) = (topic.to_owned(), config.bootstrap.clone());
    let ask = move || {
        let began = Instant::now();
        loop {
            let left = limit.saturating_sub(began.elapsed());
            match admin.inner().fetch_watermarks(&topic, partition, left) {
                Ok((_, end)) => return Ok(end),
                Err(error) if has_no_leader_yet(&error) && began.elapsed() < limit => {
                    std::thread::sleep(LEADER_INTERVAL);
                }
                Err(error) => {
                    return Err(KafkaError::Unreachable {
                        bootstrap,
                        waited_ms: began.elapsed().as_millis(),
                        reason: reason(&error),
                    });
                }
            }
        }
    };
    tokio::task::spawn_blocking(ask)
        .await
        .map_err(|_| KafkaError::Ended)?
}

/// Whether a partition is so new that no broker leads it, or knows that it does.
fn has_no_leader_yet(error: &ClientError) -> bool {
    matches!(
        error.rdkafka_error_code(),
        Some(
            RDKafkaErrorCode::NotLeaderForPartition
                | RDKafkaErrorCode::LeaderNotAvailable
                | RDKafkaErrorCode::UnknownTopicOrPartition
        )
    )
}

async fn create_missing(config: &KafkaConfig, limit: Duration) -> Result<Vec<String>, KafkaError> {
    let cluster = broker_metadata(config, limit).await?;
    let configured = config.topics.all().into_iter().map(|(_, name)| name);
    let missing: Vec<&str> = configured.filter(|name| cluster.topic(name).is_none()).collect();
    if missing.is_empty() {
        return Ok(Vec::new());
    }
    let admin = admin_client(config)?;
    let bytes_max = config.batch_bytes_max().to_string();
    let wanted: Vec<NewTopic<'_>> = missing
        .iter()
        .map(|name| {
            let partitions = match *name == config.topics.control {
                true => CONTROL_PARTITIONS,
                false => config.partitions,
            };
            NewTopic::new(name, partitions, TopicReplication::Fixed(config.replication))
                .set("max.message.bytes", &bytes_max)
        })
        .collect();
    let options = AdminOptions::new()
        .operation_timeout(Some(limit))
        .request_timeout(Some(limit));
    let began = Instant::now();
    let results = admin
        .create_topics(&wanted, &options)
        .await
        .map_err(|error| KafkaError::Unreachable {
            bootstrap: config.bootstrap.clone(),
            waited_ms: began.elapsed().as_millis(),
            reason: reason(&error),
        })?;
    let mut created = Vec::new();
    for result in results {
        match result {
            Ok(topic) => created.push(topic),
            Err((_, RDKafkaErrorCode::TopicAlreadyExists)) => {} // somebody else was faster
            Err((topic, code)) => {
                return Err(KafkaError::Topic {
                    topic,
                    action: "create it",
                    reason: describe(code),
                });
            }
        }
    }
    wait_until_known(config, &missing, limit.saturating_sub(began.elapsed())).await?;
    info!(topics = %created.join(" "), partitions = config.partitions, "topics created");
    Ok(created)
}

/// Waits until the cluster knows `topics`, which takes a moment after their creation.
async fn wait_until_known(config: &KafkaConfig, topics: &[&str], limit: Duration) -> Result<(), KafkaError> {
    let began = Instant::now();
    loop {
        let cluster = broker_metadata(config, limit).await?;
        let unknown = topics
            .iter()
            .find(|topic| cluster.topic(topic).is_none_or(|found| found.leaderless > 0));
        let Some(unknown) = unknown else { return Ok(()) };
        if began.elapsed() >= limit {
            return Err(KafkaError::Topic {
                topic: (*unknown).to_owned(),
                action: "use it",
                reason: format!(
                    "it was created and has no leader after {} ms",
                    began.elapsed().as_millis()
                ),
            });
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

fn admin_client(config: &KafkaConfig) -> Result<AdminClient<Reporting>, KafkaError> {
    client::admin(config)?
        .create_with_context(Reporting::alone("admin client"))
        .map_err(|error| client::creation_error("admin client", error))
}
