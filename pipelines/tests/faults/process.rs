//! `speechverse serve` as a process that can be killed, stopped, and started with a fault in it.

use std::collections::{BTreeSet, VecDeque};
use std::io::{BufRead, BufReader, Read, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::Value;
use speechverse::config::Settings;
use speechverse::kafka::admin::ensure_topics;
use speechverse::kafka::config::Delivery;
use speechverse::testing::{TinyModels, publish_first_version};

use crate::command::output_of;

/// Longest that it may take to answer a question about itself.
const METRICS_MAX: Duration = Duration::from_secs(2);
/// What it logs, where `SPEECHVERSE_FAULTS_LOG` does not say otherwise.
const DEFAULT_LOG: &str = "info,librdkafka=off,kameo=off";
/// Longest that a process may take until it is ready, on a busy machine.
const READY_MAX: Duration = Duration::from_secs(120);
/// Longest that it may take to end when it is asked to.
const STOP_MAX: Duration = Duration::from_secs(60);
/// Lines of its log that are kept.
const LOG_LINES: usize = 400;
/// A member that is silent for so long loses its partitions.
pub(crate) const SESSION: Duration = Duration::from_secs(6);
/// Largest file that a process with a full disk can write, KiB: less than a labelled sample.
const DISK_KIB: u32 = 4;

/// A process that is killed when this is dropped.
pub(crate) struct Mortal(pub(crate) Child);

impl Drop for Mortal {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Sends a signal, named without `SIG`.
pub(crate) fn signal(process: u32, name: &str) {
    let sent = Command::new("kill")
        .args([format!("-{name}"), process.to_string()])
        .status();
    assert!(sent.unwrap().success(), "SIG{name} cannot be sent to {process}");
}

/// What is wrong with a process from its start on.
#[derive(Clone, Debug, Default)]
pub(crate) struct Flaw {
    /// `STAGE:ITEM,...`: which stages panic, at which of their work items.
    pub(crate) panics: String,
    /// `MILLISECONDS:SECONDS,...`: when the time of day jumps, and by how much.
    pub(crate) jumps: String,
    /// Its disk takes no labelled sample.
    pub(crate) disk_is_full: bool,
}

/// What all processes of a run share.
pub(crate) struct Site {
    pub(crate) settings: Settings,
    dir: tempfile::TempDir,
}

impl Site {
    /// Tiny models, and settings for them, on a broker.
    pub(crate) fn new(bootstrap: &str, delivery: Delivery) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let models = TinyModels::write(dir.path(), 7);
        let mut settings = Settings::default();
        settings.model.encoder = models.encoder;
        settings.model.llm = models.llm;
        settings.model.precision = "f32".parse().unwrap();
        settings.model.threads = 1;
        settings.service.tasks_dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../configs/tasks");
        settings.kafka.bootstrap = bootstrap.to_owned();
        settings.kafka.delivery = delivery;
        settings.kafka.partitions = 3;
        settings.kafka.session_timeout_ms = SESSION.as_millis() as u64;
        settings.service.drain_ms_max = 5_000;
        settings.store.correction_wait_ms = 500;
        settings.speech.session_idle_seconds_max = 300; // longer than an outage that parts a stream's chunks
        settings.adapters.prefix = "tiny".into();
        settings.trainer.enabled = false;
        settings.http.listen = "127.0.0.1:0".parse().unwrap();
        settings.decoder.tokens_max = 4;
        settings.decoder.positions_max = 512;
        settings.audio.seconds_max = 20.0;
        settings.audio.whole_seconds_max = 20.0;
        Self { settings, dir }
    }

    /// Makes the topics, so that those who only read find them.
    pub(crate) fn make_topics(&self) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime
            .block_on(ensure_topics(&self.settings.kafka, READY_MAX))
            .unwrap();
    }

    /// Ids of the labelled samples that the processes stored.
    pub(crate) fn stored(&self) -> BTreeSet<String> {
        let folders = std::fs::read_dir(self.dir.path()).unwrap();
        let files = folders.map(|folder| folder.unwrap().path().join("serve.toml"));
        let rows = files.filter(|file| file.exists()).flat_map(|file| {
            let list = ["samples", "list", "--json", "--config", file.to_str().unwrap()];
            let output = output_of(Command::new(env!("CARGO_BIN_EXE_speechverse")).args(list));
            let rows = output.lines().map(|row| serde_json::from_str(row).unwrap());
            rows.collect::<Vec<Value>>()
        });
        rows.map(|row| row["request_id"].as_str().unwrap().to_owned())
            .collect()
    }

    /// The settings file of a process, whose folders are its own.
    fn settings_file(&self, name: &str) -> PathBuf {
        let folder = self.dir.path().join(name);
        let file = folder.join("serve.toml");
        let mut settings = self.settings.clone();
        settings.kafka.instance_id = name.to_owned();
        settings.adapters.dir = folder.join("adapters");
        settings.store.dir = folder.join("samples");
        settings.trainer.runs_dir = folder.join("runs");
        if !file.exists() {
            std::fs::create_dir_all(&folder).unwrap();
            publish_first_version(
                &settings.adapters.dir,
                &settings.model.encoder,
                &settings.model.llm,
            );
            std::fs::write(&file, settings.to_toml()).unwrap();
        }
        file
    }
}

