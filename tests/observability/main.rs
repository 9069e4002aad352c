//! What an operator sees of a running pipeline: counters that add up, and a trace of each request in a
//! collector.
//!
//! One process of its own: the recorder of metrics and the export of traces are there once for a process.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "../system/harness.rs"]
#[expect(
    dead_code,
    reason = "the harness of the system tests, of which this needs a part"
)]
mod harness;

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::trace::v1::Span;
use prost::Message as _;
use speechverse::telemetry::config::{LogConfig, TraceConfig};
use speechverse::telemetry::logs;
use speechverse::util::hex;

use harness::{Sandbox, WAIT_MAX, header, tone};

/// Trace and span that the producer names in its `traceparent`.
const TRACE_ID: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const PARENT_ID: &str = "00f067aa0ba902b7";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_is_one_trace_through_every_stage_and_the_counters_of_stages_add_up() {
    let collector = Collector::start();
    let trace = TraceConfig {
        otlp_endpoint: collector.endpoint(),
        ..TraceConfig::default()
    };
    let telemetry = logs::init(&LogConfig::default(), &trace).unwrap();
    let sandbox = Sandbox::new().await;
    let pipeline = sandbox.start().await;
    let http = pipeline.addresses().http;
    let mut client = sandbox.client().await;
    let traceparent = format!("00-{TRACE_ID}-{PARENT_ID}-01");
    let headers = vec![("traceparent".to_owned(), Some(traceparent.into()))];

    client.request("traced", "k", tone(0.5, 200.0), headers).await;
    let (answer, record) = client.answer().await;
    assert_eq!(answer.request_id, "traced");
    client
        .request("bad", "k", "this is no audio".into(), Vec::new())
        .await;
    client.dead_letter().await;
    client.request("good", "k", tone(0.4, 300.0), Vec::new()).await;
    client.answer().await;
    let stages = settled(http);
    // A second question about the same sound.
    let (hits, misses) = encoder_cache(http);
    let other = vec![header("ce_instruction", "How many people speak?")];
    client.request("again", "k", tone(0.5, 200.0), other).await;
    client.answer().await;
    assert_eq!(
        encoder_cache(http),
        (hits + 1, misses),
        "the encoder reads no sound twice"
    );
    // A chunk of a stream that its producer wrote twice.
    for (number, is_final) in [(0, false), (0, false), (1, true)] {
        let chunk = vec![
            header("ce_type", "speechverse.chunk.v1"),
            header("ce_session", "call"),
            header("ce_sequence", number.to_string()),
            header("ce_final", is_final.to_string()),
            header("content-type", "audio/L16;rate=16000;channels=1"),
        ];
        client
            .request("stream", "k", vec![number; 6400].into(), chunk)
            .await;
    }
    let (answer, _) = client.answer().await;
    assert_eq!(
        (answer.request_id.as_str(), answer.audio_seconds),
        ("stream", 0.4)
    );
    assert!(metrics(http).contains("\nspeechverse_chunks_repeated_total 1\n"));
    sandbox.end(pipeline).await;
    drop(telemetry); // sends the spans that still wait

    for (stage, counts) in &stages {
        assert_eq!(
            counts.entered,
            counts.left + counts.rejected,
            "{stage}: {counts:?}"
        );
    }
    assert_eq!((stages["ingest"].left, stages["ingest"].rejected), (2, 1));
    for stage in ["encode", "decode"] {
        assert_eq!((stages[stage].entered, stages[stage].left), (2, 2), "{stage}");
    }
    assert_eq!((stages["publish"].entered, stages["publish"].left), (3, 3));
    let spans = collector.spans_of(TRACE_ID);
    let named = |name: &str| {
        let found: Vec<&Span> = spans.iter().filter(|span| span.name == name).collect();
        assert_eq!(found.len(), 1, "`{name}` among {:?}", names(&spans));
        found[0].clone()
    };
    let request = named("request");
    assert_eq!(hex(&request.parent_span_id), PARENT_ID);
    for stage in ["ingest", "encode", "decode", "publish"] {
        assert_eq!(named(stage).parent_span_id, request.span_id, "{stage}");
    }
    for phase in ["prefill", "generate"] {
        assert_eq!(named(phase).parent_span_id, named("decode").span_id, "{phase}");
    }
    let order =
        ["ingest", "encode", "prefill", "generate", "publish"].map(|name| named(name).start_time_unix_nano);
    assert!(order.is_sorted(), "{order:?}");
    let answered_in = record.headers.iter().find(|(name, _)| name == "traceparent");
    let answered_in = answered_in.and_then(|(_, value)| value.clone()).unwrap();
    let expected = format!("00-{TRACE_ID}-{}-01", hex(&request.span_id));
    assert_eq!(answered_in, expected.as_bytes(), "the answer names our span");
}

