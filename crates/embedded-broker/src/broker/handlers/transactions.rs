//! Producers get their identity; transactions begin, gather, end.

use std::time::Instant;

use kafka_protocol::error::ResponseError;
use kafka_protocol::messages::add_partitions_to_txn_response::{
    AddPartitionsToTxnPartitionResult, AddPartitionsToTxnTopicResult,
};
use kafka_protocol::messages::txn_offset_commit_response::{
    TxnOffsetCommitResponsePartition, TxnOffsetCommitResponseTopic,
};
use kafka_protocol::messages::{
    AddOffsetsToTxnRequest, AddOffsetsToTxnResponse, AddPartitionsToTxnRequest, AddPartitionsToTxnResponse,
    EndTxnRequest, EndTxnResponse, InitProducerIdRequest, InitProducerIdResponse, ProducerId,
    TxnOffsetCommitRequest, TxnOffsetCommitResponse,
};

use super::{code, offsets};
use crate::broker::groups::offsets::CommittedOffset;
use crate::broker::log::control::Outcome;
use crate::broker::state::{Shared, State};
use crate::broker::transactions::ProducerIdentity;

/// Older versions know a shut-out producer only as one with an old epoch.
fn fencing(error: ResponseError, version: i16, since: i16) -> ResponseError {
    match error {
        ResponseError::ProducerFenced if version < since => ResponseError::InvalidProducerEpoch,
        other => other,
    }
}

/// Gives a producer its number; with a transactional id, also the epoch that shuts earlier owners out.
pub(super) fn init(broker: &Shared, request: &InitProducerIdRequest, version: i16) -> InitProducerIdResponse {
    const SINCE_FENCED: i16 = 4;
    const NOBODY: ProducerIdentity = ProducerIdentity { id: -1, epoch: -1 };
    let mut state = broker.lock();
    let state = &mut *state;
    let present = ProducerIdentity {
        id: request.producer_id.0,
        epoch: request.producer_epoch,
    };
    let given = match &request.transactional_id {
        None => Ok((
            ProducerIdentity {
                id: state.transactions.new_producer_id(),
                epoch: 0,
            },
            None,
        )),
        Some(id) => {
            let present = Some(present).filter(|present| present.id >= 0);
            state.transactions.init(
                id.as_str(),
                request.transaction_timeout_ms,
                present,
                Instant::now(),
            )
        }
    };
    let (producer, error) = match given {
        Ok((producer, left_open)) => {
            if let Some(ended) = left_open {
                state.settle(ended, &broker.config);
                broker.news.notify_waiters();
            }
            (producer, 0)
        }
        Err(error) => (NOBODY, fencing(error, version, SINCE_FENCED).code()),
    };
    InitProducerIdResponse::default()
        .with_error_code(error)
        .with_producer_id(ProducerId(producer.id))
        .with_producer_epoch(producer.epoch)
}

/// Adds partitions to a transaction: all of them, or none.
pub(super) fn add_partitions(
    broker: &Shared,
    request: &AddPartitionsToTxnRequest,
    version: i16,
) -> AddPartitionsToTxnResponse {
    const SINCE_FENCED: i16 = 2;
    let mut state = broker.lock();
    let wanted = || {
        let topics = request.v3_and_below_topics.iter();
        topics.flat_map(|topic| {
            topic
                .partitions
                .iter()
                .map(|partition| (topic.name.to_string(), *partition))
        })
    };
    let all_known = wanted().all(|(topic, partition)| state.topics.partition(&topic, partition).is_ok());
    let added = if all_known {
        let producer = ProducerIdentity {
            id: request.v3_and_below_producer_id.0,
            epoch: request.v3_and_below_producer_epoch,
        };
        let id = request.v3_and_below_transactional_id.as_str();
        state
            .transactions
            .add_partitions(id, producer, wanted(), Instant::now())
    } else {
        Err(ResponseError::OperationNotAttempted)
    };
    let error_of = |topic: &str, partition: i32| match added {
        Err(ResponseError::OperationNotAttempted) if state.topics.partition(topic, partition).is_err() => {
            ResponseError::UnknownTopicOrPartition.code()
        }
        other => code(other.map_err(|error| fencing(error, version, SINCE_FENCED))),
    };
    let topics = request.v3_and_below_topics.iter().map(|topic| {
        let partitions = topic.partitions.iter().map(|partition| {
            AddPartitionsToTxnPartitionResult::default()
                .with_partition_index(*partition)
                .with_partition_error_code(error_of(topic.name.as_str(), *partition))
        });
        AddPartitionsToTxnTopicResult::default()
            .with_name(topic.name.clone())
            .with_results_by_partition(partitions.collect())
    });
    AddPartitionsToTxnResponse::default().with_results_by_topic_v3_and_below(topics.collect())
}

