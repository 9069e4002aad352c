//! Topics made and deleted on request.

use kafka_protocol::error::ResponseError;
use kafka_protocol::messages::create_topics_request::CreatableTopic;
use kafka_protocol::messages::create_topics_response::CreatableTopicResult;
use kafka_protocol::messages::delete_topics_response::DeletableTopicResult;
use kafka_protocol::messages::{
    CreateTopicsRequest, CreateTopicsResponse, DeleteTopicsRequest, DeleteTopicsResponse,
};
use kafka_protocol::protocol::StrBytes;

use crate::broker::state::{Shared, State};
use crate::broker::topic_settings::TopicSettings;

/// Makes topics, or only checks whether they could be made.
pub(super) fn create(broker: &Shared, request: &CreateTopicsRequest, version: i16) -> CreateTopicsResponse {
    const SINCE_SIZE: i16 = 5;
    let mut state = broker.lock();
    let results = request.topics.iter().map(|topic| {
        let result = CreatableTopicResult::default().with_name(topic.name.clone());
        match create_one(&mut state, broker, topic, request.validate_only) {
            Ok(partitions) if version >= SINCE_SIZE => result
                .with_num_partitions(partitions)
                .with_replication_factor(1)
                .with_configs(Some(Vec::new())),
            Ok(_) => result,
            Err((error, reason)) => result
                .with_error_code(error.code())
                .with_error_message(Some(StrBytes::from_string(reason))),
        }
    });
    let results = results.collect();
    CreateTopicsResponse::default().with_topics(results)
}

fn create_one(
    state: &mut State,
    broker: &Shared,
    topic: &CreatableTopic,
    only_check: bool,
) -> Result<i32, (ResponseError, String)> {
    const BY_DEFAULT: i32 = -1;
    if !topic.assignments.is_empty() {
        let reason = "the embedded broker is alone: leave out which brokers hold which partition".to_owned();
        return Err((ResponseError::InvalidReplicaAssignment, reason));
    }
    if !matches!(topic.replication_factor, -1 | 1) {
        let reason = format!(
            "the embedded broker is alone: {} replicas cannot be",
            topic.replication_factor
        );
        return Err((ResponseError::InvalidReplicationFactor, reason));
    }
    let partitions = match topic.num_partitions {
        BY_DEFAULT => broker.config.partitions,
        wanted => u32::try_from(wanted).unwrap_or(0), // negative numbers are refused like 0
    };
    let mut settings = TopicSettings::default();
    for config in &topic.configs {
        let Some(value) = &config.value else { continue };
        settings
            .set(&config.name, value)
            .map_err(|reason| (ResponseError::InvalidConfig, reason))?;
    }
    let name = topic.name.as_str();
    let made = if only_check {
        state.topics.may_create(name, partitions, &broker.config)
    } else {
        state
            .topics
            .create(name, partitions, settings, &broker.config)
            .map(|_| ())
    };
    made.map_err(|error| (error, why(error, name, partitions, broker)))?;
    Ok(partitions as i32) // at most PARTITIONS_MAX
}

fn why(error: ResponseError, name: &str, partitions: u32, broker: &Shared) -> String {
    match error {
        ResponseError::InvalidTopicException => {
            "a topic name has 1 to 249 characters, letters, digits, `.`, `_` and `-` only".to_owned()
        }
        ResponseError::TopicAlreadyExists => format!("topic `{name}` exists already"),
        ResponseError::InvalidPartitions => {
            format!("a topic cannot have {partitions} partitions here")
        }
        _ => format!(
            "the embedded broker holds at most {} topics; delete some or use a real Kafka",
            broker.config.topics_max
        ),
    }
}

/// Deletes topics, with their committed offsets.
pub(super) fn delete(broker: &Shared, request: &DeleteTopicsRequest, version: i16) -> DeleteTopicsResponse {
    const SINCE_MESSAGE: i16 = 5;
    let mut state = broker.lock();
    let results = request.topic_names.iter().map(|name| {
        let result = DeletableTopicResult::default().with_name(Some(name.clone()));
        if state.delete_topic(name.as_str()) {
            return result;
        }
        let result = result.with_error_code(ResponseError::UnknownTopicOrPartition.code());
        if version < SINCE_MESSAGE {
            return result;
        }
        result.with_error_message(Some(StrBytes::from_static_str("there is no such topic")))
    });
    let results = results.collect();
    drop(state);
    broker.news.notify_waiters(); // fetches of what is gone need not wait
    DeleteTopicsResponse::default().with_responses(results)
}