/// What the counters of a stage say.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Counts {
    entered: u64,
    left: u64,
    rejected: u64,
}

/// The counters of all stages that saw work, once nothing is in flight any more.
fn settled(http: SocketAddr) -> BTreeMap<String, Counts> {
    let begin = Instant::now();
    loop {
        let counts = counts(http);
        let balanced = counts
            .values()
            .all(|counts| counts.entered == counts.left + counts.rejected);
        if balanced || begin.elapsed() > WAIT_MAX {
            return counts;
        }
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
}

fn metrics(http: SocketAddr) -> String {
    let mut connection = TcpStream::connect(http).unwrap();
    write!(
        connection,
        "GET /metrics HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n"
    )
    .unwrap();
    let mut page = String::new();
    connection.read_to_string(&mut page).unwrap();
    page
}

/// Clips that were in the encoder's cache, and clips that were not.
fn encoder_cache(http: SocketAddr) -> (u64, u64) {
    let page = metrics(http);
    let count = |outcome: &str| {
        let name = format!("speechverse_encoder_cache_total{{outcome=\"{outcome}\"}} ");
        let line = page.lines().find_map(|line| line.strip_prefix(&name));
        line.unwrap().parse().unwrap()
    };
    (count("hit"), count("miss"))
}

fn counts(http: SocketAddr) -> BTreeMap<String, Counts> {
    let page = metrics(http);
    let mut stages: BTreeMap<String, Counts> = BTreeMap::new();
    for line in page.lines() {
        let Some((name, rest)) = line.split_once("{stage=\"") else {
            continue;
        };
        let (stage, value) = rest.split_once("\"} ").unwrap();
        let counts = stages.entry(stage.to_owned()).or_default();
        let value = || value.parse().unwrap();
        match name {
            "speechverse_stage_in_total" => counts.entered = value(),
            "speechverse_stage_out_total" => counts.left = value(),
            "speechverse_stage_rejected_total" => counts.rejected = value(),
            _ => {}
        }
    }
    stages.retain(|_, counts| *counts != Counts::default());
    stages
}

/// A collector of traces: takes protobuf over HTTP and keeps it.
struct Collector {
    address: SocketAddr,
    requests: Arc<Mutex<Vec<ExportTraceServiceRequest>>>,
}

impl Collector {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let requests = Arc::new(Mutex::new(Vec::new()));
        let kept = Arc::clone(&requests);
        std::thread::spawn(move || {
            for connection in listener.incoming() {
                let kept = Arc::clone(&kept);
                std::thread::spawn(move || take(connection.unwrap(), &kept));
            }
        });
        Self { address, requests }
    }

    fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    fn spans_of(&self, trace_id: &str) -> Vec<Span> {
        let requests = self.requests.lock().unwrap();
        let scopes = requests
            .iter()
            .flat_map(|request| &request.resource_spans)
            .flat_map(|resource| &resource.scope_spans);
        scopes
            .flat_map(|scope| scope.spans.clone())
            .filter(|span| hex(&span.trace_id) == trace_id)
            .collect()
    }
}

/// Serves one connection: requests with a length, each answered with success.
fn take(mut connection: TcpStream, kept: &Mutex<Vec<ExportTraceServiceRequest>>) {
    let mut bytes = Vec::new();
    let mut buffer = [0; 65_536];
    loop {
        let head_end = bytes.windows(4).position(|window| window == b"\r\n\r\n");
        let body = head_end.map(|end| {
            let head = String::from_utf8_lossy(&bytes[..end]).to_lowercase();
            assert!(head.starts_with("post /v1/traces "), "{head}");
            let length = head
                .lines()
                .find_map(|line| line.strip_prefix("content-length:"))
                .map_or(0, |length| length.trim().parse::<usize>().unwrap());
            (end + 4, end + 4 + length)
        });
        if let Some((begin, end)) = body.filter(|(_, end)| bytes.len() >= *end) {
            let request = ExportTraceServiceRequest::decode(&bytes[begin..end]).unwrap();
            kept.lock().unwrap().push(request);
            bytes.drain(..end);
            connection
                .write_all(
                    b"HTTP/1.1 200 OK\r\ncontent-type: application/x-protobuf\r\ncontent-length: 0\r\n\r\n",
                )
                .unwrap();
            continue;
        }
        match connection.read(&mut buffer) {
            Ok(0) | Err(_) => return,
            Ok(count) => bytes.extend_from_slice(&buffer[..count]),
        }
    }
}

fn names(spans: &[Span]) -> BTreeSet<&str> {
    spans.iter().map(|span| span.name.as_str()).collect()
}
