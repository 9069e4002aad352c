//! One function per request type: decode, do it under the lock, encode.

mod cluster;
mod configs;
mod fetch;
mod list_offsets;
mod membership;
mod offsets;
mod produce;
mod topics;
mod transactions;

use bytes::BytesMut;
use kafka_protocol::error::ResponseError;
use kafka_protocol::messages::{
    AddOffsetsToTxnRequest, AddPartitionsToTxnRequest, ApiKey, CreateTopicsRequest, DeleteTopicsRequest,
    DescribeConfigsRequest, DescribeGroupsRequest, EndTxnRequest, FetchRequest, FindCoordinatorRequest,
    HeartbeatRequest, InitProducerIdRequest, JoinGroupRequest, LeaveGroupRequest, ListGroupsRequest,
    ListOffsetsRequest, MetadataRequest, OffsetCommitRequest, OffsetFetchRequest, ProduceRequest,
    SyncGroupRequest, TxnOffsetCommitRequest,
};

use super::state::Shared;
use super::wire::frame::{FrameError, RequestFrame, encode};

/// What is known of a client besides its requests.
#[derive(Clone, Debug)]
pub(super) struct Client {
    /// Where it connects from, as Kafka shows it: `/127.0.0.1`.
    pub(super) host: String,
}

/// Handles one request; `None` when the client wants no answer.
///
/// # Errors
/// [`FrameError`] when the body cannot be decoded or the answer not be encoded.
pub(super) async fn answer(
    broker: &Shared,
    client: &Client,
    frame: &RequestFrame,
) -> Result<Option<BytesMut>, FrameError> {
    let version = frame.version;
    let bytes = match frame.key {
        ApiKey::ApiVersions => frame.encode(&cluster::api_versions(ResponseError::Unknown(0))),
        ApiKey::Metadata => frame.encode(&cluster::metadata(
            broker,
            &frame.decode::<MetadataRequest>()?,
            version,
        )),
        ApiKey::FindCoordinator => frame.encode(&cluster::find_coordinator(
            broker,
            &frame.decode::<FindCoordinatorRequest>()?,
            version,
        )),
        ApiKey::CreateTopics => frame.encode(&topics::create(
            broker,
            &frame.decode::<CreateTopicsRequest>()?,
            version,
        )),
        ApiKey::DeleteTopics => frame.encode(&topics::delete(
            broker,
            &frame.decode::<DeleteTopicsRequest>()?,
            version,
        )),
        ApiKey::DescribeConfigs => frame.encode(&configs::describe(
            broker,
            &frame.decode::<DescribeConfigsRequest>()?,
            version,
        )),
        ApiKey::Produce => {
            let request = frame.decode::<ProduceRequest>()?;
            let answer = produce::produce(broker, &request, version);
            if request.acks == produce::NO_ACKNOWLEDGEMENT {
                return match produce::first_error(&answer) {
                    Some(code) => Err(FrameError::RefusedInSilence { code }),
                    None => Ok(None),
                };
            }
            frame.encode(&answer)
        }
        ApiKey::Fetch => frame.encode(&fetch::fetch(broker, &frame.decode::<FetchRequest>()?, version).await),
        ApiKey::ListOffsets => frame.encode(&list_offsets::list(
            broker,
            &frame.decode::<ListOffsetsRequest>()?,
            version,
        )),
        ApiKey::JoinGroup => {
            let request = frame.decode::<JoinGroupRequest>()?;
            frame.encode(&membership::join(broker, client, &frame.client_id, request, version).await)
        }
        ApiKey::SyncGroup => {
            frame.encode(&membership::sync(broker, frame.decode::<SyncGroupRequest>()?, version).await)
        }
        ApiKey::Heartbeat => frame.encode(&membership::heartbeat(
            broker,
            &frame.decode::<HeartbeatRequest>()?,
        )),
        ApiKey::LeaveGroup => frame.encode(&membership::leave(
            broker,
            &frame.decode::<LeaveGroupRequest>()?,
            version,
        )),
        ApiKey::DescribeGroups => frame.encode(&membership::describe(
            broker,
            frame.decode::<DescribeGroupsRequest>()?,
            version,
        )),
        ApiKey::ListGroups => frame.encode(&membership::list(
            broker,
            &frame.decode::<ListGroupsRequest>()?,
            version,
        )),
        ApiKey::OffsetCommit => {
            frame.encode(&offsets::commit(broker, &frame.decode::<OffsetCommitRequest>()?))
        }
        ApiKey::OffsetFetch => frame.encode(&offsets::fetch(
            broker,
            &frame.decode::<OffsetFetchRequest>()?,
            version,
        )),
        ApiKey::InitProducerId => frame.encode(&transactions::init(
            broker,
            &frame.decode::<InitProducerIdRequest>()?,
            version,
        )),
        ApiKey::AddPartitionsToTxn => frame.encode(&transactions::add_partitions(
            broker,
            &frame.decode::<AddPartitionsToTxnRequest>()?,
            version,
        )),
        ApiKey::AddOffsetsToTxn => frame.encode(&transactions::add_offsets(
            broker,
            &frame.decode::<AddOffsetsToTxnRequest>()?,
            version,
        )),
        ApiKey::TxnOffsetCommit => frame.encode(&transactions::commit_offsets(
            broker,
            &frame.decode::<TxnOffsetCommitRequest>()?,
            version,
        )),
        ApiKey::EndTxn => frame.encode(&transactions::end(
            broker,
            &frame.decode::<EndTxnRequest>()?,
            version,
        )),
        key => return Err(FrameError::UnknownApi { key: key as i16 }),
    };
    bytes.map(Some)
}

/// Answers `ApiVersions` of a version from the future, in the oldest format, which every client reads.
///
/// # Errors
/// [`FrameError::Encode`] when the codec refuses.
pub(super) fn answer_unknown_api_versions(correlation_id: i32) -> Result<BytesMut, FrameError> {
    let answer = cluster::api_versions(ResponseError::UnsupportedVersion);
    encode(ApiKey::ApiVersions, 0, correlation_id, &answer)
}

/// Kafka's number for an outcome; 0 is success.
fn code(outcome: Result<(), ResponseError>) -> i16 {
    outcome.err().map_or(0, |error| error.code())
}
