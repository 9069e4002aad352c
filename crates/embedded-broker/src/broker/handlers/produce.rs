//! Records come in.

use bytes::Bytes;
use kafka_protocol::error::ResponseError;
use kafka_protocol::messages::produce_response::{PartitionProduceResponse, TopicProduceResponse};
use kafka_protocol::messages::{ProduceRequest, ProduceResponse};

use crate::broker::log::batch::{CheckedBatch, check};
use crate::broker::state::Shared;
use crate::broker::transactions::ProducerIdentity;

/// What a producer writes that wants no answer.
pub(super) const NO_ACKNOWLEDGEMENT: i16 = 0;

/// Kafka's number for the first refusal in an answer.
pub(super) fn first_error(answer: &ProduceResponse) -> Option<i16> {
    let partitions = answer
        .responses
        .iter()
        .flat_map(|topic| &topic.partition_responses);
    partitions
        .map(|partition| partition.error_code)
        .find(|code| *code != 0)
}

/// Checks and stores what a producer sends, partition by partition.
pub(super) fn produce(broker: &Shared, request: &ProduceRequest, version: i16) -> ProduceResponse {
    let transactional_id = request.transactional_id.as_ref().map(|id| id.as_str());
    const ALL: i16 = -1;
    const LEADER: i16 = 1;
    let wanted = match request.acks {
        NO_ACKNOWLEDGEMENT | ALL | LEADER => Ok(()),
        _ => Err(ResponseError::InvalidRequiredAcks),
    };
    let topics = request.topic_data.iter().map(|topic| {
        let partitions = topic.partition_data.iter().map(|partition| {
            let stored = wanted
                .and_then(|()| read(partition.records.as_ref()))
                .and_then(|batch| {
                    store(
                        broker,
                        transactional_id,
                        topic.name.as_str(),
                        partition.index,
                        batch,
                    )
                });
            describe(partition.index, stored, version)
        });
        TopicProduceResponse::default()
            .with_name(topic.name.clone())
            .with_partition_responses(partitions.collect())
    });
    let answer = ProduceResponse::default().with_responses(topics.collect());
    broker.news.notify_waiters();
    answer
}

/// Checks a batch; outside the lock, for a CRC over megabytes takes its time.
fn read(records: Option<&Bytes>) -> Result<CheckedBatch, ResponseError> {
    check(records.ok_or(ResponseError::CorruptMessage)?)
}

/// A batch's place: its offset and the start of the log.
type Stored = (i64, i64);

fn store(
    broker: &Shared,
    transactional_id: Option<&str>,
    topic: &str,
    partition: i32,
    batch: CheckedBatch,
) -> Result<Stored, ResponseError> {
    let mut state = broker.lock();
    state.topics.partition(topic, partition)?;
    if batch.header.transactional() {
        let producer = ProducerIdentity {
            id: batch.header.producer_id,
            epoch: batch.header.producer_epoch,
        };
        state
            .transactions
            .may_write(transactional_id, producer, topic, partition)?;
    }
    let base_offset = state.topics.append(topic, partition, batch, &broker.config)?;
    let start_offset = state.topics.partition(topic, partition)?.start_offset();
    Ok((base_offset, start_offset))
}

fn describe(index: i32, stored: Result<Stored, ResponseError>, version: i16) -> PartitionProduceResponse {
    const SINCE_START_OFFSET: i16 = 5;
    const UNKNOWN: i64 = -1;
    let described = PartitionProduceResponse::default()
        .with_index(index)
        .with_log_append_time_ms(UNKNOWN);
    match stored {
        Ok((base_offset, start_offset)) => {
            let described = described.with_base_offset(base_offset);
            if version >= SINCE_START_OFFSET {
                described.with_log_start_offset(start_offset)
            } else {
                described
            }
        }
        Err(error) => described.with_error_code(error.code()).with_base_offset(UNKNOWN),
    }
}
