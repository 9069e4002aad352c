//! Settings of topics and of the broker, for display.

use kafka_protocol::error::ResponseError;
use kafka_protocol::messages::describe_configs_request::DescribeConfigsResource;
use kafka_protocol::messages::describe_configs_response::{
    DescribeConfigsResourceResult, DescribeConfigsResult,
};
use kafka_protocol::messages::{DescribeConfigsRequest, DescribeConfigsResponse};
use kafka_protocol::protocol::StrBytes;

use crate::broker::state::{BROKER_ID, Shared};
use crate::broker::topic_settings::Shown;

const TOPIC: i8 = 2;
const BROKER: i8 = 4;

/// Kafka's words for where a value comes from.
const WRITTEN_FOR_TOPIC: i8 = 1;
const WRITTEN_FOR_BROKER: i8 = 4;
const BY_DEFAULT: i8 = 5;

/// Shows settings.
pub(super) fn describe(
    broker: &Shared,
    request: &DescribeConfigsRequest,
    version: i16,
) -> DescribeConfigsResponse {
    let results = request
        .resources
        .iter()
        .map(|resource| describe_one(broker, resource, version));
    DescribeConfigsResponse::default().with_results(results.collect())
}

fn describe_one(broker: &Shared, resource: &DescribeConfigsResource, version: i16) -> DescribeConfigsResult {
    let result = DescribeConfigsResult::default()
        .with_resource_type(resource.resource_type)
        .with_resource_name(resource.resource_name.clone());
    let (shown, written_source) = match resource.resource_type {
        TOPIC => {
            let state = broker.lock();
            let Some(topic) = state.topics.get(&resource.resource_name) else {
                return refuse(
                    result,
                    ResponseError::UnknownTopicOrPartition,
                    "there is no such topic",
                );
            };
            (topic.settings.shown(&broker.config), WRITTEN_FOR_TOPIC)
        }
        BROKER if [String::new(), BROKER_ID.to_string()].contains(&resource.resource_name.to_string()) => {
            (broker_settings(broker), WRITTEN_FOR_BROKER)
        }
        _ => {
            return refuse(
                result,
                ResponseError::InvalidRequest,
                "only topics and broker 1 have settings here",
            );
        }
    };
    let wanted = |name: &str| match &resource.configuration_keys {
        Some(keys) => keys.iter().any(|key| key.as_str() == name),
        None => true,
    };
    let entries = shown
        .into_iter()
        .filter(|shown| wanted(shown.name))
        .map(|shown| entry(shown, written_source, version));
    result.with_configs(entries.collect())
}

fn entry(shown: Shown, written_source: i8, version: i16) -> DescribeConfigsResourceResult {
    const SINCE_TYPE: i16 = 3;
    const TEXT: i8 = 2;
    let entry = DescribeConfigsResourceResult::default()
        .with_name(StrBytes::from_static_str(shown.name))
        .with_value(Some(StrBytes::from_string(shown.value)))
        .with_config_source(if shown.written { written_source } else { BY_DEFAULT });
    if version >= SINCE_TYPE {
        entry.with_config_type(TEXT)
    } else {
        entry
    }
}

fn broker_settings(broker: &Shared) -> Vec<Shown> {
    let config = &broker.config;
    let settings = [
        ("auto.create.topics.enable", "true".to_owned()),
        ("max.connections", config.connections_max.to_string()),
        ("message.max.bytes", config.message_bytes_max.to_string()),
        ("num.partitions", config.partitions.to_string()),
    ];
    settings
        .into_iter()
        .map(|(name, value)| Shown {
            name,
            value,
            written: true,
        })
        .collect()
}

fn refuse(
    result: DescribeConfigsResult,
    error: ResponseError,
    reason: &'static str,
) -> DescribeConfigsResult {
    result
        .with_error_code(error.code())
        .with_error_message(Some(StrBytes::from_static_str(reason)))
}