/// A running `speechverse serve`.
pub(crate) struct Serve {
    process: Mortal,
    log: Arc<Mutex<VecDeque<String>>>,
    /// Where its pages are, once it is ready.
    http: Arc<Mutex<Option<SocketAddr>>>,
}

impl Serve {
    /// Starts it under a name, which it shares with those before it; returns when it is ready.
    pub(crate) fn start(site: &Site, name: &str, flaw: &Flaw) -> Self {
        let file = site.settings_file(name);
        let program = env!("CARGO_BIN_EXE_speechverse");
        let mut command = match flaw.disk_is_full {
            false => Command::new(program),
            true => {
                // A write beyond the limit is an error, as on a full disk, and no signal.
                let limited = format!("trap '' XFSZ; ulimit -f {DISK_KIB}; exec \"$0\" \"$@\"");
                let mut shell = Command::new("bash");
                shell.args(["-c", &limited, program]);
                shell
            }
        };
        let mut process = command
            .args(["serve", "--config", file.to_str().unwrap()])
            .env("OMP_WAIT_POLICY", "PASSIVE")
            .env("OMP_NUM_THREADS", "1")
            .env(
                "RUST_LOG",
                std::env::var("SPEECHVERSE_FAULTS_LOG").unwrap_or_else(|_| DEFAULT_LOG.to_owned()),
            )
            .env("SPEECHVERSE_TEST_PANICS", &flaw.panics)
            .env("SPEECHVERSE_TEST_CLOCK_JUMPS", &flaw.jumps)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let (log, http) = (Arc::default(), Arc::new(Mutex::new(None)));
        let (ready, is_ready) = flume::bounded(1);
        keep_lines(process.stderr.take().unwrap(), &log, |_| {});
        let address = Arc::clone(&http);
        keep_lines(process.stdout.take().unwrap(), &log, move |line| {
            if line.starts_with("ready ") {
                let page = line
                    .split_whitespace()
                    .find_map(|word| word.strip_prefix("http=http://"));
                *address.lock().unwrap() = page.and_then(|page| page.parse().ok());
                let _ = ready.try_send(());
            }
        });
        let serve = Self {
            process: Mortal(process),
            log,
            http,
        };
        // Who does not get ready because it ended drops the sender with its output.
        let is_ready = is_ready.recv_timeout(READY_MAX);
        assert!(
            is_ready.is_ok(),
            "{name} ({flaw:?}) is not ready:\n{}",
            serve.log()
        );
        serve
    }

    /// The end of what it printed.
    pub(crate) fn log(&self) -> String {
        let lines: Vec<String> = self.log.lock().unwrap().iter().cloned().collect();
        lines.join("\n")
    }

    /// Its metrics now but for histograms, as far as it tells them.
    pub(crate) fn metrics(&self) -> String {
        let address = *self.http.lock().unwrap();
        let asked = address.and_then(|address| {
            let mut stream = TcpStream::connect_timeout(&address, METRICS_MAX).ok()?;
            stream.set_read_timeout(Some(METRICS_MAX)).ok()?;
            stream.write_all(b"GET /metrics HTTP/1.0\r\n\r\n").ok()?;
            let mut text = String::new();
            stream.read_to_string(&mut text).ok()?;
            Some(text)
        });
        let text = asked.unwrap_or_default();
        let is_plain = |line: &&str| line.starts_with("speechverse_") && !line.contains("_bucket");
        text.lines().filter(is_plain).collect::<Vec<_>>().join("\n")
    }

    pub(crate) fn signal(&self, name: &str) {
        signal(self.process.0.id(), name);
    }

    /// How it ended, where it has.
    pub(crate) fn ended(&mut self) -> Option<std::process::ExitStatus> {
        self.process.0.try_wait().unwrap()
    }

    /// Asks it to end, and waits.
    pub(crate) fn stop(mut self) {
        if self.ended().is_some() {
            return;
        }
        self.signal("TERM");
        let deadline = Instant::now() + STOP_MAX;
        while self.ended().is_none() {
            assert!(Instant::now() < deadline, "it does not end:\n{}", self.log());
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

/// Keeps the last lines of an output, on a thread of its own, until the output ends.
fn keep_lines(
    output: impl Read + Send + 'static,
    log: &Arc<Mutex<VecDeque<String>>>,
    mut on_line: impl FnMut(&str) + Send + 'static,
) {
    let log = Arc::clone(log);
    std::thread::spawn(move || {
        for line in BufReader::new(output).lines().map_while(Result::ok) {
            on_line(&line);
            let mut log = log.lock().unwrap();
            if log.len() == LOG_LINES {
                log.pop_front();
            }
            log.push_back(line);
        }
    });
}
