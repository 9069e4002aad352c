//! The service that is measured: started here, or running already; and what it has used so far.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, bail};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};

/// Longest that it may take to end.
const STOP_MAX: Duration = Duration::from_secs(30);
/// Longest that its metrics may take.
const HTTP_MAX: Duration = Duration::from_secs(5);

/// See the module.
pub(super) struct Served {
    pub(super) bootstrap: String,
    http: Option<SocketAddr>,
    process: Option<u32>,
    /// Where it was started here, with the folder in which it writes.
    child: Option<(Child, tempfile::TempDir)>,
}

/// What a service has used since its start.
#[derive(Clone, Debug, Default)]
pub(super) struct Usage {
    metrics: Option<String>,
    /// Processor seconds and resident bytes.
    process: Option<(f64, u64)>,
}

impl Served {
    /// One that runs.
    pub(super) fn running(bootstrap: &str, http: Option<SocketAddr>, process: Option<u32>) -> Self {
        Self {
            bootstrap: bootstrap.to_owned(),
            http,
            process,
            child: None,
        }
    }

    /// Starts this program's `serve` with a broker of its own.
    pub(super) async fn start(config: &Path) -> anyhow::Result<Self> {
        let folder = tempfile::tempdir()?;
        let program = std::env::current_exe().context("where is this program?")?;
        let mut child = Command::new(program)
            .arg("serve")
            .arg("--config")
            .arg(config)
            .arg("--embedded-broker")
            .env("SPEECHVERSE__BROKER__ADDRESS", "127.0.0.1:0")
            .env("SPEECHVERSE__HTTP__LISTEN", "127.0.0.1:0")
            .env("SPEECHVERSE__STORE__DIR", folder.path().join("samples"))
            .env("SPEECHVERSE__ADAPTERS__DIR", folder.path().join("adapters"))
            .env("SPEECHVERSE__ENCODER__CACHE_BYTES_MAX", "0")
            .env("RUST_LOG", "warn")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        let output = child.stdout.take().context("its output was asked for")?;
        let mut lines = BufReader::new(output).lines();
        while let Some(line) = lines.next_line().await? {
            let Some(facts) = line.strip_prefix("ready ") else {
                continue;
            };
            let fact = |name: &str| {
                let mut words = facts.split(' ');
                words.find_map(|word| word.strip_prefix(name)?.strip_prefix('=').map(str::to_owned))
            };
            let http = fact("http").context("it does not say where its metrics are")?;
            return Ok(Self {
                bootstrap: fact("bootstrap").context("it does not say where its broker is")?,
                http: Some(http.trim_start_matches("http://").parse()?),
                process: child.id(),
                child: Some((child, folder)),
            });
        }
        bail!("it ended before it was ready: {}", child.wait().await?)
    }

    /// What it has used so far, as far as that can be known.
    pub(super) fn usage(&self) -> Usage {
        let metrics = self.http.and_then(|address| {
            get(address, "/metrics")
                .inspect_err(|error| tracing::warn!(%error, "the service does not tell its metrics"))
                .ok()
        });
        Usage {
            metrics,
            process: self.process.and_then(process_usage),
        }
    }

    /// Ends it, where it was started here.
    pub(super) async fn stop(self) -> anyhow::Result<()> {
        let Some((mut child, _folder)) = self.child else {
            return Ok(());
        };
        if let Some(id) = child.id().and_then(|id| i32::try_from(id).ok()) {
            // SAFETY: `kill` takes plain numbers, and the process is a child that has not been waited for.
            unsafe { libc::kill(id, libc::SIGTERM) };
        }
        let ended = tokio::time::timeout(STOP_MAX, child.wait()).await;
        ended.context("`serve` does not end")??;
        Ok(())
    }
}

impl Usage {
    /// The sum of a metric over its series with `label`, which may be empty; `None` where there are none.
    pub(super) fn metric(&self, name: &str, label: &str) -> Option<f64> {
        let metrics = self.metrics.as_ref()?;
        let value = |line: &str| {
            let rest = line.strip_prefix(name)?;
            let (labels, value) = rest.rsplit_once(' ')?;
            let is_it = labels.is_empty() || labels.starts_with('{');
            (is_it && labels.contains(label)).then(|| value.parse::<f64>().ok())?
        };
        metrics.lines().filter_map(value).reduce(|sum, value| sum + value)
    }

    /// Processor seconds.
    pub(super) fn processor_seconds(&self) -> Option<f64> {
        self.process.map(|(seconds, _)| seconds)
    }

    /// Resident memory, bytes.
    pub(super) fn resident_bytes(&self) -> Option<u64> {
        self.process.map(|(_, bytes)| bytes)
    }
}

fn get(address: SocketAddr, path: &str) -> anyhow::Result<String> {
    let mut connection = TcpStream::connect_timeout(&address, HTTP_MAX)?;
    connection.set_read_timeout(Some(HTTP_MAX))?;
    write!(
        connection,
        "GET {path} HTTP/1.1\r\nHost: bench\r\nConnection: close\r\n\r\n"
    )?;
    let mut answer = String::new();
    connection.read_to_string(&mut answer)?;
    let (_, body) = answer.split_once("\r\n\r\n").context("no answer in HTTP")?;
    Ok(body.to_owned())
}

/// Processor seconds and resident bytes of a process and its threads; `None` where there is no `/proc`.
fn process_usage(process: u32) -> Option<(f64, u64)> {
    // The name in parentheses may hold spaces; the fields are counted behind it (proc(5): 14, 15, 24).
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let ticks = fields.get(11)?.parse::<f64>().ok()? + fields.get(12)?.parse::<f64>().ok()?;
    let pages: u64 = fields.get(21)?.parse().ok()?;
    // SAFETY: `sysconf` takes a plain number.
    let (per_second, page) = unsafe {
        (
            libc::sysconf(libc::_SC_CLK_TCK),
            libc::sysconf(libc::_SC_PAGESIZE),
        )
    };
    Some((ticks / per_second as f64, pages * u64::try_from(page).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn series_of_one_name_are_added_and_longer_names_are_others() {
        let usage = Usage {
            metrics: Some(
                "# HELP passes_sum x\npasses_sum{pass=\"encode\"} 1.5\npasses_sum{pass=\"step\"} 2\npasses_sum_more 9\nplain 3\n"
                    .to_owned(),
            ),
            process: None,
        };

        assert_eq!(usage.metric("passes_sum", ""), Some(3.5));
        assert_eq!(usage.metric("passes_sum", "pass=\"step\""), Some(2.0));
        assert_eq!(usage.metric("plain", ""), Some(3.0));
        assert_eq!(usage.metric("others", ""), None);
        assert_eq!(Usage::default().metric("plain", ""), None);
    }

    #[test]
    fn this_process_has_memory() {
        if let Some((seconds, bytes)) = process_usage(std::process::id()) {
            assert!(seconds >= 0.0 && bytes > 1 << 20, "{seconds} s, {bytes} bytes");
        }
    }
}