/// Announces that a transaction will commit offsets.
pub(super) fn add_offsets(
    broker: &Shared,
    request: &AddOffsetsToTxnRequest,
    version: i16,
) -> AddOffsetsToTxnResponse {
    const SINCE_FENCED: i16 = 2;
    let mut state = broker.lock();
    let producer = ProducerIdentity {
        id: request.producer_id.0,
        epoch: request.producer_epoch,
    };
    let announced =
        state
            .transactions
            .announce_offsets(request.transactional_id.as_str(), producer, Instant::now());
    let announced = announced.map_err(|error| fencing(error, version, SINCE_FENCED));
    AddOffsetsToTxnResponse::default().with_error_code(code(announced))
}

/// Stages offsets, which count when the transaction commits.
pub(super) fn commit_offsets(
    broker: &Shared,
    request: &TxnOffsetCommitRequest,
    version: i16,
) -> TxnOffsetCommitResponse {
    let now = Instant::now();
    let mut state = broker.lock();
    let allowed = may_commit_offsets(&mut state, request, version, now);
    let topics = request.topics.iter().map(|topic| {
        let partitions = topic.partitions.iter().map(|partition| {
            let staged = allowed.and_then(|()| {
                let metadata = partition.committed_metadata.as_ref();
                offsets::check(&state, topic.name.as_str(), partition.partition_index, metadata)?;
                let key = (
                    request.group_id.to_string(),
                    topic.name.to_string(),
                    partition.partition_index,
                );
                let producer = ProducerIdentity {
                    id: request.producer_id.0,
                    epoch: request.producer_epoch,
                };
                let offset = CommittedOffset::new(partition.committed_offset, metadata);
                state
                    .transactions
                    .stage_offset(request.transactional_id.as_str(), producer, key, offset)
            });
            // This request has never known the newer error for a shut-out producer.
            let staged = staged.map_err(|error| fencing(error, version, i16::MAX));
            TxnOffsetCommitResponsePartition::default()
                .with_partition_index(partition.partition_index)
                .with_error_code(code(staged))
        });
        TxnOffsetCommitResponseTopic::default()
            .with_name(topic.name.clone())
            .with_partitions(partitions.collect())
    });
    TxnOffsetCommitResponse::default().with_topics(topics.collect())
}

/// Whether the consumer behind a transaction is still what it says: this shuts out those whose partitions
/// moved on.
fn may_commit_offsets(
    state: &mut State,
    request: &TxnOffsetCommitRequest,
    version: i16,
    now: Instant,
) -> Result<(), ResponseError> {
    const SINCE_MEMBER: i16 = 3;
    let group = state.groups.get_or_create(request.group_id.as_str(), now)?;
    group.touch(now);
    let says_who = request.generation_id >= 0 || !request.member_id.is_empty();
    if version >= SINCE_MEMBER && says_who {
        group.check_instance(request.member_id.as_str(), request.group_instance_id.as_ref())?;
        group.check_member(request.member_id.as_str(), request.generation_id)?;
    }
    Ok(())
}

/// Commits or aborts a transaction.
pub(super) fn end(broker: &Shared, request: &EndTxnRequest, version: i16) -> EndTxnResponse {
    const SINCE_FENCED: i16 = 2;
    let mut state = broker.lock();
    let producer = ProducerIdentity {
        id: request.producer_id.0,
        epoch: request.producer_epoch,
    };
    let outcome = if request.committed {
        Outcome::Committed
    } else {
        Outcome::Aborted
    };
    let ended = state
        .transactions
        .end(
            request.transactional_id.as_str(),
            producer,
            outcome,
            Instant::now(),
        )
        .map_err(|error| fencing(error, version, SINCE_FENCED));
    let error = match ended {
        Ok(ended) => {
            if let Some(ended) = ended {
                state.settle(ended, &broker.config);
            }
            0
        }
        Err(error) => error.code(),
    };
    drop(state);
    broker.news.notify_waiters();
    EndTxnResponse::default().with_error_code(error)
}
