//! Bytes from strangers: each bad connection is closed, and everybody else is served as before.

use anyhow::{Context, Result, ensure};
use bytes::{BufMut, Bytes, BytesMut};
use embedded_broker::{BrokerConfig, EmbeddedBroker};
use kafka_protocol::messages::produce_request::{PartitionProduceData, TopicProduceData};
use kafka_protocol::messages::{
    ApiVersionsRequest, ApiVersionsResponse, MetadataRequest, ProduceRequest, ProducerId, ResponseHeader,
    TopicName,
};
use kafka_protocol::protocol::{Decodable, StrBytes};

use crate::raw::{ANYBODY, RawClient, Writer, batch, framed, request_frame};
use crate::support::run;

/// A request header (type, version, correlation id, no client id) with a body.
fn request(key: i16, version: i16, body: &[u8]) -> Bytes {
    let mut bytes = BytesMut::new();
    bytes.put_i16(key);
    bytes.put_i16(version);
    bytes.put_i32(7);
    bytes.put_i16(-1);
    bytes.extend_from_slice(body);
    framed(&bytes)
}

#[test]
fn what_is_no_request_ends_its_own_connection_only() {
    let huge_count = i32::MAX.to_be_bytes();
    let bad: Vec<(&str, Bytes)> = vec![
        (
            "an HTTP request",
            Bytes::from_static(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"),
        ),
        (
            "a TLS greeting",
            Bytes::from_static(&[0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3]),
        ),
        ("a negative length", Bytes::from_static(&[0xff, 0xff, 0xff, 0xff])),
        (
            "the largest length",
            Bytes::from_static(&[0x7f, 0xff, 0xff, 0xff, 0, 3, 0, 0, 0, 0, 0, 7]),
        ),
        ("no header", framed(&[0, 3])),
        ("an empty frame", framed(&[])),
        ("a request type from nowhere", request(999, 0, &[])),
        ("a version from the future", request(3, 99, &[])),
        (
            "a client id that is too long",
            framed(&[0, 3, 0, 0, 0, 0, 0, 7, 0x7f, 0xff]),
        ),
        (
            "a client id that is not text",
            framed(&[0, 3, 0, 0, 0, 0, 0, 7, 0, 1, 0xff]),
        ),
        // The codec would allocate 2^31 topics for these, and the process would end.
        ("2^31 topics", request(3, 1, &huge_count)),
        (
            "2^32 topics, compactly",
            request(3, 9, &[0, 0xff, 0xff, 0xff, 0xff, 0x0f]),
        ),
        ("2^31 groups", request(15, 0, &huge_count)),
        (
            "2^32 tagged fields",
            request(18, 3, &[0, 2, b'x', 2, b'y', 0xff, 0xff, 0xff, 0xff, 0x0f]),
        ),
        (
            "a number that does not end",
            request(3, 9, &[0, 0xff, 0xff, 0xff, 0xff, 0xff]),
        ),
        ("a string beyond the end", request(10, 0, &[0x7f, 0xff, b'x'])),
        ("a negative string", request(10, 0, &[0x80, 0x00])),
        ("null where a name must be", request(10, 0, &[0xff, 0xff])),
        ("a name that is not text", request(10, 0, &[0, 2, 0xff, 0xfe])),
    ];
    run(async move {
        let broker = EmbeddedBroker::start(BrokerConfig::default()).await?;
        let mut bystander = RawClient::connect(broker.address()).await?;

        for (what, bytes) in bad {
            let mut client = RawClient::connect(broker.address()).await?;
            client.send(&bytes).await?;
            client.is_closed().await.with_context(|| what.to_owned())?;

            let answer = bystander.ask(&MetadataRequest::default(), 9).await;
            ensure!(
                answer.with_context(|| format!("after {what}"))?.brokers.len() == 1,
                "after {what}"
            );
        }
        Ok(())
    });
}

#[test]
fn half_a_request_and_then_nothing_leaves_the_others_alone() {
    run(async {
        let broker = EmbeddedBroker::start(BrokerConfig::default()).await?;
        let whole = request_frame(&MetadataRequest::default(), 9)?;
        let mut silent = RawClient::connect(broker.address()).await?;
        silent.send(&whole[..whole.len() - 1]).await?;

        let mut client = RawClient::connect(broker.address()).await?;
        client.ask(&MetadataRequest::default(), 9).await?;

        silent.send(&whole[whole.len() - 1..]).await?;
        ensure!(silent.receive().await.is_ok(), "the rest makes it whole");
        Ok(())
    });
}

#[test]
fn a_client_from_the_future_learns_which_versions_there_are() {
    run(async {
        let broker = EmbeddedBroker::start(BrokerConfig::default()).await?;
        let mut client = RawClient::connect(broker.address()).await?;

        client.send(&request(18, 99, &[0, 1, 1, 0])).await?;
        let mut bytes = client.receive().await?;
        let header = ResponseHeader::decode(&mut bytes, 0)?;
        let answer = ApiVersionsResponse::decode(&mut bytes, 0)?;
        let now = client.ask(&ApiVersionsRequest::default(), 0).await?;

        ensure!(
            header.correlation_id == 7 && answer.error_code == 35,
            "{header:?} {answer:?}"
        );
        ensure!(
            answer.api_keys == now.api_keys && now.error_code == 0,
            "the connection goes on"
        );
        Ok(())
    });
}

/// Sends records as they are; answers the error code.
async fn produce(client: &mut RawClient, records: Bytes) -> Result<i16> {
    let partition = PartitionProduceData::default().with_records(Some(records));
    let topic = TopicProduceData::default()
        .with_name(TopicName(StrBytes::from_static_str("hostile")))
        .with_partition_data(vec![partition]);
    let request = ProduceRequest::default()
        .with_acks(-1)
        .with_timeout_ms(1_000)
        .with_topic_data(vec![topic]);
    Ok(client.ask(&request, 8).await?.responses[0].partition_responses[0].error_code)
}

/// A broker with the topic that the tests write to, and a client of it.
async fn with_topic() -> Result<(EmbeddedBroker, RawClient)> {
    let broker = EmbeddedBroker::start(BrokerConfig::default()).await?;
    let mut client = RawClient::connect(broker.address()).await?;
    let topic = kafka_protocol::messages::metadata_request::MetadataRequestTopic::default()
        .with_name(Some(TopicName(StrBytes::from_static_str("hostile"))));
    client
        .ask(&MetadataRequest::default().with_topics(Some(vec![topic])), 9)
        .await?;
    Ok((broker, client))
}

/// Changes one byte of a batch and makes its CRC right again.
fn altered(batch: &Bytes, at: usize, value: u8) -> Bytes {
    let mut bytes = BytesMut::from(&batch[..]);
    bytes[at] = value;
    let crc = crc32c::crc32c(&bytes[21..]);
    bytes[17..21].copy_from_slice(&crc.to_be_bytes());
    bytes.freeze()
}

#[test]
fn batches_that_are_not_what_they_say_are_refused_by_kafkas_names() {
    const CORRUPT: i16 = 2;
    const INVALID_RECORD: i16 = 87;
    run(async {
        let (_broker, mut client) = with_topic().await?;
        let good = batch(&[b"one", b"two"], ANYBODY)?;
        let mut flipped = BytesMut::from(&good[..]);
        *flipped.last_mut().context("a batch has bytes")? ^= 1;
        let twice = [&good[..], &good[..]].concat();
        let two_records_said_three = altered(&altered(&good, 60, 3), 26, 2);

        let cases = [
            ("whole", good.clone(), 0),
            ("empty", Bytes::new(), CORRUPT),
            ("cut short", good.slice(..good.len() - 1), CORRUPT),
            ("a flipped bit", flipped.freeze(), CORRUPT),
            ("two batches", Bytes::from(twice), CORRUPT),
            ("an old format", altered(&good, 16, 1), 43),
            ("an unknown codec", altered(&good, 22, 7), 76),
            ("the broker's own clock", altered(&good, 22, 8), 32),
            ("a forged marker", altered(&good, 22, 0x20), INVALID_RECORD),
            (
                "a transaction of nobody",
                altered(&good, 22, 0x10),
                INVALID_RECORD,
            ),
            (
                "more records than there are",
                two_records_said_three,
                INVALID_RECORD,
            ),
            (
                "fewer records than there are",
                altered(&altered(&good, 60, 1), 26, 0),
                INVALID_RECORD,
            ),
            ("no records", altered(&good, 60, 0), INVALID_RECORD),
        ];
        for (what, records, expected) in cases {
            let code = produce(&mut client, records).await?;
            ensure!(code == expected, "{what}: error {code}, not {expected}");
        }
        Ok(())
    });
}

#[test]
fn numbered_batches_are_taken_once_and_in_order() {
    const OUT_OF_ORDER: i16 = 45;
    const OLD_EPOCH: i16 = 47;
    run(async {
        let (_broker, mut client) = with_topic().await?;
        let writer = |epoch, sequence| Writer {
            producer: ProducerId(9),
            epoch,
            sequence,
            transactional: false,
        };

        let steps = [
            ("the first", writer(1, 0), 0),
            ("the next", writer(1, 1), 0),
            ("a repeat", writer(1, 0), 0),
            ("a gap", writer(1, 3), OUT_OF_ORDER),
            ("the next after a gap", writer(1, 2), 0),
            ("an earlier life", writer(0, 3), OLD_EPOCH),
            ("a new life that does not start at 0", writer(2, 3), OUT_OF_ORDER),
            ("a new life", writer(2, 0), 0),
        ];
        for (what, writer, expected) in steps {
            let code = produce(&mut client, batch(&[b"x"], writer)?).await?;
            ensure!(code == expected, "{what}: error {code}, not {expected}");
        }
        let stranger = Writer {
            transactional: true,
            ..writer(2, 1)
        };
        let code = produce(&mut client, batch(&[b"x"], stranger)?).await?;
        ensure!(code == 49, "transactional without an id: {code}");
        Ok(())
    });
}

#[test]
fn a_producer_that_wants_no_answer_is_closed_when_its_records_are_refused() {
    const INVALID_ACKS: i16 = 21;
    run(async {
        let broker = EmbeddedBroker::start(BrokerConfig::default()).await?;
        let mut client = RawClient::connect(broker.address()).await?;
        let request = |acks: i16| {
            let partition =
                PartitionProduceData::default().with_records(Some(Bytes::from_static(b"nonsense")));
            let topic = TopicProduceData::default()
                .with_name(TopicName(StrBytes::from_static_str("missing")))
                .with_partition_data(vec![partition]);
            ProduceRequest::default()
                .with_acks(acks)
                .with_timeout_ms(1_000)
                .with_topic_data(vec![topic])
        };

        let strange = client.ask(&request(5), 8).await?;
        client.send(&request_frame(&request(0), 8)?).await?;

        let code = strange.responses[0].partition_responses[0].error_code;
        ensure!(code == INVALID_ACKS, "error {code}");
        client.is_closed().await
    });
}
