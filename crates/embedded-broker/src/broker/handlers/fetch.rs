//! Records go out, as soon as there are enough of them.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use kafka_protocol::error::ResponseError;
use kafka_protocol::messages::fetch_request::FetchPartition;
use kafka_protocol::messages::fetch_response::{AbortedTransaction, FetchableTopicResponse, PartitionData};
use kafka_protocol::messages::{BrokerId, FetchRequest, FetchResponse, ProducerId};
use tokio::time::{Instant, timeout_at};

use crate::broker::limits::{FETCH_BYTES_MAX, FETCH_WAIT_MAX};
use crate::broker::log::partition::{AbortedRange, PartitionLog, Slice};
use crate::broker::state::{Shared, State};

/// Answers with records; waits for them as long as the client allows.
pub(super) async fn fetch(broker: &Shared, request: &FetchRequest, version: i16) -> FetchResponse {
    if request.session_id != 0 {
        // Sessions are never opened here, so this one is somebody else's; the client then sends whole
        // requests.
        return FetchResponse::default().with_error_code(ResponseError::FetchSessionIdNotFound.code());
    }
    let patience = Duration::from_millis(u64::try_from(request.max_wait_ms).unwrap_or(0)).min(FETCH_WAIT_MAX);
    let deadline = Instant::now() + patience;
    loop {
        let news = broker.news.notified();
        tokio::pin!(news);
        // Listen before looking: what arrives between the look and the wait must wake us.
        news.as_mut().enable();
        let ready = is_ready(&broker.lock(), request);
        if ready || timeout_at(deadline, news).await.is_err() {
            return read(broker, request, version);
        }
    }
}

/// Reads only what transactions have decided.
fn committed_only(request: &FetchRequest) -> bool {
    const READ_COMMITTED: i8 = 1;
    request.isolation_level == READ_COMMITTED
}

/// Whether there are enough bytes, or an error to tell.
fn is_ready(state: &State, request: &FetchRequest) -> bool {
    let enough = usize::try_from(request.min_bytes)
        .unwrap_or(0)
        .clamp(1, FETCH_BYTES_MAX);
    let mut bytes = 0;
    for topic in &request.topics {
        for partition in &topic.partitions {
            let readable = state
                .topics
                .partition(topic.topic.as_str(), partition.partition)
                .and_then(|log| log.readable(partition.fetch_offset, committed_only(request), enough));
            match readable {
                Ok(more) => bytes += more,
                Err(_) => return true,
            }
            if bytes >= enough {
                return true;
            }
        }
    }
    false
}

/// What one partition gives: copied out of the lock as references, joined outside it.
struct Found {
    partition: i32,
    result: Result<Slice, ResponseError>,
    high_watermark: i64,
    last_stable_offset: i64,
    start_offset: i64,
}

fn read(broker: &Shared, request: &FetchRequest, version: i16) -> FetchResponse {
    let mut bytes_left = usize::try_from(request.max_bytes)
        .unwrap_or(0)
        .min(FETCH_BYTES_MAX);
    let mut nothing_yet = true;
    let mut found = Vec::with_capacity(request.topics.len());
    {
        let state = broker.lock();
        for topic in &request.topics {
            let mut partitions = Vec::with_capacity(topic.partitions.len());
            for partition in &topic.partitions {
                let looked = state
                    .topics
                    .partition(topic.topic.as_str(), partition.partition)
                    .map(|log| look(log, partition, committed_only(request), bytes_left, nothing_yet));
                let looked = looked.unwrap_or_else(|error| Found::nothing(partition.partition, error));
                if let Ok(slice) = &looked.result {
                    bytes_left = bytes_left.saturating_sub(slice.len);
                    nothing_yet &= slice.batches.is_empty();
                }
                partitions.push(looked);
            }
            found.push((topic.topic.clone(), partitions));
        }
    }
    let responses = found.into_iter().map(|(topic, partitions)| {
        let partitions = partitions
            .into_iter()
            .map(|found| describe(found, committed_only(request), version));
        FetchableTopicResponse::default()
            .with_topic(topic)
            .with_partitions(partitions.collect())
    });
    FetchResponse::default().with_responses(responses.collect())
}

fn look(
    log: &PartitionLog,
    asked: &FetchPartition,
    committed_only: bool,
    bytes_left: usize,
    first: bool,
) -> Found {
    let most = usize::try_from(asked.partition_max_bytes)
        .unwrap_or(0)
        .min(bytes_left);
    Found {
        partition: asked.partition,
        result: log.read(asked.fetch_offset, committed_only, most, first),
        high_watermark: log.end_offset(),
        last_stable_offset: log.last_stable_offset(),
        start_offset: log.start_offset(),
    }
}

impl Found {
    fn nothing(partition: i32, error: ResponseError) -> Self {
        const UNKNOWN: i64 = -1;
        Self {
            partition,
            result: Err(error),
            high_watermark: UNKNOWN,
            last_stable_offset: UNKNOWN,
            start_offset: UNKNOWN,
        }
    }
}

fn describe(found: Found, committed_only: bool, version: i16) -> PartitionData {
    const SINCE_START_OFFSET: i16 = 5;
    const SINCE_READ_REPLICA: i16 = 11;
    const NO_REPLICA: BrokerId = BrokerId(-1);
    let mut data = PartitionData::default()
        .with_partition_index(found.partition)
        .with_high_watermark(found.high_watermark)
        .with_last_stable_offset(found.last_stable_offset)
        .with_aborted_transactions(None);
    if version >= SINCE_START_OFFSET {
        data = data.with_log_start_offset(found.start_offset);
    }
    if version >= SINCE_READ_REPLICA {
        data = data.with_preferred_read_replica(NO_REPLICA);
    }
    match found.result {
        Err(error) => data
            .with_error_code(error.code())
            .with_records(Some(Bytes::new())),
        Ok(slice) => {
            if committed_only {
                data = data.with_aborted_transactions(Some(slice.aborted.iter().map(aborted).collect()));
            }
            data.with_records(Some(join(slice)))
        }
    }
}

fn aborted(range: &AbortedRange) -> AbortedTransaction {
    AbortedTransaction::default()
        .with_producer_id(ProducerId(range.producer_id))
        .with_first_offset(range.first_offset)
}

fn join(slice: Slice) -> Bytes {
    match <[Bytes; 1]>::try_from(slice.batches) {
        Ok([only]) => only,
        Err(batches) => {
            let mut joined = BytesMut::with_capacity(slice.len);
            for batch in batches {
                joined.extend_from_slice(&batch);
            }
            joined.freeze()
        }
    }
}
