//! `speechverse bench`.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};

/// `speechverse bench`.
#[derive(Debug, Subcommand)]
pub enum Bench {
    /// Offer requests at several rates, and report latency, throughput and what the service spends on them.
    Serve(BenchServe),
}

/// `speechverse bench serve`.
#[derive(Args, Debug)]
pub struct BenchServe {
    /// Settings file (TOML) of the service, and of the topics.
    #[arg(long, value_name = "FILE", default_value = "configs/demo.toml")]
    pub config: PathBuf,
    /// Drive a service that runs on this broker, host:port, whatever it is made of; without it, `serve` is
    /// started with a broker of its own, and without a cache of features, which repeated clips would hit.
    #[arg(long, value_name = "HOST:PORT")]
    pub bootstrap: Option<String>,
    /// Where the running service has its metrics, for what only it knows: passes, batches, tokens.
    #[arg(long, value_name = "HOST:PORT", requires = "bootstrap")]
    pub http: Option<SocketAddr>,
    /// Process id of the running service, for its memory and processor time.
    #[arg(long, value_name = "PID", requires = "bootstrap")]
    pub process: Option<u32>,
    /// What the service is called in the report.
    #[arg(long, value_name = "TEXT", default_value = "speechverse serve")]
    pub name: String,
    /// Manifest (JSON lines) whose `asr` rows are asked, with their transcripts; repeat for more.
    #[arg(long, value_name = "FILE", required = true)]
    pub references: Vec<PathBuf>,
    /// Requests that are asked one after another, for the latency and the overhead of an idle service.
    #[arg(long, value_name = "COUNT", default_value_t = 24)]
    pub unloaded: usize,
    /// Requests that are asked all at once, for the throughput at saturation.
    #[arg(long, value_name = "COUNT", default_value_t = 96)]
    pub saturation: usize,
    /// Offered loads, as shares of that throughput.
    #[arg(
        long,
        value_name = "SHARES",
        default_value = "0.25,0.5,0.8,1.1",
        value_delimiter = ','
    )]
    pub loads: Vec<f64>,
    /// When the requests of a load come, and those of the simulated queue that it is compared with.
    #[arg(long, value_enum, value_name = "KIND", default_value_t = ArrivalKind::Poisson)]
    pub arrivals: ArrivalKind,
    /// How long each load is offered, seconds.
    #[arg(long, value_name = "SECONDS", default_value_t = 30.0)]
    pub seconds: f64,
    /// Latency, milliseconds, up to which an answer is good: goodput counts those.
    #[arg(long, value_name = "MS", default_value_t = 2_000)]
    pub good_ms: u64,
    /// Longest wait for an answer, seconds.
    #[arg(long, value_name = "SECONDS", default_value_t = 300)]
    pub timeout: u64,
    /// Of all that is random: Poisson arrivals, and the simulated queue.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Print one JSON object a line.
    #[arg(long)]
    pub json: bool,
}

/// How requests of one rate follow each other.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum ArrivalKind {
    /// At random: the times between them are exponential.
    Poisson,
    /// Evenly spaced.
    Even,
}

impl ArrivalKind {
    /// As on the command line, for the report.
    pub fn name(self) -> &'static str {
        match self {
            Self::Poisson => "poisson",
            Self::Even => "even",
        }
    }
}
