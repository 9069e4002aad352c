//! One request in, one answer out: headers, decoding that cannot be led astray, encoding.

use std::panic::{AssertUnwindSafe, catch_unwind};

use bytes::{BufMut, Bytes, BytesMut};
use kafka_protocol::messages::{ApiKey, ResponseHeader};
use kafka_protocol::protocol::{Decodable, Encodable};

use super::apis::Api;
use super::shape::{Misshapen, measure_tags};

/// Why a frame ends its connection: there is no way to answer it.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FrameError {
    /// Too short for a header.
    #[error("the frame has {found} bytes, a request header takes more")]
    NoHeader {
        /// Bytes in the frame.
        found: usize,
    },
    /// A request type that was never announced.
    #[error("request type {key} is not served by the embedded broker")]
    UnknownApi {
        /// Number on the wire.
        key: i16,
    },
    /// A version that was never announced.
    #[error("{key:?} version {found} is not served, only {oldest} to {newest}")]
    Version {
        /// Request type.
        key: ApiKey,
        /// Version asked for.
        found: i16,
        /// Oldest announced.
        oldest: i16,
        /// Newest announced.
        newest: i16,
    },
    /// The client id is not a string, or the header's tagged fields do not fit.
    #[error("the request header is malformed")]
    Header,
    /// The body is not what its type says.
    #[error("{key:?} version {version}: {source}")]
    Body {
        /// Request type.
        key: ApiKey,
        /// Version.
        version: i16,
        /// What does not fit.
        source: Misshapen,
    },
    /// The codec did not accept the body.
    #[error("{key:?} version {version} cannot be decoded: {reason}")]
    Decode {
        /// Request type.
        key: ApiKey,
        /// Version.
        version: i16,
        /// What the codec said.
        reason: String,
    },
    /// Records that were refused while their producer wants no answer; a closed connection is all it can
    /// notice.
    #[error("a producer that wants no answer sent records that were refused with error {code}")]
    RefusedInSilence {
        /// Kafka's number for the reason.
        code: i16,
    },
    /// An answer that its version cannot express: a fault of this broker.
    #[error("the answer to {key:?} version {version} cannot be encoded: {reason}")]
    Encode {
        /// Request type.
        key: ApiKey,
        /// Version.
        version: i16,
        /// What the codec said.
        reason: String,
    },
}

/// A request whose header has been read and whose body has the right outline.
#[derive(Clone, Debug)]
pub(crate) struct RequestFrame {
    /// Which request.
    pub(crate) key: ApiKey,
    /// Version of request and answer.
    pub(crate) version: i16,
    /// Sent back with the answer.
    pub(crate) correlation_id: i32,
    /// What the client calls itself; empty when it does not.
    pub(crate) client_id: String,
    /// The request itself.
    pub(super) body: Bytes,
}

/// What a frame turned out to be.
#[derive(Debug)]
pub(crate) enum Parsed {
    /// Something to handle.
    Request(RequestFrame),
    /// `ApiVersions` in a version from the future; answered in the oldest format so that the client can
    /// choose again.
    UnknownApiVersions {
        /// Sent back with the answer.
        correlation_id: i32,
    },
}

/// Bytes of a header before the client id: type, version, correlation id.
const FIXED_HEADER_BYTES: usize = 8;

/// The start of a header, the same in every version of Kafka's protocol.
#[derive(Clone, Copy, Debug)]
pub(crate) struct HeaderStart {
    pub(crate) key: i16,
    pub(crate) version: i16,
    pub(crate) correlation_id: i32,
}

impl HeaderStart {
    /// Reads type, version and correlation id.
    ///
    /// # Errors
    /// [`FrameError::NoHeader`] when there are too few bytes.
    pub(crate) fn read(frame: &[u8]) -> Result<Self, FrameError> {
        let Some(start) = frame.first_chunk::<FIXED_HEADER_BYTES>() else {
            return Err(FrameError::NoHeader { found: frame.len() });
        };
        let [k0, k1, v0, v1, c0, c1, c2, c3] = *start;
        Ok(Self {
            key: i16::from_be_bytes([k0, k1]),
            version: i16::from_be_bytes([v0, v1]),
            correlation_id: i32::from_be_bytes([c0, c1, c2, c3]),
        })
    }
}

