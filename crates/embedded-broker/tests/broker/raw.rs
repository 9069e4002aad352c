//! A client that speaks the bare protocol: any version of any request, and bytes that are no request at all.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use bytes::{BufMut, Bytes, BytesMut};
use kafka_protocol::messages::{ApiKey, ProducerId, RequestHeader, ResponseHeader};
use kafka_protocol::protocol::{Decodable, Encodable, Request, StrBytes};
use kafka_protocol::records::{Compression, Record, RecordBatchEncoder, RecordEncodeOptions, TimestampType};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// Longest that an answer may take.
const WAIT_MAX: Duration = Duration::from_secs(10);
const CORRELATION_ID: i32 = 7;

/// A connection.
pub(crate) struct RawClient(TcpStream);

impl RawClient {
    pub(crate) async fn connect(address: SocketAddr) -> Result<Self> {
        Ok(Self(TcpStream::connect(address).await?))
    }

    /// Asks and reads the answer.
    pub(crate) async fn ask<Q: Request>(&mut self, request: &Q, version: i16) -> Result<Q::Response> {
        self.send(&request_frame(request, version)?).await?;
        let key = ApiKey::try_from(Q::KEY).map_err(|()| anyhow::anyhow!("unknown request type"))?;
        let mut answer = self.receive().await?;
        let header = ResponseHeader::decode(&mut answer, key.response_header_version(version))?;
        ensure!(
            header.correlation_id == CORRELATION_ID,
            "an answer to {}",
            header.correlation_id
        );
        let decoded = Q::Response::decode(&mut answer, version)?;
        ensure!(
            answer.is_empty(),
            "{} bytes too many in the answer to {key:?} version {version}",
            answer.len()
        );
        Ok(decoded)
    }

    pub(crate) async fn send(&mut self, bytes: &[u8]) -> Result<()> {
        Ok(self.0.write_all(bytes).await?)
    }

    /// Reads one frame, without its length.
    pub(crate) async fn receive(&mut self) -> Result<Bytes> {
        let read = async {
            let length = usize::try_from(self.0.read_i32().await?)?;
            let mut frame = vec![0; length];
            self.0.read_exact(&mut frame).await?;
            anyhow::Ok(Bytes::from(frame))
        };
        timeout(WAIT_MAX, read).await.context("an answer in time")?
    }

    /// Waits until the broker closes the connection; bytes that it sends first are an error.
    pub(crate) async fn is_closed(&mut self) -> Result<()> {
        let mut byte = [0];
        match timeout(WAIT_MAX, self.0.read(&mut byte))
            .await
            .context("the connection closed in time")?
        {
            Ok(0) => Ok(()),
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => Ok(()),
            Err(error) => Err(error.into()),
            Ok(_) => bail!("the broker answered"),
        }
    }
}

/// A whole request, length included.
pub(crate) fn request_frame<Q: Request>(request: &Q, version: i16) -> Result<Bytes> {
    let key = ApiKey::try_from(Q::KEY).map_err(|()| anyhow::anyhow!("unknown request type"))?;
    let mut body = BytesMut::new();
    RequestHeader::default()
        .with_request_api_key(Q::KEY)
        .with_request_api_version(version)
        .with_correlation_id(CORRELATION_ID)
        .with_client_id(Some(StrBytes::from_static_str("raw")))
        .encode(&mut body, key.request_header_version(version))?;
    request.encode(&mut body, version)?;
    Ok(framed(&body))
}

/// Bytes with their length in front.
pub(crate) fn framed(body: &[u8]) -> Bytes {
    let mut frame = BytesMut::new();
    frame.put_i32(body.len() as i32);
    frame.extend_from_slice(body);
    frame.freeze()
}

/// Who writes a batch: producer, epoch, first sequence.
#[derive(Clone, Copy)]
pub(crate) struct Writer {
    pub(crate) producer: ProducerId,
    pub(crate) epoch: i16,
    pub(crate) sequence: i32,
    pub(crate) transactional: bool,
}

/// Somebody who does not number batches.
pub(crate) const ANYBODY: Writer = Writer {
    producer: ProducerId(-1),
    epoch: -1,
    sequence: -1,
    transactional: false,
};

/// One batch of these values.
pub(crate) fn batch(values: &[&[u8]], writer: Writer) -> Result<Bytes> {
    let records = values.iter().zip(0i32..).map(|(value, number)| Record {
        transactional: writer.transactional,
        control: false,
        delete_horizon: false,
        partition_leader_epoch: 0,
        producer_id: writer.producer.0,
        producer_epoch: writer.epoch,
        timestamp_type: TimestampType::Creation,
        offset: i64::from(number),
        sequence: writer.sequence + number, // the encoder starts a new batch where these have a gap
        timestamp: 1_700_000_000_000 + i64::from(number),
        key: None,
        value: Some(Bytes::copy_from_slice(value)),
        headers: Default::default(),
    });
    let records: Vec<Record> = records.collect();
    let mut bytes = BytesMut::new();
    let options = RecordEncodeOptions {
        version: 2,
        compression: Compression::None,
    };
    RecordBatchEncoder::encode(&mut bytes, &records, &options)?;
    Ok(bytes.freeze())
}
