//! A broker in a process of its own, which can be stopped, and killed where it has a disk to come back from.

use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::process::{Command, Stdio};

use embedded_broker::{BrokerConfig, EmbeddedBroker};

use crate::process::{Mortal, signal};

/// The variable that [`process_that_is_a_broker`] is started with.
const ORDERS: &str = "SPEECHVERSE_TEST_BROKER";
/// How it says where it listens.
const LISTENS: &str = "broker ";
const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");

/// A broker.
pub(crate) struct Broker {
    pub(crate) name: &'static str,
    pub(crate) bootstrap: String,
    kind: Kind,
}

enum Kind {
    /// In memory.
    Embedded(Mortal),
    /// On disk, started by `scripts/kafka/start.sh`.
    Apache { port: u16, id: u32 },
}

impl Broker {
    /// The embedded broker.
    pub(crate) fn embedded() -> Self {
        let mut process = Command::new(std::env::current_exe().unwrap())
            .args([
                "--exact",
                "broker::process_that_is_a_broker",
                "--ignored",
                "--nocapture",
            ])
            .env(ORDERS, "1")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let output = BufReader::new(process.stdout.take().unwrap());
        let process = Mortal(process);
        let mut lines = output.lines().map_while(Result::ok);
        let bootstrap =
            lines.find_map(|line| line.split_once(LISTENS).map(|(_, address)| address.to_owned()));
        std::thread::spawn(move || lines.for_each(drop)); // it says more later, and ends where nobody listens
        Self {
            name: "embedded broker",
            bootstrap: bootstrap.expect("the broker says where it listens"),
            kind: Kind::Embedded(process),
        }
    }

    /// An Apache Kafka of its own; the reason where it cannot run here.
    pub(crate) fn apache() -> Result<Self, String> {
        let port = free_port();
        let (bootstrap, id) = start_apache(&[&port.to_string()])?;
        Ok(Self {
            name: "Apache Kafka",
            bootstrap,
            kind: Kind::Apache { port, id },
        })
    }

    /// Whether it comes back from a kill with what it had.
    pub(crate) fn has_disk(&self) -> bool {
        matches!(self.kind, Kind::Apache { .. })
    }

    /// From now on it answers nobody, and connections stay open.
    pub(crate) fn pause(&self) {
        signal(self.id(), "STOP");
    }

    /// It goes on.
    pub(crate) fn go_on(&self) {
        signal(self.id(), "CONT");
    }

    /// It dies, and comes back with its data.
    pub(crate) fn kill_and_restart(&mut self) {
        signal(self.id(), "KILL");
        let Kind::Apache { port, id } = &mut self.kind else {
            panic!("what is in memory only does not come back");
        };
        let (_, new_id) = start_apache(&["--again", &port.to_string()]).expect("it ran before");
        *id = new_id;
    }

    fn id(&self) -> u32 {
        match &self.kind {
            Kind::Embedded(process) => process.0.id(),
            Kind::Apache { id, .. } => *id,
        }
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        if let Kind::Apache { port, .. } = &self.kind {
            self.go_on();
            let stopped = Command::new(format!("{ROOT}/scripts/kafka/stop.sh"))
                .arg(port.to_string())
                .status();
            assert!(
                std::thread::panicking() || stopped.is_ok_and(|status| status.success()),
                "Apache Kafka did not stop"
            );
        }
    }
}

/// Address and process id of an Apache Kafka that is ready.
fn start_apache(arguments: &[&str]) -> Result<(String, u32), String> {
    let started = Command::new(format!("{ROOT}/scripts/kafka/start.sh"))
        .args(arguments)
        .output()
        .map_err(|error| error.to_string())?;
    let words = String::from_utf8_lossy(&started.stdout);
    let mut lines = words.lines();
    let found = lines
        .next()
        .zip(lines.next())
        .and_then(|(address, id)| Some((address.to_owned(), id.parse().ok()?)));
    found.ok_or_else(|| {
        String::from_utf8_lossy(&started.stderr)
            .trim()
            .replace('\n', "; ")
    })
}

/// A port that is free, with its neighbour free too.
fn free_port() -> u16 {
    loop {
        let port = TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap()
            .port();
        if port < u16::MAX && TcpListener::bind(("127.0.0.1", port + 1)).is_ok() {
            return port;
        }
    }
}

/// The process that [`Broker::embedded`] starts.
#[test]
#[ignore = "started by the fault suite"]
#[allow(clippy::print_stdout, reason = "how it says where it listens")]
fn process_that_is_a_broker() {
    std::env::var(ORDERS).expect("the fault suite starts this process");
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let config = BrokerConfig {
            address: "127.0.0.1:0".parse().unwrap(),
            bytes_per_topic_max: 1 << 30,
            bytes_max: 2 << 30,
            ..BrokerConfig::default()
        };
        let broker = EmbeddedBroker::start(config).await.unwrap();
        println!("{LISTENS}{}", broker.bootstrap());
        std::future::pending::<()>().await;
    });
}
