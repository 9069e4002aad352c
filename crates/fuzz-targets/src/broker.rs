//! Frames to the embedded broker, over its socket as from any client.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::LazyLock;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use embedded_broker::{BrokerConfig, EmbeddedBroker};
use tokio::runtime::Runtime;

/// Longest that the broker may take to answer or to hang up.
const ANSWER_WAIT_MAX: Duration = Duration::from_secs(10);
/// The name of the broker's threads: other targets may run beside it, with panics that they catch.
const THREAD: &str = "fuzz-broker";
/// Most bytes of answers that are read.
const ANSWER_BYTES_MAX: u64 = 1 << 20;

/// A broker for the whole process; a panic in one of its tasks is counted, because its runtime would hide it.
struct Running {
    _runtime: Runtime,
    _broker: EmbeddedBroker,
    address: SocketAddr,
}

static PANICS: AtomicUsize = AtomicUsize::new(0);
static BROKER: LazyLock<Running> = LazyLock::new(|| {
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        if std::thread::current().name() == Some(THREAD) {
            PANICS.fetch_add(1, Ordering::SeqCst);
        }
        hook(info);
    }));
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .thread_name(THREAD)
        .enable_all()
        .build()
        .expect("a runtime");
    // Small limits, so that what clients leave behind does not grow from run to run.
    let config = BrokerConfig {
        message_bytes_max: 1 << 16,
        bytes_per_topic_max: 1 << 20,
        bytes_max: 1 << 22,
        topics_max: 100,
        ..BrokerConfig::default()
    };
    let broker = runtime
        .block_on(EmbeddedBroker::start(config))
        .expect("a free port");
    Running {
        address: broker.address(),
        _runtime: runtime,
        _broker: broker,
    }
});

/// Sends the bytes as one frame, then once more as they are: lengths that lie are for the broker to notice.
///
/// # Panics
/// When a task of the broker panicked, or it does not answer or hang up in time.
pub(crate) fn frame(data: &[u8]) -> bool {
    let address = BROKER.address;
    let before = PANICS.load(Ordering::SeqCst);
    let length = i32::try_from(data.len()).unwrap_or(i32::MAX).to_be_bytes();
    let mut stream = TcpStream::connect(address).expect("the broker accepts connections");
    stream.set_read_timeout(Some(ANSWER_WAIT_MAX)).expect("a timeout");
    // The broker may hang up in the middle.
    let _ = stream
        .write_all(&[&length[..], data, data].concat())
        .and_then(|()| stream.shutdown(Shutdown::Write));
    let mut answers = Vec::new();
    if let Err(error) = stream.take(ANSWER_BYTES_MAX).read_to_end(&mut answers) {
        assert_ne!(
            error.kind(),
            std::io::ErrorKind::WouldBlock,
            "the broker neither answers nor hangs up"
        );
    }
    assert_eq!(
        PANICS.load(Ordering::SeqCst),
        before,
        "a task of the broker panicked"
    );
    !answers.is_empty()
}
