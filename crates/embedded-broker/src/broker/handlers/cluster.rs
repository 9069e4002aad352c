//! Who we are: versions, metadata, coordinators.

use kafka_protocol::error::ResponseError;
use kafka_protocol::messages::api_versions_response::ApiVersion;
use kafka_protocol::messages::metadata_response::{
    MetadataResponseBroker, MetadataResponsePartition, MetadataResponseTopic,
};
use kafka_protocol::messages::{
    ApiVersionsResponse, FindCoordinatorRequest, FindCoordinatorResponse, MetadataRequest, MetadataResponse,
    TopicName,
};
use kafka_protocol::protocol::StrBytes;

use crate::broker::state::{BROKER_ID, Shared, State};
use crate::broker::topic_settings::TopicSettings;
use crate::broker::wire::apis::APIS;

/// The requests this broker answers. An `error` of code 0 is none.
pub(super) fn api_versions(error: ResponseError) -> ApiVersionsResponse {
    let announced = APIS.iter().map(|api| {
        ApiVersion::default()
            .with_api_key(api.key as i16)
            .with_min_version(api.oldest)
            .with_max_version(api.newest)
    });
    ApiVersionsResponse::default()
        .with_error_code(error.code())
        .with_api_keys(announced.collect())
        // No epoch means no tagged field, and librdkafka before 2.2 trips over tagged fields here.
        .with_finalized_features_epoch(-1)
}

/// The broker and its topics; topics that are missing are made when the client allows it.
pub(super) fn metadata(broker: &Shared, request: &MetadataRequest, version: i16) -> MetadataResponse {
    const SINCE_CLUSTER_ID: i16 = 2;
    const SINCE_CREATION_CHOICE: i16 = 4;
    let mut state = broker.lock();
    let create = version < SINCE_CREATION_CHOICE || request.allow_auto_topic_creation;
    let asked: Option<Vec<String>> = match &request.topics {
        // In the oldest version an empty list means all; later it means none, and null means all.
        Some(topics) if version > 0 || !topics.is_empty() => Some(
            topics
                .iter()
                .map(|topic| {
                    topic
                        .name
                        .as_ref()
                        .map(|name| name.to_string())
                        .unwrap_or_default()
                })
                .collect(),
        ),
        _ => None,
    };
    let names = asked.unwrap_or_else(|| state.topics.iter().map(|(name, _)| name.to_owned()).collect());
    let topics = names
        .into_iter()
        .map(|name| describe_topic(&mut state, broker, name, create))
        .collect();
    let this = MetadataResponseBroker::default()
        .with_node_id(BROKER_ID)
        .with_host(broker.host.clone())
        .with_port(broker.port);
    let mut response = MetadataResponse::default()
        .with_brokers(vec![this])
        .with_controller_id(BROKER_ID)
        .with_topics(topics);
    if version >= SINCE_CLUSTER_ID {
        response = response.with_cluster_id(Some(StrBytes::from_static_str("speechverse-embedded")));
    }
    response
}

fn describe_topic(state: &mut State, broker: &Shared, name: String, create: bool) -> MetadataResponseTopic {
    let described =
        MetadataResponseTopic::default().with_name(Some(TopicName(StrBytes::from_string(name.clone()))));
    let found = match state.topics.get(&name) {
        Some(topic) => Ok(topic.partition_count()),
        None if create => state
            .topics
            .create(
                &name,
                broker.config.partitions,
                TopicSettings::default(),
                &broker.config,
            )
            .map(|topic| topic.partition_count()),
        None => Err(ResponseError::UnknownTopicOrPartition),
    };
    match found {
        Ok(partitions) => described.with_partitions((0..partitions).map(describe_partition).collect()),
        Err(error) => described.with_error_code(error.code()),
    }
}

fn describe_partition(index: i32) -> MetadataResponsePartition {
    MetadataResponsePartition::default()
        .with_partition_index(index)
        .with_leader_id(BROKER_ID)
        .with_replica_nodes(vec![BROKER_ID])
        .with_isr_nodes(vec![BROKER_ID])
}

/// Who coordinates a group or a transactional id: always this broker.
pub(super) fn find_coordinator(
    broker: &Shared,
    request: &FindCoordinatorRequest,
    version: i16,
) -> FindCoordinatorResponse {
    const SINCE_MESSAGE: i16 = 1;
    const KEY_TYPES: std::ops::RangeInclusive<i8> = 0..=1; // group, transactional id
    if !KEY_TYPES.contains(&request.key_type) || request.key.is_empty() {
        let mut response = FindCoordinatorResponse::default()
            .with_error_code(ResponseError::InvalidRequest.code())
            .with_node_id((-1).into());
        if version >= SINCE_MESSAGE {
            let message =
                "the embedded broker coordinates groups and transactional ids, by a name that is not empty";
            response = response.with_error_message(Some(StrBytes::from_static_str(message)));
        }
        return response;
    }
    FindCoordinatorResponse::default()
        .with_node_id(BROKER_ID)
        .with_host(broker.host.clone())
        .with_port(broker.port)
}
