//! HTTP: metrics, health, models, and a small page for people.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Context;
use axum::Json;
use axum::Router;
use axum::extract::{Path, State};
use axum::http::{StatusCode, header};
use axum::response::{Html, IntoResponse};
use axum::routing::get;
use metrics_exporter_prometheus::PrometheusHandle;
use serde_json::json;
use speechverse::config::Settings;
use speechverse::kafka::config::TopicsConfig;
use speechverse::nn::accel::Placement;
use speechverse::telemetry::metrics::{self, ClosedSets};
use speechverse::wire::answer::AnswerKind;
use speechverse::wire::dead_letter::{Reason, Stage};
use speechverse::wire::event::Verdict;
use tokio_util::sync::CancellationToken;

use crate::role::Role;

/// Where the process is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Weights load, stages start.
    Starting = 0,
    /// Requests are answered.
    Ready = 1,
    /// What is in flight is finished, nothing new is read.
    Draining = 2,
}

/// Looks whether a condition holds; else says what is missing.
type Check = Box<dyn Fn() -> Result<(), String> + Send + Sync>;

/// Whether requests are answered: the process's phase, and what it needs beside. Clones are the same.
#[derive(Clone, Default)]
pub struct Readiness(Arc<Inner>);

#[derive(Default)]
struct Inner {
    phase: AtomicU8,
    checks: Mutex<Vec<(&'static str, Check)>>,
}

/// A condition that its owner meets when it has done its part, such as warming a network up.
#[derive(Clone, Debug)]
pub struct Condition(Arc<AtomicBool>);

impl Condition {
    /// It holds from now on.
    pub fn met(&self) {
        self.0.store(true, Ordering::Release);
    }
}

impl Readiness {
    /// Enters a phase.
    pub fn set(&self, phase: Phase) {
        self.0.phase.store(phase as u8, Ordering::Release);
    }

    /// Requests are answered only while `check` passes, too; it is asked whenever somebody wants to know.
    pub fn require(
        &self,
        name: &'static str,
        check: impl Fn() -> Result<(), String> + Send + Sync + 'static,
    ) {
        self.checks().push((name, Box::new(check)));
    }

    /// Requests are answered only when the condition is met, too.
    pub fn condition(&self, name: &'static str) -> Condition {
        let condition = Condition(Arc::default());
        let met = Arc::clone(&condition.0);
        self.require(name, move || match met.load(Ordering::Acquire) {
            true => Ok(()),
            false => Err("not yet".to_owned()),
        });
        condition
    }

    /// Whether requests are answered right now.
    pub fn is_ready(&self) -> bool {
        self.lacks().is_empty()
    }

    /// Why requests are not answered right now; empty when they are.
    pub fn lacks(&self) -> Vec<String> {
        match self.0.phase.load(Ordering::Acquire) {
            phase if phase == Phase::Ready as u8 => {}
            phase if phase == Phase::Draining as u8 => return vec!["stopping".to_owned()],
            _ => return vec!["starting".to_owned()],
        }
        let checks = self.checks();
        let lacks = checks
            .iter()
            .filter_map(|(name, check)| check().err().map(|problem| format!("{name}: {problem}")));
        lacks.collect()
    }

