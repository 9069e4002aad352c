//! Frames to the embedded broker, over its socket as from any client.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::LazyLock;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use embedded_broker::{BrokerConfig, EmbeddedBroker};
use tokio::runtime::Runtime;

/// Longest that the broker may take to answer a greeting.
const ANSWER_WAIT_MAX: Duration = Duration::from_secs(10);
/// Longest that is waited for the answer to a changed request.
const WAIT_MAX: Duration = Duration::from_millis(300);
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
/// Returns whether anything was answered; a request may wait for news longer than this does.
///
/// # Panics
/// When a task of the broker panicked, or it answers no other client any more.
pub(crate) fn frame(data: &[u8]) -> bool {
    let before = PANICS.load(Ordering::SeqCst);
    let length = i32::try_from(data.len()).unwrap_or(i32::MAX).to_be_bytes();
    let answered = !talk(&[&length[..], data, data].concat(), WAIT_MAX).is_empty();
    assert_eq!(
        PANICS.load(Ordering::SeqCst),
        before,
        "a task of the broker panicked"
    );
    // ApiVersions, version 0, without a client's name.
    let greeting = [0, 0, 0, 10, 0, 18, 0, 0, 0, 0, 0, 1, 0xff, 0xff];
    assert!(
        !talk(&greeting, ANSWER_WAIT_MAX).is_empty(),
        "the broker answers nobody any more"
    );
    answered
}

/// What the broker answers on a connection of its own, until it hangs up or nothing comes for so long.
fn talk(bytes: &[u8], wait: Duration) -> Vec<u8> {
    let mut stream = TcpStream::connect(BROKER.address).expect("the broker accepts connections");
    stream.set_read_timeout(Some(wait)).expect("a timeout");
    // The broker may hang up in the middle.
    let _ = stream
        .write_all(bytes)
        .and_then(|()| stream.shutdown(Shutdown::Write));
    let mut answers = Vec::new();
    let _ = stream.take(ANSWER_BYTES_MAX).read_to_end(&mut answers);
    answers
}
