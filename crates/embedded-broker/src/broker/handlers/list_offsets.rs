//! Where a log begins, where it ends, and which offset belongs to a time.

use kafka_protocol::error::ResponseError;
use kafka_protocol::messages::list_offsets_response::{
    ListOffsetsPartitionResponse, ListOffsetsTopicResponse,
};
use kafka_protocol::messages::{ListOffsetsRequest, ListOffsetsResponse};

use crate::broker::log::partition::PartitionLog;
use crate::broker::state::Shared;

/// Answers which offset belongs to which time.
pub(super) fn list(broker: &Shared, request: &ListOffsetsRequest, version: i16) -> ListOffsetsResponse {
    const SINCE_EPOCH: i16 = 4;
    const READ_COMMITTED: i8 = 1;
    let committed_only = request.isolation_level == READ_COMMITTED;
    let state = broker.lock();
    let topics = request.topics.iter().map(|topic| {
        let partitions = topic.partitions.iter().map(|asked| {
            let found = state
                .topics
                .partition(topic.name.as_str(), asked.partition_index)
                .and_then(|log| find(log, asked.timestamp, committed_only));
            let mut answer =
                ListOffsetsPartitionResponse::default().with_partition_index(asked.partition_index);
            if version >= SINCE_EPOCH {
                answer = answer.with_leader_epoch(0);
            }
            match found {
                Ok((offset, timestamp)) => answer.with_offset(offset).with_timestamp(timestamp),
                Err(error) => answer
                    .with_error_code(error.code())
                    .with_offset(NOTHING)
                    .with_timestamp(NOTHING),
            }
        });
        ListOffsetsTopicResponse::default()
            .with_name(topic.name.clone())
            .with_partitions(partitions.collect())
    });
    ListOffsetsResponse::default().with_topics(topics.collect())
}

/// No offset, no time.
const NOTHING: i64 = -1;

fn find(log: &PartitionLog, timestamp: i64, committed_only: bool) -> Result<(i64, i64), ResponseError> {
    const LATEST: i64 = -1;
    const EARLIEST: i64 = -2;
    match timestamp {
        EARLIEST => Ok((log.start_offset(), NOTHING)),
        LATEST if committed_only => Ok((log.last_stable_offset(), NOTHING)),
        LATEST => Ok((log.end_offset(), NOTHING)),
        time if time >= 0 => Ok(log.find_time(time).unwrap_or((NOTHING, NOTHING))),
        _ => Err(ResponseError::UnsupportedVersion), // special times of later versions
    }
}
