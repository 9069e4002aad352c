//! The outlines agree with the codec, and no bytes lead either astray.

use bytes::{BufMut, Bytes, BytesMut};
use kafka_protocol::messages::*;
use kafka_protocol::protocol::Decodable;
use proptest::prelude::*;
use proptest::test_runner::{RngAlgorithm, TestRng};

use super::apis::{APIS, Api};
use super::frame::{Parsed, parse};
use super::refusal::Oversized;
use super::shape::{Field, Kind, Misshapen};

/// Writes random requests that have the outline of a shape.
struct Writer<'a> {
    rng: &'a mut TestRng,
    bytes: BytesMut,
    version: i16,
    flexible: bool,
}

impl Writer<'_> {
    fn structure(&mut self, fields: &[Field], depth: usize) {
        for field in fields {
            if (field.since..=field.until).contains(&self.version) {
                self.value(field.kind, depth);
            }
        }
        if self.flexible {
            self.tags();
        }
    }

    fn value(&mut self, kind: Kind, depth: usize) {
        match kind {
            Kind::Fixed(bytes) => (0..bytes).for_each(|_| self.bytes.put_u8(self.rng.random_range(0..2))),
            Kind::Text => {
                let text: Vec<u8> = (0..self.rng.random_range(0..40)).map(|_| b'x').collect();
                if self.flexible {
                    self.varint(text.len() as u32 + 1)
                } else {
                    self.bytes.put_i16(text.len() as i16)
                }
                self.bytes.extend_from_slice(&text);
            }
            Kind::Blob => {
                let blob = vec![0xff; self.rng.random_range(0..300)];
                self.length(blob.len());
                self.bytes.extend_from_slice(&blob);
            }
            Kind::Structs(fields) => self.elements(depth, |writer| writer.structure(fields, depth + 1)),
            Kind::Items(field) => self.elements(depth, |writer| writer.value(field.kind, depth + 1)),
        }
    }

    fn elements(&mut self, depth: usize, mut element: impl FnMut(&mut Self)) {
        let count = self.rng.random_range(0..4usize.saturating_sub(depth).max(2));
        self.length(count);
        (0..count).for_each(|_| element(self));
    }

    fn length(&mut self, length: usize) {
        if self.flexible {
            self.varint(length as u32 + 1)
        } else {
            self.bytes.put_i32(length as i32)
        }
    }

    fn tags(&mut self) {
        const UNKNOWN: u32 = 200; // two bytes long, and no field of any version
        let count = self.rng.random_range(0..3);
        self.varint(count);
        for tag in 0..count {
            let size = self.rng.random_range(0..5);
            self.varint(UNKNOWN + tag);
            self.varint(size);
            (0..size).for_each(|_| self.bytes.put_u8(7));
        }
    }

    fn varint(&mut self, mut number: u32) {
        while number >= 0x80 {
            self.bytes.put_u8(number as u8 | 0x80);
            number >>= 7;
        }
        self.bytes.put_u8(number as u8);
    }
}

fn random_body(api: &Api, version: i16, rng: &mut TestRng) -> Bytes {
    let flexible = version >= api.shape.flexible_since;
    let mut writer = Writer {
        rng,
        bytes: BytesMut::new(),
        version,
        flexible,
    };
    writer.structure(api.shape.fields, 0);
    writer.bytes.freeze()
}

/// Lets the codec read a body; answers how many bytes it took.
fn decode(key: ApiKey, version: i16, body: &Bytes) -> Result<usize, String> {
    fn read<T: Decodable>(version: i16, body: &Bytes) -> Result<usize, String> {
        let mut rest = body.clone();
        T::decode(&mut rest, version).map_err(|error| error.to_string())?;
        Ok(body.len() - rest.len())
    }
    match key {
        ApiKey::Produce => read::<ProduceRequest>(version, body),
        ApiKey::Fetch => read::<FetchRequest>(version, body),
        ApiKey::ListOffsets => read::<ListOffsetsRequest>(version, body),
        ApiKey::Metadata => read::<MetadataRequest>(version, body),
        ApiKey::OffsetCommit => read::<OffsetCommitRequest>(version, body),
        ApiKey::OffsetFetch => read::<OffsetFetchRequest>(version, body),
        ApiKey::FindCoordinator => read::<FindCoordinatorRequest>(version, body),
        ApiKey::JoinGroup => read::<JoinGroupRequest>(version, body),
        ApiKey::Heartbeat => read::<HeartbeatRequest>(version, body),
        ApiKey::LeaveGroup => read::<LeaveGroupRequest>(version, body),
        ApiKey::SyncGroup => read::<SyncGroupRequest>(version, body),
        ApiKey::DescribeGroups => read::<DescribeGroupsRequest>(version, body),
        ApiKey::ListGroups => read::<ListGroupsRequest>(version, body),
        ApiKey::ApiVersions => read::<ApiVersionsRequest>(version, body),
        ApiKey::CreateTopics => read::<CreateTopicsRequest>(version, body),
        ApiKey::DeleteTopics => read::<DeleteTopicsRequest>(version, body),
        ApiKey::InitProducerId => read::<InitProducerIdRequest>(version, body),
        ApiKey::AddPartitionsToTxn => read::<AddPartitionsToTxnRequest>(version, body),
        ApiKey::AddOffsetsToTxn => read::<AddOffsetsToTxnRequest>(version, body),
        ApiKey::EndTxn => read::<EndTxnRequest>(version, body),
        ApiKey::TxnOffsetCommit => read::<TxnOffsetCommitRequest>(version, body),
        ApiKey::DescribeConfigs => read::<DescribeConfigsRequest>(version, body),
        other => panic!("{other:?} is announced and not read here"),
    }
}

