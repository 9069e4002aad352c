//! Requests that several exchanges need.

use super::*;

pub(super) fn ok(code: i16) -> Result<()> {
    ensure!(code == 0, "error {code}");
    Ok(())
}

pub(super) async fn create(client: &mut RawClient, name: &str) -> Result<()> {
    let topic = CreatableTopic::default()
        .with_name(TopicName(text(name)))
        .with_num_partitions(1)
        .with_replication_factor(1);
    let answer = client
        .ask(&CreateTopicsRequest::default().with_topics(vec![topic]), 5)
        .await?;
    match answer.topics[0].error_code {
        0 | 36 => Ok(()),
        code => bail!("creating {name}: error {code}"),
    }
}

pub(super) async fn produce(client: &mut RawClient, topic: &str, version: i16) -> Result<ProduceResponse> {
    let partition = PartitionProduceData::default().with_records(Some(batch(&[b"value"], ANYBODY)?));
    let topic = TopicProduceData::default()
        .with_name(TopicName(text(topic)))
        .with_partition_data(vec![partition]);
    let request = ProduceRequest::default()
        .with_acks(-1)
        .with_timeout_ms(1_000)
        .with_topic_data(vec![topic]);
    client.ask(&request, version).await
}

pub(super) fn join_request(group: &str) -> JoinGroupRequest {
    let protocol = JoinGroupRequestProtocol::default()
        .with_name(text("range"))
        .with_metadata(Bytes::from_static(b"m"));
    JoinGroupRequest::default()
        .with_group_id(GroupId(text(group)))
        .with_session_timeout_ms(10_000)
        .with_rebalance_timeout_ms(10_000)
        .with_protocol_type(text("consumer"))
        .with_protocols(vec![protocol])
}

pub(super) async fn join(client: &mut RawClient, group: &str, version: i16) -> Result<JoinGroupResponse> {
    const MEMBER_ID_REQUIRED: i16 = 79;
    let mut answer = client.ask(&join_request(group), version).await?;
    if answer.error_code == MEMBER_ID_REQUIRED {
        answer = client
            .ask(&join_request(group).with_member_id(answer.member_id), version)
            .await?;
    }
    ok(answer.error_code)?;
    Ok(answer)
}

pub(super) fn commit_request(name: &str) -> OffsetCommitRequest {
    let partition = OffsetCommitRequestPartition::default()
        .with_committed_offset(5)
        .with_committed_metadata(Some(text("text")));
    let topic = OffsetCommitRequestTopic::default()
        .with_name(TopicName(text(name)))
        .with_partitions(vec![partition]);
    OffsetCommitRequest::default()
        .with_group_id(GroupId(text(name)))
        .with_generation_id_or_member_epoch(-1)
        .with_topics(vec![topic])
}

pub(super) async fn init(client: &mut RawClient, id: &str) -> Result<(ProducerId, i16)> {
    let request = InitProducerIdRequest::default()
        .with_transactional_id(Some(TransactionalId(text(id))))
        .with_transaction_timeout_ms(60_000);
    let answer = client.ask(&request, 4).await?;
    ok(answer.error_code)?;
    Ok((answer.producer_id, answer.producer_epoch))
}

pub(super) fn add_partitions(
    id: &str,
    (producer, epoch): (ProducerId, i16),
    topics: &[&str],
) -> AddPartitionsToTxnRequest {
    let topics = topics.iter().map(|topic| {
        AddPartitionsToTxnTopic::default()
            .with_name(TopicName(text(*topic)))
            .with_partitions(vec![0])
    });
    AddPartitionsToTxnRequest::default()
        .with_v3_and_below_transactional_id(TransactionalId(text(id)))
        .with_v3_and_below_producer_id(producer)
        .with_v3_and_below_producer_epoch(epoch)
        .with_v3_and_below_topics(topics.collect())
}
