//! How far groups have come: committed and asked for.

use std::time::Instant;

use kafka_protocol::error::ResponseError;
use kafka_protocol::messages::offset_commit_request::OffsetCommitRequestPartition;
use kafka_protocol::messages::offset_commit_response::{
    OffsetCommitResponsePartition, OffsetCommitResponseTopic,
};
use kafka_protocol::messages::offset_fetch_response::{
    OffsetFetchResponsePartition, OffsetFetchResponseTopic,
};
use kafka_protocol::messages::{
    OffsetCommitRequest, OffsetCommitResponse, OffsetFetchRequest, OffsetFetchResponse, TopicName,
};
use kafka_protocol::protocol::StrBytes;

use super::code;
use crate::broker::groups::offsets::CommittedOffset;
use crate::broker::limits::OFFSET_METADATA_BYTES_MAX;
use crate::broker::state::{Shared, State};

/// Commits offsets.
pub(super) fn commit(broker: &Shared, request: &OffsetCommitRequest) -> OffsetCommitResponse {
    let now = Instant::now();
    let mut state = broker.lock();
    let group_id = request.group_id.as_str();
    let allowed = state.groups.get_or_create(group_id, now).and_then(|group| {
        group.check_instance(request.member_id.as_str(), request.group_instance_id.as_ref())?;
        group.may_commit(
            request.member_id.as_str(),
            request.generation_id_or_member_epoch,
            now,
        )
    });
    let topics = request.topics.iter().map(|topic| {
        let partitions = topic.partitions.iter().map(|partition| {
            let committed =
                allowed.and_then(|()| commit_one(&mut state, group_id, topic.name.as_str(), partition));
            OffsetCommitResponsePartition::default()
                .with_partition_index(partition.partition_index)
                .with_error_code(code(committed))
        });
        OffsetCommitResponseTopic::default()
            .with_name(topic.name.clone())
            .with_partitions(partitions.collect())
    });
    OffsetCommitResponse::default().with_topics(topics.collect())
}

fn commit_one(
    state: &mut State,
    group_id: &str,
    topic: &str,
    partition: &OffsetCommitRequestPartition,
) -> Result<(), ResponseError> {
    let metadata = partition.committed_metadata.as_ref();
    check(state, topic, partition.partition_index, metadata)?;
    let group = state.groups.get(group_id).ok_or(ResponseError::UnknownMemberId)?;
    if group.offsets.get(topic, partition.partition_index).is_none() {
        state.groups.room_for_offset()?;
    }
    let offset = CommittedOffset::new(partition.committed_offset, metadata);
    if let Some(group) = state.groups.get_mut(group_id) {
        group.offsets.set(topic, partition.partition_index, offset);
    }
    Ok(())
}

/// Whether an offset may be committed for a partition, whoever asks.
///
/// # Errors
/// `UnknownTopicOrPartition`, `OffsetMetadataTooLarge`.
pub(super) fn check(
    state: &State,
    topic: &str,
    partition: i32,
    metadata: Option<&StrBytes>,
) -> Result<(), ResponseError> {
    state.topics.partition(topic, partition)?;
    if metadata.is_some_and(|metadata| metadata.len() > OFFSET_METADATA_BYTES_MAX) {
        return Err(ResponseError::OffsetMetadataTooLarge);
    }
    Ok(())
}

/// Answers committed offsets: of the partitions asked for, or of all.
pub(super) fn fetch(broker: &Shared, request: &OffsetFetchRequest, version: i16) -> OffsetFetchResponse {
    let state = broker.lock();
    let group_id = request.group_id.as_str();
    let wanted: Vec<(String, Vec<i32>)> = match &request.topics {
        Some(topics) => topics
            .iter()
            .map(|topic| (topic.name.to_string(), topic.partition_indexes.clone()))
            .collect(),
        None => match state.groups.get(group_id) {
            Some(group) => group
                .offsets
                .iter()
                .map(|(topic, partitions)| (topic.to_owned(), partitions))
                .collect(),
            None => Vec::new(),
        },
    };
    let topics = wanted.into_iter().map(|(topic, partitions)| {
        let partitions = partitions
            .into_iter()
            .map(|partition| fetch_one(&state, request, &topic, partition, version))
            .collect();
        OffsetFetchResponseTopic::default()
            .with_name(TopicName(StrBytes::from_string(topic)))
            .with_partitions(partitions)
    });
    OffsetFetchResponse::default().with_topics(topics.collect())
}

fn fetch_one(
    state: &State,
    request: &OffsetFetchRequest,
    topic: &str,
    partition: i32,
    version: i16,
) -> OffsetFetchResponsePartition {
    const SINCE_EPOCH: i16 = 5;
    const NO_EPOCH: i32 = -1;
    const NO_OFFSET: i64 = -1;
    let mut answer = OffsetFetchResponsePartition::default()
        .with_partition_index(partition)
        .with_committed_offset(NO_OFFSET)
        .with_metadata(Some(StrBytes::default()));
    if version >= SINCE_EPOCH {
        answer = answer.with_committed_leader_epoch(NO_EPOCH);
    }
    let group_id = request.group_id.as_str();
    if request.require_stable && state.transactions.is_undecided(group_id, topic, partition) {
        // The client asks again until the transaction has ended.
        return answer.with_error_code(ResponseError::UnstableOffsetCommit.code());
    }
    match state
        .groups
        .get(group_id)
        .and_then(|group| group.offsets.get(topic, partition))
    {
        Some(committed) => answer
            .with_committed_offset(committed.offset)
            .with_metadata(Some(committed.metadata.clone())),
        None => answer,
    }
}
