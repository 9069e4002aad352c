//! Every version that the embedded broker announces is answered, in that version.
//!
//! The codec refuses to write a field that a version lacks, so an answer that works in the newest version may
//! fail in the oldest; and old clients are those that nobody has at hand.

mod calls;

use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use embedded_broker::{BrokerConfig, EmbeddedBroker};
use kafka_protocol::messages::add_partitions_to_txn_request::AddPartitionsToTxnTopic;
use kafka_protocol::messages::create_topics_request::{CreatableTopic, CreatableTopicConfig};
use kafka_protocol::messages::describe_configs_request::DescribeConfigsResource;
use kafka_protocol::messages::fetch_request::{FetchPartition, FetchTopic};
use kafka_protocol::messages::join_group_request::JoinGroupRequestProtocol;
use kafka_protocol::messages::leave_group_request::MemberIdentity;
use kafka_protocol::messages::list_offsets_request::{ListOffsetsPartition, ListOffsetsTopic};
use kafka_protocol::messages::metadata_request::MetadataRequestTopic;
use kafka_protocol::messages::offset_commit_request::{
    OffsetCommitRequestPartition, OffsetCommitRequestTopic,
};
use kafka_protocol::messages::offset_fetch_request::OffsetFetchRequestTopic;
use kafka_protocol::messages::produce_request::{PartitionProduceData, TopicProduceData};
use kafka_protocol::messages::sync_group_request::SyncGroupRequestAssignment;
use kafka_protocol::messages::txn_offset_commit_request::{
    TxnOffsetCommitRequestPartition, TxnOffsetCommitRequestTopic,
};
use kafka_protocol::messages::*;
use kafka_protocol::protocol::StrBytes;

use calls::{add_partitions, commit_request, create, init, join, join_request, ok, produce};

use crate::raw::{ANYBODY, RawClient, batch};
use crate::support::run;

fn text(text: impl Into<String>) -> StrBytes {
    StrBytes::from_string(text.into())
}

#[test]
fn every_announced_version_is_answered_in_that_version() {
    run(async {
        let broker = EmbeddedBroker::start(BrokerConfig::default()).await?;
        let mut client = RawClient::connect(broker.address()).await?;

        let announced = client.ask(&ApiVersionsRequest::default(), 0).await?.api_keys;

        ensure!(announced.len() > 20, "{} request types", announced.len());
        for api in announced {
            let key = ApiKey::try_from(api.api_key)
                .ok()
                .context("a request type that the codec knows")?;
            for version in api.min_version..=api.max_version {
                let answered = exchange(&mut client, key, version).await;
                answered.with_context(|| format!("{key:?} version {version}"))?;
            }
        }
        broker.shutdown().await;
        Ok(())
    });
}

