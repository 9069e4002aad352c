//! One client connection: frames in, answers out, strictly in order, as Kafka does it.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};
use tokio::net::TcpStream;
use tokio::net::tcp::OwnedReadHalf;
use tokio::time::{sleep, timeout};
use tracing::{debug, warn};

use super::handlers::{Client, answer, answer_unknown_api_versions};
use super::limits::{FRAME_TIME_MAX, PRODUCE_EXTRA_BYTES_MAX, REFUSED_BYTES_MAX, REQUEST_BYTES_MAX};
use super::state::Shared;
use super::wire::apis::Api;
use super::wire::frame::{FrameError, Parsed, parse};
use super::wire::refusal::{HEAD_BYTES, Oversized};
use kafka_protocol::messages::ApiKey;

/// Why a connection ends other than by the client's own wish.
#[derive(Debug, thiserror::Error)]
enum ConnectionError {
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error(transparent)]
    Frame(#[from] FrameError),
    #[error("a frame of {found} bytes was announced, at most {most} are read; is this a Kafka client?")]
    TooLarge { found: i64, most: usize },
    #[error("a frame or an answer took longer than {} s", FRAME_TIME_MAX.as_secs())]
    TooSlow,
}

/// Serves a client until it goes, or sends something that cannot be answered.
pub(super) async fn serve(broker: Arc<Shared>, stream: TcpStream, peer: SocketAddr) {
    match converse(&broker, stream, peer).await {
        Ok(()) => debug!(%peer, "client left the embedded broker"),
        Err(ConnectionError::Io(error)) => {
            debug!(%peer, %error, "connection to the embedded broker lost")
        }
        Err(error) => warn!(%peer, %error, "closed a connection to the embedded broker"),
    }
}

async fn converse(broker: &Shared, stream: TcpStream, peer: SocketAddr) -> Result<(), ConnectionError> {
    stream.set_nodelay(true)?;
    let (mut reader, mut writer) = stream.into_split();
    let client = Client {
        host: format!("/{}", peer.ip()),
    };
    while let Some(incoming) = read_frame(broker, &mut reader).await? {
        let reply = match incoming {
            Incoming::Refused(oversized) => oversized.answer(broker.config.message_bytes_max)?,
            Incoming::Frame(bytes) => match parse(bytes)? {
                Parsed::UnknownApiVersions { correlation_id } => {
                    Some(answer_unknown_api_versions(correlation_id)?)
                }
                Parsed::Request(request) => {
                    tokio::select! {
                        // A client may close its sending end behind a request: what is ready is answered all
                        // the same.
                        biased;
                        reply = answer(broker, &client, &request) => reply?,
                        // Nobody will read the answer, and a waiting join must not look alive.
                        () = hung_up(&mut reader) => return Ok(()),
                    }
                }
            },
        };
        if let Some(reply) = reply {
            timeout(FRAME_TIME_MAX, writer.write_all(&reply))
                .await
                .map_err(|_| ConnectionError::TooSlow)??;
        }
    }
    Ok(())
}

/// Returns when the client has closed its end, also behind a next request that waits its turn.
async fn hung_up(reader: &mut OwnedReadHalf) {
    /// Between two looks at a connection with something in it: its readiness says no more than that.
    const LOOK_EVERY: Duration = Duration::from_millis(250);
    let mut byte = [0];
    if matches!(reader.peek(&mut byte).await, Ok(0) | Err(_)) {
        return;
    }
    loop {
        sleep(LOOK_EVERY).await;
        match reader.ready(Interest::READABLE).await {
            Ok(ready) if !ready.is_read_closed() => {}
            _ => return,
        }
    }
}

enum Incoming {
    Frame(Bytes),
    Refused(Oversized),
}

/// Reads the next frame; `None` when the client has closed the connection between frames.
async fn read_frame(
    broker: &Shared,
    reader: &mut OwnedReadHalf,
) -> Result<Option<Incoming>, ConnectionError> {
    let mut length = [0; 4];
    if reader.read(&mut length[..1]).await? == 0 {
        return Ok(None);
    }
    let rest = async {
        reader.read_exact(&mut length[1..]).await?;
        read_body(broker, reader, i32::from_be_bytes(length)).await
    };
    timeout(FRAME_TIME_MAX, rest)
        .await
        .map_err(|_| ConnectionError::TooSlow)?
        .map(Some)
}

/// Bytes of the request type, the first thing in a frame.
const KEY_BYTES: usize = 2;

async fn read_body(
    broker: &Shared,
    reader: &mut OwnedReadHalf,
    announced: i32,
) -> Result<Incoming, ConnectionError> {
    let too_large = |most| ConnectionError::TooLarge {
        found: announced.into(),
        most,
    };
    let length = usize::try_from(announced).map_err(|_| too_large(REFUSED_BYTES_MAX))?;
    let mut frame = BytesMut::new();
    // The request type alone decides how much may follow, so strangers (HTTP, TLS) are shown out at once.
    read_until(reader, &mut frame, length.min(KEY_BYTES)).await?;
    let Some(key) = frame.first_chunk::<KEY_BYTES>() else {
        return Err(FrameError::NoHeader { found: length }.into());
    };
    let key = i16::from_be_bytes(*key);
    let api = Api::find(key).ok_or(FrameError::UnknownApi { key })?;
    let is_produce = api.key == ApiKey::Produce;
    let most = if is_produce {
        broker.config.message_bytes_max + PRODUCE_EXTRA_BYTES_MAX
    } else {
        REQUEST_BYTES_MAX
    };
    if length <= most {
        read_until(reader, &mut frame, length).await?;
        return Ok(Incoming::Frame(frame.freeze()));
    }
    if !is_produce || length > REFUSED_BYTES_MAX {
        return Err(too_large(most));
    }
    read_until(reader, &mut frame, length.min(HEAD_BYTES)).await?;
    let oversized = Oversized::read(&frame).ok_or_else(|| too_large(most))?;
    let missing = (length - frame.len()) as u64;
    let mut rest = (&mut *reader).take(missing);
    if tokio::io::copy(&mut rest, &mut tokio::io::sink()).await? < missing {
        return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
    }
    Ok(Incoming::Refused(oversized))
}

/// Reads until `frame` has `length` bytes. Memory grows with what arrives, not with what was announced.
async fn read_until(
    reader: &mut OwnedReadHalf,
    frame: &mut BytesMut,
    length: usize,
) -> Result<(), ConnectionError> {
    const STEP_BYTES_LEAST: usize = 8 << 10;
    while frame.len() < length {
        let missing = length - frame.len();
        frame.reserve(missing.min(frame.len().max(STEP_BYTES_LEAST)));
        let mut rest = (&mut *reader).take(missing as u64);
        if rest.read_buf(frame).await? == 0 {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
    }
    Ok(())
}