fn every_version() -> impl Iterator<Item = (&'static Api, i16)> {
    APIS.iter()
        .flat_map(|api| (api.oldest..=api.newest).map(move |version| (api, version)))
}

#[test]
fn the_codec_reads_what_the_outlines_describe_in_every_version_to_the_last_byte() {
    let mut rng = TestRng::deterministic_rng(RngAlgorithm::ChaCha);
    for (api, version) in every_version() {
        for _ in 0..40 {
            let body = random_body(api, version, &mut rng);

            let measured = api.shape.measure(&body, version);
            let read = decode(api.key, version, &body);

            assert_eq!(measured, Ok(body.len()), "{:?} version {version}", api.key);
            assert_eq!(read, Ok(body.len()), "{:?} version {version}", api.key);
        }
    }
}

#[test]
fn a_request_cut_anywhere_is_refused() {
    let mut rng = TestRng::deterministic_rng(RngAlgorithm::ChaCha);
    for (api, version) in every_version() {
        let body = random_body(api, version, &mut rng);
        for length in 0..body.len() {
            let cut = api.shape.measure(&body[..length], version);

            assert!(
                cut.is_err(),
                "{:?} version {version} cut to {length} of {}",
                api.key,
                body.len()
            );
        }
    }
}

#[test]
fn a_damaged_request_is_read_as_it_was_measured_or_not_at_all() {
    let mut rng = TestRng::deterministic_rng(RngAlgorithm::ChaCha);
    for (api, version) in every_version() {
        for _ in 0..100 {
            let mut body = BytesMut::from(&random_body(api, version, &mut rng)[..]);
            if body.is_empty() {
                continue; // nothing to damage
            }
            for _ in 0..rng.random_range(1u32..4) {
                let at = rng.random_range(0..body.len());
                body[at] = [0, 1, 0x7f, 0x80, 0xff][rng.random_range(0usize..5)];
            }
            let body = body.freeze();

            // Decoding what was not measured could allocate anything; that is what measuring is for.
            if let Ok(measured) = api.shape.measure(&body, version)
                && let Ok(read) = decode(api.key, version, &body)
            {
                assert_eq!(read, measured, "{:?} version {version}: {body:?}", api.key);
            }
        }
    }
}

#[test]
fn more_elements_than_any_client_needs_are_refused_even_if_they_are_all_there() {
    const TOPICS: usize = 200_000;
    let api = Api::find(ApiKey::Metadata as i16).unwrap();
    let mut body = BytesMut::new();
    body.put_i32(TOPICS as i32);
    body.put_bytes(0, TOPICS * 2); // empty names

    assert_eq!(api.shape.measure(&body, 1), Err(Misshapen::TooManyElements));
}

#[test]
fn tagged_fields_between_brokers_are_refused() {
    let api = Api::find(ApiKey::Fetch as i16).unwrap();
    let mut body = BytesMut::new();
    body.put_bytes(0, 4 + 4 + 4 + 4 + 1 + 4 + 4);
    body.put_u8(1); // no topics
    body.put_u8(1); // none forgotten
    body.put_u8(1); // no rack
    body.put_slice(&[1, 0, 5, 0xff, 0xff, 0xff, 0xff, 0x0f]); // tag 0 claims 5 bytes: a string of 4 GiB

    assert!(matches!(
        api.shape.measure(&body, 12),
        Err(Misshapen::ReservedTag { tag: 0, .. })
    ));
}

/// Everything that a frame from a stranger goes through before a handler sees it.
fn read_all_of(frame: Bytes) {
    if let Ok(Parsed::Request(request)) = parse(frame) {
        let _ = decode(request.key, request.version, &request.body);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn no_bytes_make_the_reader_panic(frame in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = Oversized::read(&frame);
        read_all_of(Bytes::from(frame));
    }

    #[test]
    fn no_body_behind_a_good_header_makes_the_reader_panic(
        api in 0..APIS.len(),
        above in 0i16..10,
        body in prop::collection::vec(any::<u8>(), 0..200),
    ) {
        let api = &APIS[api];
        let mut frame = BytesMut::new();
        frame.put_i16(api.key as i16);
        frame.put_i16((api.oldest + above).min(api.newest));
        frame.put_i32(7);
        frame.put_i16(-1);
        // Mostly small counts, which get further than chance would.
        frame.extend(body.iter().map(|byte| match byte % 8 {
            0 | 1 => 0,
            2 | 3 => 1,
            4 => 2,
            5 => 0xff,
            _ => *byte,
        }));

        let _ = Oversized::read(&frame);
        read_all_of(frame.freeze());
    }
}