/// Asks something that succeeds, and something that is refused.
async fn exchange(client: &mut RawClient, key: ApiKey, version: i16) -> Result<()> {
    let name = format!("{key:?}-{version}");
    match key {
        ApiKey::ApiVersions => {
            let request = ApiVersionsRequest::default();
            let request = if version < 3 {
                request
            } else {
                request
                    .with_client_software_name(text("raw"))
                    .with_client_software_version(text("1"))
            };
            ok(client.ask(&request, version).await?.error_code)
        }
        ApiKey::Metadata => {
            let asked = [name.as_str(), "not a name"]
                .map(|name| MetadataRequestTopic::default().with_name(Some(TopicName(text(name)))));
            let answer = client
                .ask(
                    &MetadataRequest::default().with_topics(Some(asked.into())),
                    version,
                )
                .await?;
            let codes: Vec<i16> = answer.topics.iter().map(|topic| topic.error_code).collect();
            ensure!(codes == [0, 17], "{codes:?}");
            Ok(())
        }
        ApiKey::FindCoordinator => {
            let answer = client
                .ask(
                    &FindCoordinatorRequest::default().with_key(text("group")),
                    version,
                )
                .await?;
            ok(answer.error_code)?;
            let refused = client.ask(&FindCoordinatorRequest::default(), version).await?;
            ensure!(refused.error_code == 42, "{refused:?}");
            Ok(())
        }
        ApiKey::CreateTopics => {
            let config = CreatableTopicConfig::default()
                .with_name(text("retention.ms"))
                .with_value(Some(text("1000")));
            let topic = CreatableTopic::default()
                .with_name(TopicName(text(&name)))
                .with_num_partitions(1)
                .with_replication_factor(1)
                .with_configs(vec![config]);
            let request = CreateTopicsRequest::default()
                .with_topics(vec![topic])
                .with_timeout_ms(1_000);
            let first = client.ask(&request, version).await?.topics[0].error_code;
            let second = client.ask(&request, version).await?.topics[0].error_code;
            ensure!((first, second) == (0, 36), "{first}, {second}");
            Ok(())
        }
        ApiKey::DeleteTopics => {
            create(client, &name).await?;
            let request = DeleteTopicsRequest::default().with_topic_names(vec![TopicName(text(&name))]);
            let first = client.ask(&request, version).await?.responses[0].error_code;
            let second = client.ask(&request, version).await?.responses[0].error_code;
            ensure!((first, second) == (0, 3), "{first}, {second}");
            Ok(())
        }
        ApiKey::DescribeConfigs => {
            create(client, &name).await?;
            let resource = |kind: i8, name: &str| {
                DescribeConfigsResource::default()
                    .with_resource_type(kind)
                    .with_resource_name(text(name))
            };
            let asked = [(2, name.as_str()), (4, "1"), (2, "missing"), (9, "")];
            let asked = asked.map(|(kind, name)| resource(kind, name).with_configuration_keys(None));
            let answer = client
                .ask(
                    &DescribeConfigsRequest::default().with_resources(asked.into()),
                    version,
                )
                .await?;
            let codes: Vec<i16> = answer.results.iter().map(|result| result.error_code).collect();
            ensure!(codes == [0, 0, 3, 42], "{codes:?}");
            Ok(())
        }
        ApiKey::Produce => {
            create(client, &name).await?;
            let answer = produce(client, &name, version).await?;
            ok(answer.responses[0].partition_responses[0].error_code)?;
            let missing = produce(client, "missing", version).await?;
            ensure!(
                missing.responses[0].partition_responses[0].error_code == 3,
                "{missing:?}"
            );
            Ok(())
        }
        ApiKey::Fetch => {
            create(client, &name).await?;
            produce(client, &name, 9).await?;
            for isolation in [0, 1] {
                let partition = FetchPartition::default().with_partition_max_bytes(1 << 20);
                let beyond = partition.clone().with_fetch_offset(99);
                let topic = FetchTopic::default()
                    .with_topic(TopicName(text(&name)))
                    .with_partitions(vec![partition, beyond]);
                let request = FetchRequest::default()
                    .with_max_wait_ms(100)
                    .with_min_bytes(1)
                    .with_max_bytes(1 << 20)
                    .with_isolation_level(isolation)
                    .with_topics(vec![topic]);
                let answer = client.ask(&request, version).await?;
                let partitions = &answer.responses[0].partitions;
                let records = partitions[0].records.as_ref().map_or(0, Bytes::len);
                ensure!(records > 61 && partitions[1].error_code == 1, "{answer:?}");
            }
            Ok(())
        }
        ApiKey::ListOffsets => {
            create(client, &name).await?;
            produce(client, &name, 9).await?;
            for (timestamp, offset) in [(-2, 0), (-1, 1), (1_700_000_000_000, 0), (1_800_000_000_000, -1)] {
                let partition = ListOffsetsPartition::default().with_timestamp(timestamp);
                let topic = ListOffsetsTopic::default()
                    .with_name(TopicName(text(&name)))
                    .with_partitions(vec![partition]);
                let answer = client
                    .ask(&ListOffsetsRequest::default().with_topics(vec![topic]), version)
                    .await?;
                let found = &answer.topics[0].partitions[0];
                ensure!(
                    found.error_code == 0 && found.offset == offset,
                    "{timestamp}: {found:?}"
                );
            }
            Ok(())
        }
        ApiKey::JoinGroup => {
            let joined = join(client, &name, version).await?;
            ensure!(
                joined.members.len() == 1 && joined.leader == joined.member_id,
                "{joined:?}"
            );
            let stranger = join_request(&name).with_member_id(text("a stranger"));
            let refused = client.ask(&stranger, version).await?;
            ensure!(refused.error_code == 25, "{refused:?}");
            Ok(())
        }
        ApiKey::SyncGroup => {
            let joined = join(client, &name, 7).await?;
            let assignment = SyncGroupRequestAssignment::default()
                .with_member_id(joined.member_id.clone())
                .with_assignment(Bytes::from_static(b"all"));
            let mut request = SyncGroupRequest::default()
                .with_group_id(GroupId(text(&name)))
                .with_generation_id(joined.generation_id)
                .with_member_id(joined.member_id)
                .with_assignments(vec![assignment]);
            if version >= 5 {
                request = request
                    .with_protocol_type(Some(text("consumer")))
                    .with_protocol_name(Some(text("range")));
            }
            let synced = client.ask(&request, version).await?;
            ensure!(synced.error_code == 0 && synced.assignment == "all", "{synced:?}");
            let refused = client.ask(&request.with_generation_id(99), version).await?;
            ensure!(refused.error_code == 22, "{refused:?}");
            Ok(())
        }
        ApiKey::Heartbeat => {
            let joined = join(client, &name, 7).await?;
            let request = HeartbeatRequest::default()
                .with_group_id(GroupId(text(&name)))
                .with_generation_id(joined.generation_id)
                .with_member_id(joined.member_id);
            ok(client.ask(&request, version).await?.error_code)?;
            let refused = client
                .ask(&request.with_member_id(text("a stranger")), version)
                .await?;
            ensure!(refused.error_code == 25, "{refused:?}");
            Ok(())
        }
        ApiKey::LeaveGroup => {
            let joined = join(client, &name, 7).await?;
            let mut request = LeaveGroupRequest::default().with_group_id(GroupId(text(&name)));
            if version < 3 {
                request = request.with_member_id(joined.member_id);
            } else {
                request =
                    request.with_members(vec![MemberIdentity::default().with_member_id(joined.member_id)]);
            }
            for expected in [0, 25] {
                let left = client.ask(&request, version).await?;
                let code = left
                    .members
                    .first()
                    .map_or(left.error_code, |member| member.error_code);
                ensure!(code == expected, "{left:?}");
            }
            Ok(())
        }
        ApiKey::DescribeGroups => {
            join(client, &name, 7).await?;
            let asked = vec![GroupId(text(&name)), GroupId(text("nobody"))];
            let answer = client
                .ask(&DescribeGroupsRequest::default().with_groups(asked), version)
                .await?;
            let states: Vec<&str> = answer
                .groups
                .iter()
                .map(|group| group.group_state.as_str())
                .collect();
            ensure!(
                states == ["CompletingRebalance", "Dead"] && answer.groups[0].members.len() == 1,
                "{answer:?}"
            );
            Ok(())
        }
        ApiKey::ListGroups => {
            join(client, &name, 7).await?;
            let answer = client.ask(&ListGroupsRequest::default(), version).await?;
            ensure!(
                answer.groups.iter().any(|group| group.group_id.as_str() == name),
                "{answer:?}"
            );
            Ok(())
        }
        ApiKey::OffsetCommit => {
            create(client, &name).await?;
            let answer = client.ask(&commit_request(&name), version).await?;
            ok(answer.topics[0].partitions[0].error_code)?;
            let missing = client.ask(&commit_request("missing"), version).await?;
            ensure!(missing.topics[0].partitions[0].error_code == 3, "{missing:?}");
            Ok(())
        }
        ApiKey::OffsetFetch => {
            create(client, &name).await?;
            client.ask(&commit_request(&name), 8).await?;
            let topic = OffsetFetchRequestTopic::default()
                .with_name(TopicName(text(&name)))
                .with_partition_indexes(vec![0, 1]);
            let asked = OffsetFetchRequest::default().with_group_id(GroupId(text(&name)));
            let answer = client
                .ask(&asked.clone().with_topics(Some(vec![topic])), version)
                .await?;
            let partitions = &answer.topics[0].partitions;
            let offsets: Vec<i64> = partitions
                .iter()
                .map(|partition| partition.committed_offset)
                .collect();
            ensure!(
                offsets == [5, -1] && partitions[0].metadata == Some(text("text")),
                "{answer:?}"
            );
            if version >= 2 {
                let all = client.ask(&asked.with_topics(None), version).await?;
                ensure!(
                    all.topics.len() == 1 && all.topics[0].partitions.len() == 1,
                    "{all:?}"
                );
            }
            Ok(())
        }
        ApiKey::InitProducerId => {
            let request = InitProducerIdRequest::default()
                .with_transactional_id(None)
                .with_transaction_timeout_ms(1_000);
            ok(client.ask(&request, version).await?.error_code)?;
            let request = request.with_transactional_id(Some(TransactionalId(text(&name))));
            let first = client.ask(&request, version).await?;
            let second = client.ask(&request, version).await?;
            ensure!(
                first.producer_id == second.producer_id && second.producer_epoch == first.producer_epoch + 1,
                "{first:?} {second:?}"
            );
            let refused = client
                .ask(&request.with_transaction_timeout_ms(i32::MAX), version)
                .await?;
            ensure!(refused.error_code == 50, "{refused:?}");
            Ok(())
        }
        ApiKey::AddPartitionsToTxn => {
            create(client, &name).await?;
            let producer = init(client, &name).await?;
            for (topics, expected) in [
                (vec![name.as_str()], vec![0]),
                (vec![name.as_str(), "missing"], vec![55, 3]),
            ] {
                let answer = client
                    .ask(&add_partitions(&name, producer, &topics), version)
                    .await?;
                let results = answer.results_by_topic_v3_and_below.iter();
                let codes: Vec<i16> = results
                    .map(|topic| topic.results_by_partition[0].partition_error_code)
                    .collect();
                ensure!(codes == expected, "{codes:?}");
            }
            let fenced = client
                .ask(&add_partitions(&name, (producer.0, 99), &[&name]), version)
                .await?;
            let code = fenced.results_by_topic_v3_and_below[0].results_by_partition[0].partition_error_code;
            ensure!(code == if version >= 2 { 90 } else { 47 }, "{fenced:?}");
            Ok(())
        }
        ApiKey::AddOffsetsToTxn => {
            let (id, epoch) = init(client, &name).await?;
            let request = AddOffsetsToTxnRequest::default()
                .with_transactional_id(TransactionalId(text(&name)))
                .with_group_id(GroupId(text(&name)))
                .with_producer_id(id)
                .with_producer_epoch(epoch);
            ok(client.ask(&request, version).await?.error_code)?;
            let stranger = client
                .ask(&request.with_producer_id(ProducerId(1)), version)
                .await?;
            ensure!(stranger.error_code == 49, "{stranger:?}");
            Ok(())
        }
        ApiKey::TxnOffsetCommit => {
            create(client, &name).await?;
            let (id, epoch) = init(client, &name).await?;
            let partition = TxnOffsetCommitRequestPartition::default()
                .with_committed_offset(5)
                .with_committed_metadata(Some(text("text")));
            let topic = TxnOffsetCommitRequestTopic::default()
                .with_name(TopicName(text(&name)))
                .with_partitions(vec![partition]);
            let request = TxnOffsetCommitRequest::default()
                .with_transactional_id(TransactionalId(text(&name)))
                .with_group_id(GroupId(text(&name)))
                .with_producer_id(id)
                .with_producer_epoch(epoch)
                .with_topics(vec![topic]);
            let too_early = client.ask(&request, version).await?.topics[0].partitions[0].error_code;
            client
                .ask(&add_partitions(&name, (id, epoch), &[&name]), 3)
                .await?;
            let staged = client.ask(&request, version).await?.topics[0].partitions[0].error_code;
            ensure!((too_early, staged) == (48, 0), "{too_early}, {staged}");
            Ok(())
        }
        ApiKey::EndTxn => {
            create(client, &name).await?;
            let producer = init(client, &name).await?;
            let request = EndTxnRequest::default()
                .with_transactional_id(TransactionalId(text(&name)))
                .with_producer_id(producer.0)
                .with_producer_epoch(producer.1)
                .with_committed(true);
            let nothing_open = client.ask(&request, version).await?.error_code;
            client.ask(&add_partitions(&name, producer, &[&name]), 3).await?;
            let committed = client.ask(&request, version).await?.error_code;
            let repeated = client.ask(&request, version).await?.error_code;
            ensure!(
                (nothing_open, committed, repeated) == (48, 0, 0),
                "{nothing_open}, {committed}, {repeated}"
            );
            Ok(())
        }
        other => bail!("{other:?} is announced and not checked here"),
    }
}