/// Reads the header of a frame and checks the outline of its body.
///
/// # Errors
/// [`FrameError`] when the frame is not a request that this broker announced; the connection cannot go on.
pub(crate) fn parse(frame: Bytes) -> Result<Parsed, FrameError> {
    let start = HeaderStart::read(&frame)?;
    let api = Api::find(start.key).ok_or(FrameError::UnknownApi { key: start.key })?;
    if !api.speaks(start.version) {
        if api.key == ApiKey::ApiVersions {
            return Ok(Parsed::UnknownApiVersions {
                correlation_id: start.correlation_id,
            });
        }
        return Err(FrameError::Version {
            key: api.key,
            found: start.version,
            oldest: api.oldest,
            newest: api.newest,
        });
    }
    let (client_id, body_at) = read_client_id(&frame, api.key.request_header_version(start.version))?;
    let body = frame.slice(body_at..);
    api.shape
        .measure(&body, start.version)
        .map_err(|source| FrameError::Body {
            key: api.key,
            version: start.version,
            source,
        })?;
    Ok(Parsed::Request(RequestFrame {
        key: api.key,
        version: start.version,
        correlation_id: start.correlation_id,
        client_id,
        body,
    }))
}

/// Reads the rest of the header; answers the client id and where the body starts.
pub(super) fn read_client_id(frame: &[u8], header_version: i16) -> Result<(String, usize), FrameError> {
    const LENGTH_BYTES: usize = 2;
    let length_at = frame.get(FIXED_HEADER_BYTES..).ok_or(FrameError::Header)?;
    let length = length_at
        .first_chunk::<LENGTH_BYTES>()
        .ok_or(FrameError::Header)?;
    let length = match i16::from_be_bytes(*length) {
        -1 => 0, // null: a client without a name
        length => usize::try_from(length).map_err(|_| FrameError::Header)?,
    };
    let start = FIXED_HEADER_BYTES + LENGTH_BYTES;
    let name = frame.get(start..start + length).ok_or(FrameError::Header)?;
    let client_id = std::str::from_utf8(name)
        .map_err(|_| FrameError::Header)?
        .to_owned();
    let mut body_at = start + length;
    if header_version >= 2 {
        body_at += measure_tags(&frame[body_at..]).map_err(|_| FrameError::Header)?;
    }
    Ok((client_id, body_at))
}

impl RequestFrame {
    /// Decodes the body.
    ///
    /// # Errors
    /// [`FrameError::Decode`] when the codec refuses it (text that is not UTF-8, null where none may be).
    pub(crate) fn decode<T: Decodable>(&self) -> Result<T, FrameError> {
        let mut body = self.body.clone();
        let refused = |reason: String| FrameError::Decode {
            key: self.key,
            version: self.version,
            reason,
        };
        // The outline has been checked, so lengths are honest; a codec that panics anyway costs one
        // connection.
        match catch_unwind(AssertUnwindSafe(|| T::decode(&mut body, self.version))) {
            Ok(Ok(request)) => Ok(request),
            Ok(Err(error)) => Err(refused(error.to_string())),
            Err(_) => Err(refused("the codec panicked".to_owned())),
        }
    }

    /// Encodes the answer to this request as a whole frame, length included.
    ///
    /// # Errors
    /// [`FrameError::Encode`] when the answer holds what its version lacks.
    pub(crate) fn encode<T: Encodable>(&self, answer: &T) -> Result<BytesMut, FrameError> {
        encode(self.key, self.version, self.correlation_id, answer)
    }
}

/// Encodes an answer as a whole frame, length included.
///
/// # Errors
/// [`FrameError::Encode`] when the answer holds what its version lacks, or does not fit a frame.
pub(crate) fn encode<T: Encodable>(
    key: ApiKey,
    version: i16,
    correlation_id: i32,
    answer: &T,
) -> Result<BytesMut, FrameError> {
    const LENGTH_BYTES: usize = 4;
    let refused = |reason: String| FrameError::Encode { key, version, reason };
    const HEADER_BYTES_MAX: usize = 8;
    let size = answer
        .compute_size(version)
        .map_err(|error| refused(error.to_string()))?;
    let mut frame = BytesMut::with_capacity(LENGTH_BYTES + HEADER_BYTES_MAX + size);
    frame.put_i32(0);
    ResponseHeader::default()
        .with_correlation_id(correlation_id)
        .encode(&mut frame, key.response_header_version(version))
        .and_then(|()| answer.encode(&mut frame, version))
        .map_err(|error| refused(error.to_string()))?;
    let length =
        i32::try_from(frame.len() - LENGTH_BYTES).map_err(|_| refused("longer than 2 GiB".to_owned()))?;
    frame[..LENGTH_BYTES].copy_from_slice(&length.to_be_bytes());
    Ok(frame)
}
