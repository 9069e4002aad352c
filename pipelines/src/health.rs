//! HTTP: metrics, health, models, and a small page for people.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use anyhow::Context;
use axum::Json;
use axum::Router;
use axum::extract::{Path, State};
use axum::http::{StatusCode, header};
use axum::response::{Html, IntoResponse};
use axum::routing::get;
use metrics_exporter_prometheus::PrometheusHandle;
use serde_json::json;
use speechverse::telemetry::metrics;
use tokio_util::sync::CancellationToken;

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

/// The process's phase, shared with the health page.
#[derive(Clone, Debug, Default)]
pub struct Readiness(Arc<AtomicU8>);

impl Readiness {
    /// Enters a phase.
    pub fn set(&self, phase: Phase) {
        self.0.store(phase as u8, Ordering::Release);
    }

    /// Whether requests are answered right now.
    pub fn is_ready(&self) -> bool {
        self.0.load(Ordering::Acquire) == Phase::Ready as u8
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
    (
        [(header::CONTENT_TYPE, "text/plain; version=0.0.4")],
        state.metrics.render(),
    )
}

fn readiness_code(state: &HttpState) -> StatusCode {
    if state.readiness.is_ready() {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    }
}

async fn ready(State(state): State<HttpState>) -> StatusCode {
    readiness_code(&state)
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
    if name == "speechverse" {
        readiness_code(&state)
    } else {
        StatusCode::NOT_FOUND
    }
}

async fn page(State(state): State<HttpState>) -> Html<String> {
    let rows: String = state
        .facts
        .iter()
        .map(|(name, value)| format!("<tr><th>{}</th><td>{}</td></tr>", escape(name), escape(value)))
        .collect();
    let phase = if state.readiness.is_ready() {
        "ready"
    } else {
        "not ready"
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
