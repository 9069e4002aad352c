//! A `Produce` request that is too large to hold: its first bytes say whom to tell, the rest is read and
//! dropped.
//!
//! Closing the connection instead would make a client send the same record again and again until it times
//! out.

use bytes::BytesMut;
use kafka_protocol::error::ResponseError;
use kafka_protocol::messages::produce_response::{PartitionProduceResponse, TopicProduceResponse};
use kafka_protocol::messages::{ApiKey, ProduceResponse, TopicName};
use kafka_protocol::protocol::StrBytes;

use super::apis::Api;
use super::frame::{FrameError, HeaderStart, encode, read_client_id};

/// Bytes at the start of a request that name its first topic and partition, whatever the names.
pub(crate) const HEAD_BYTES: usize = 128 << 10;

/// Whom an oversized request was for.
#[derive(Debug, PartialEq)]
pub(crate) struct Oversized {
    version: i16,
    correlation_id: i32,
    topic: StrBytes,
    partition: i32,
    /// The client expects no answer.
    silent: bool,
}

impl Oversized {
    /// Reads the start of a `Produce` request for one partition, as librdkafka sends them.
    ///
    /// Answers `None` when the bytes are anything else; such a connection is closed.
    pub(crate) fn read(head: &[u8]) -> Option<Self> {
        let start = HeaderStart::read(head).ok()?;
        let api =
            Api::find(start.key).filter(|api| api.key == ApiKey::Produce && api.speaks(start.version))?;
        let (_, body_at) = read_client_id(head, api.key.request_header_version(start.version)).ok()?;
        let mut reader = Reader {
            rest: &head[body_at..],
            compact: start.version >= api.shape.flexible_since,
        };
        let _transactional_id = reader.text()?;
        let acks = i16::from_be_bytes(reader.take()?);
        let _timeout_ms: [u8; 4] = reader.take()?;
        let topics = reader.count()?;
        let topic = std::str::from_utf8(reader.text()?).ok()?.to_owned();
        let partitions = reader.count()?;
        let partition = i32::from_be_bytes(reader.take()?);
        (topics == 1 && partitions == 1).then(|| Self {
            version: start.version,
            correlation_id: start.correlation_id,
            topic: StrBytes::from_string(topic),
            partition,
            silent: acks == 0,
        })
    }

    /// The answer: the message is too large. `None` when the client wants no answer.
    ///
    /// # Errors
    /// [`FrameError::Encode`] when the codec refuses.
    pub(crate) fn answer(&self, bytes_max: usize) -> Result<Option<BytesMut>, FrameError> {
        if self.silent {
            return Ok(None);
        }
        let mut partition = PartitionProduceResponse::default()
            .with_index(self.partition)
            .with_base_offset(-1)
            .with_error_code(ResponseError::MessageTooLarge.code());
        if self.version >= 8 {
            let message = format!("the embedded broker takes batches of at most {bytes_max} bytes");
            partition = partition.with_error_message(Some(StrBytes::from_string(message)));
        }
        let topic = TopicProduceResponse::default()
            .with_name(TopicName(self.topic.clone()))
            .with_partition_responses(vec![partition]);
        let answer = ProduceResponse::default().with_responses(vec![topic]);
        encode(ApiKey::Produce, self.version, self.correlation_id, &answer).map(Some)
    }
}

struct Reader<'a> {
    rest: &'a [u8],
    compact: bool,
}

impl<'a> Reader<'a> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (taken, rest) = self.rest.split_first_chunk::<N>()?;
        self.rest = rest;
        Some(*taken)
    }

    fn varint(&mut self) -> Option<usize> {
        let mut value = 0usize;
        for place in 0..5 {
            let [byte] = self.take()?;
            value |= usize::from(byte & 0x7f) << (7 * place);
            if byte < 0x80 {
                return Some(value);
            }
        }
        None
    }

    fn count(&mut self) -> Option<usize> {
        if self.compact {
            return self.varint()?.checked_sub(1);
        }
        usize::try_from(i32::from_be_bytes(self.take()?)).ok()
    }

    /// The bytes of a string; of a null string, none.
    fn text(&mut self) -> Option<&'a [u8]> {
        let length = if self.compact {
            self.varint()?.saturating_sub(1)
        } else {
            usize::try_from(i16::from_be_bytes(self.take()?).max(0)).ok()?
        };
        let (text, rest) = self.rest.split_at_checked(length)?;
        self.rest = rest;
        Some(text)
    }
}