    /// A poisoned lock is sound here: the list only grows.
    fn checks(&self) -> std::sync::MutexGuard<'_, Vec<(&'static str, Check)>> {
        self.0.checks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Makes the counters of closed sets 0, so that alerts see the first event.
pub fn counters_at_zero(topics: &TopicsConfig) {
    let reasons: Vec<&str> = Reason::ALL.iter().map(|reason| reason.as_str()).collect();
    let stages: Vec<&str> = Stage::ALL.iter().map(|stage| stage.as_str()).collect();
    let answers: Vec<&str> = AnswerKind::ALL.iter().map(|kind| kind.as_str()).collect();
    let verdicts: Vec<&str> = Verdict::ALL.iter().map(|verdict| verdict.as_str()).collect();
    metrics::counters_at_zero(&ClosedSets {
        reasons: &reasons,
        stages: &stages,
        answers: &answers,
        verdicts: &verdicts,
    });
    for topic in [&topics.requests, &topics.labels, &topics.control] {
        metrics::kafka_records_deleted(topic, 0);
    }
}

/// What the pages show.
#[derive(Clone)]
pub struct HttpState {
    /// Renders the metrics.
    pub metrics: PrometheusHandle,
    /// Phase of the process.
    pub readiness: Readiness,
    /// Name of the adapter version that new requests are pinned to.
    pub adapter: Arc<dyn Fn() -> String + Send + Sync>,
    /// Names of the two frozen networks and the topics, for the page.
    pub facts: Arc<Vec<(&'static str, String)>>,
}

/// Starts the server; it stops when `stop` is cancelled. Returns the address it listens on.
///
/// # Errors
/// When the name does not resolve or the address cannot be bound.
pub async fn serve(listen: &str, state: HttpState, stop: CancellationToken) -> anyhow::Result<SocketAddr> {
    let resolved = tokio::net::lookup_host(listen).await;
    let mut addresses: Vec<SocketAddr> = resolved
        .with_context(|| format!("`http.listen` is `{listen}`, whose name does not resolve"))?
        .collect();
    addresses.sort_by_key(SocketAddr::is_ipv6); // of the two that `localhost` has, the one that more clients try
    let listener = tokio::net::TcpListener::bind(&*addresses).await.with_context(|| {
        format!(
            "cannot listen on {listen} for metrics and health: is another process there? set `http.listen`"
        )
    })?;
    let address = listener.local_addr()?;
    let app = Router::new()
        .route("/", get(page))
        .route("/metrics", get(render_metrics))
        .route("/v2", get(server))
        .route("/v2/health/live", get(|| async { StatusCode::OK }))
        .route("/v2/health/ready", get(ready))
        .route("/v2/models", get(models))
        .route("/v2/models/{name}", get(model))
        .route("/v2/models/{name}/ready", get(model_ready))
        .with_state(state);
    tokio::spawn(async move {
        let stopped = async move { stop.cancelled().await };
        if let Err(error) = axum::serve(listener, app).with_graceful_shutdown(stopped).await {
            tracing::error!(%error, "http server ended");
        }
    });
    Ok(address)
}

async fn render_metrics(State(state): State<HttpState>) -> impl IntoResponse {
    metrics::resident_bytes();
    metrics::ready(state.readiness.is_ready());
    (
        [(header::CONTENT_TYPE, "text/plain; version=0.0.4")],
        metrics::render(&state.metrics),
    )
}

/// 200 `ready`, or 503 with what is missing, a line each.
async fn ready(State(state): State<HttpState>) -> impl IntoResponse {
    match state.readiness.lacks().as_slice() {
        [] => (StatusCode::OK, "ready\n".to_owned()),
        lacks => (StatusCode::SERVICE_UNAVAILABLE, format!("{}\n", lacks.join("\n"))),
    }
}

async fn server() -> impl IntoResponse {
    Json(json!({"name": "speechverse", "version": env!("CARGO_PKG_VERSION"), "extensions": []}))
}

async fn models(State(state): State<HttpState>) -> impl IntoResponse {
    Json(json!({"models": [model_facts(&state)]}))
}

fn model_facts(state: &HttpState) -> serde_json::Value {
    let facts: serde_json::Map<_, _> = state
        .facts
        .iter()
        .map(|(name, value)| ((*name).to_owned(), json!(value)))
        .collect();
    json!({
        "name": "speechverse",
        "versions": [(state.adapter)()],
        "platform": "tch",
        "ready": state.readiness.is_ready(),
        "parameters": facts,
    })
}

async fn model(State(state): State<HttpState>, Path(name): Path<String>) -> axum::response::Response {
    if name != "speechverse" {
        return (
            StatusCode::NOT_FOUND,
            Json(json!({"error": format!("unknown model `{name}`")})),
        )
            .into_response();
    }
    Json(model_facts(&state)).into_response()
}

async fn model_ready(State(state): State<HttpState>, Path(name): Path<String>) -> StatusCode {
    match name.as_str() {
        "speechverse" if state.readiness.is_ready() => StatusCode::OK,
        "speechverse" => StatusCode::SERVICE_UNAVAILABLE,
        _ => StatusCode::NOT_FOUND,
    }
}

async fn page(State(state): State<HttpState>) -> Html<String> {
    let rows: String = state
        .facts
        .iter()
        .map(|(name, value)| format!("<tr><th>{}</th><td>{}</td></tr>", escape(name), escape(value)))
        .collect();
    let phase = match state.readiness.lacks().as_slice() {
        [] => "ready".to_owned(),
        lacks => format!("not ready: {}", escape(&lacks.join("; "))),
    };
    Html(format!(
        "<!doctype html><html lang=en><meta charset=utf-8><title>speechverse</title>\
         <style>body{{font:16px system-ui;margin:3rem auto;max-width:46rem}}th{{text-align:left;padding-right:2rem}}</style>\
         <h1>speechverse</h1><table><tr><th>state</th><td>{phase}</td></tr><tr><th>adapter</th><td>{}</td></tr>{rows}</table>\
         <p><a href=/metrics>metrics</a> · <a href=/v2/health/ready>ready</a> · <a href=/v2/models>models</a></p></html>",
        escape(&(state.adapter)())
    ))
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
}

/// What the status page shows.
pub(crate) fn facts(
    role: Role,
    settings: &Settings,
    placement: &Placement,
    detector: &str,
) -> Vec<(&'static str, String)> {
    let name = |path: &std::path::Path| {
        path.file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned()
    };
    vec![
        ("role", role.words().to_owned()),
        ("encoder", name(&settings.model.encoder)),
        ("language model", name(&settings.model.llm)),
        ("voice activity detector", detector.to_owned()),
        ("device", placement.to_string()),
        ("broker", settings.kafka.bootstrap.clone()),
        ("requests", settings.kafka.topics.requests.clone()),
        ("results", settings.kafka.topics.results.clone()),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_answered_when_the_phase_is_reached_and_every_condition_holds() {
        let readiness = Readiness::default();
        let warm = readiness.condition("networks");
        let reachable = Arc::new(AtomicBool::new(false));
        let check = Arc::clone(&reachable);
        readiness.require("kafka", move || match check.load(Ordering::Relaxed) {
            true => Ok(()),
            false => Err("no broker".to_owned()),
        });
        assert_eq!(readiness.lacks(), ["starting"]);

        readiness.set(Phase::Ready);
        assert_eq!(readiness.lacks(), ["networks: not yet", "kafka: no broker"]);
        warm.met();
        reachable.store(true, Ordering::Relaxed);
        assert!(readiness.is_ready());

        reachable.store(false, Ordering::Relaxed);
        assert_eq!(readiness.lacks(), ["kafka: no broker"]);
        reachable.store(true, Ordering::Relaxed);
        assert!(readiness.is_ready());
        readiness.set(Phase::Draining);
        assert_eq!(readiness.lacks(), ["stopping"]);
    }

    #[test]
    fn every_series_that_the_shipped_alerts_count_is_there_from_the_start() {
        let alerts = include_str!("../../deploy/prometheus/alerts.yml");
        let handle = metrics::install().unwrap();
        counters_at_zero(&TopicsConfig::default());
        metrics::stage_started("decoder", false);
        let text = metrics::render(&handle);

        let words = alerts.split(|character: char| !character.is_ascii_alphanumeric() && character != '_');
        let names: std::collections::BTreeSet<&str> = words
            .filter(|word| word.starts_with("speechverse_"))
            .filter(|word| word.ends_with("_total") || word.ends_with("_bucket"))
            .collect();
        assert!(names.len() >= 6, "{names:?}");
        for name in names {
            let series: Vec<&str> = text.lines().filter(|line| line.starts_with(name)).collect();
            assert!(!series.is_empty(), "{name} is absent");
            assert!(series.iter().all(|line| line.ends_with(" 0")), "{series:?}");
        }
    }
}
