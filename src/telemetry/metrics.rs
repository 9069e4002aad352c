//! Every metric that the program exports, declared once: name, unit, help, buckets, and one function per
//! event.
//!
//! Names follow `speechverse_<module>_<noun>_<unit>`; counters end in `_total`; labels come from closed sets.
//! Call sites say what happened (`metrics::answer_published(...)`), never a name.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use ::metrics::{counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram};
use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder, PrometheusHandle};

/// Seconds buckets that surround what a person notices in a spoken exchange: 1 ms to 30 s.
const LATENCY_SECONDS: &[f64] = &[
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 5.0, 10.0, 30.0,
];
/// Lengths of clips, seconds.
const AUDIO_SECONDS: &[f64] = &[
    0.5, 1.0, 2.0, 3.0, 5.0, 8.0, 12.0, 20.0, 30.0, 60.0, 300.0, 3600.0,
];
/// Rows in one forward pass.
const BATCH_ROWS: &[f64] = &[1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0];
/// Processing time over audio time; real time is 1.
const REAL_TIME_FACTOR: &[f64] = &[0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0];

mod kafka;

pub use kafka::{
    consumer_lag, kafka_client_error, kafka_connected, kafka_outage, kafka_producer_renewed,
    kafka_records_deleted, partitions_paused,
};

static HANDLE: Mutex<Option<PrometheusHandle>> = Mutex::new(None);

/// Installs the recorder for the whole process and describes every metric; later calls return the first
/// handle.
///
/// # Errors
/// [`BuildError`] when another recorder is already installed.
pub fn install() -> Result<PrometheusHandle, BuildError> {
    let mut installed = HANDLE.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(handle) = &*installed {
        return Ok(handle.clone());
    }
    let handle = PrometheusBuilder::new()
        .set_buckets_for_metric(Matcher::Suffix("_latency_seconds".into()), LATENCY_SECONDS)?
        .set_buckets_for_metric(Matcher::Full("speechverse_stage_seconds".into()), LATENCY_SECONDS)?
        .set_buckets_for_metric(
            Matcher::Full("speechverse_stage_wait_seconds".into()),
            LATENCY_SECONDS,
        )?
        .set_buckets_for_metric(
            Matcher::Full("speechverse_decoder_first_token_seconds".into()),
            LATENCY_SECONDS,
        )?
        .set_buckets_for_metric(
            Matcher::Full("speechverse_network_pass_seconds".into()),
            LATENCY_SECONDS,
        )?
        .set_buckets_for_metric(
            Matcher::Full("speechverse_token_choice_seconds".into()),
            LATENCY_SECONDS,
        )?
        .set_buckets_for_metric(
            Matcher::Full("speechverse_audio_clip_seconds".into()),
            AUDIO_SECONDS,
        )?
        .set_buckets_for_metric(Matcher::Suffix("_batch_rows".into()), BATCH_ROWS)?
        .set_buckets_for_metric(
            Matcher::Full("speechverse_real_time_factor".into()),
            REAL_TIME_FACTOR,
        )?
        .install_recorder()?;
    describe();
    kafka::describe();
    Ok(installed.insert(handle).clone())
}

fn describe() {
    describe_counter!(
        "speechverse_requests_total",
        "Requests read from the request topic."
    );
    describe_counter!(
        "speechverse_answers_total",
        "Answers acknowledged by the broker, by kind."
    );
    describe_counter!(
        "speechverse_dead_letters_total",
        "Dead letters acknowledged by the broker, by reason and stage."
    );
    describe_counter!("speechverse_audio_seconds_total", "Seconds of audio admitted.");
    describe_counter!(
        "speechverse_chunks_repeated_total",
        "Chunks of streams that came again as they were and were passed over."
    );
    describe_counter!(
        "speechverse_encoder_cache_total",
        "Clips that the encoder's cache held (hit) and did not hold (miss)."
    );
    describe_histogram!(
        "speechverse_audio_clip_seconds",
        "Length of admitted clips, seconds."
    );
    describe_gauge!(
        "speechverse_audio_in_flight_seconds",
        "Seconds of audio admitted and not yet answered."
    );
    describe_histogram!(
        "speechverse_stage_seconds",
        "Time spent working, by stage, seconds."
    );
    describe_histogram!(
        "speechverse_stage_wait_seconds",
        "Time spent waiting for a stage, by stage, seconds."
    );
    describe_gauge!(
        "speechverse_queue_audio_seconds",
        "Seconds of audio that wait for a stage, by stage and priority."
    );
    describe_counter!("speechverse_stage_in_total", "Work items that entered a stage.");
    describe_counter!("speechverse_stage_out_total", "Work items that a stage finished.");
    describe_counter!(
        "speechverse_stage_rejected_total",
        "Work items that a stage could not finish; in = out + rejected + in flight."
    );
    describe_counter!(
        "speechverse_stage_restarts_total",
        "Restarts of a stage after a panic."
    );
    describe_histogram!(
        "speechverse_network_pass_seconds",
        "Time of one pass of a network, by pass: detect (speech; always on the CPU), encode, adapt, prefill, step. The sum of the others over a time is how busy the device was."
    );
    describe_histogram!(
        "speechverse_token_choice_seconds",
        "Time of choosing the next tokens of one pass from its logits: CTC prefix scores of transcripts, grammars, sampling."
    );
    describe_histogram!(
        "speechverse_encoder_batch_rows",
        "Utterances in one encoder pass."
    );
    describe_histogram!(
        "speechverse_decoder_batch_rows",
        "Utterances in one decoder step."
    );
    describe_gauge!(
        "speechverse_decoder_slots_used",
        "Decoder slots that hold a live sequence."
    );
    describe_histogram!(
        "speechverse_decoder_first_token_seconds",
        "From admission to the first answer token, seconds."
    );
    describe_counter!(
        "speechverse_decoder_tokens_total",
        "Answer tokens generated, those of readings, warm-up and validation included."
    );
    describe_counter!(
        "speechverse_decoder_draft_tokens_total",
        "Tokens that the CTC head drafted, by outcome: taken into the answer, or not."
    );
    describe_histogram!(
        "speechverse_answer_latency_seconds",
        "From admission to the acknowledged answer, seconds."
    );
    describe_histogram!(
        "speechverse_real_time_factor",
        "Answer latency over audio length."
    );
    describe_counter!(
        "speechverse_records_refused_total",
        "Records that the broker refused for good, by kind: answer, dead_letter, event."
    );
    describe_counter!(
        "speechverse_kafka_transactions_total",
        "Kafka transactions by outcome: committed, aborted, abandoned (their producer failed for good)."
    );
    describe_counter!(
        "speechverse_kafka_records_answered_before_total",
        "Records that were read again and passed over, because they had been answered before a restart or rebalance."
    );
    describe_gauge!(
        "speechverse_ready",
        "1 while requests are answered: partitions assigned, networks warm, a broker in reach."
    );
    describe_gauge!(
        "speechverse_store_samples",
        "Samples in the store, by task and split."
    );
    describe_counter!(
        "speechverse_store_puts_total",
        "Labelled samples received, by outcome."
    );
    describe_gauge!("speechverse_training_loss", "Loss of the latest training step.");
    describe_counter!("speechverse_training_steps_total", "Optimiser steps taken.");
    describe_counter!(
        "speechverse_training_cycles_total",
        "Training cycles, by verdict."
    );
    describe_gauge!("speechverse_training_running", "1 while a training cycle runs.");
    describe_gauge!(
        "speechverse_adapter_info",
        "1 for the adapter version that new requests are pinned to."
    );
    describe_gauge!(
        "speechverse_process_resident_bytes",
        "Resident memory of the process, bytes."
    );
}

/// The text that Prometheus reads.
pub fn render(handle: &PrometheusHandle) -> String {
    let mut text = handle.render();
    kafka::render_lag(&mut text);
    text
}

/// The members of closed sets that counters are labelled with.
#[derive(Clone, Copy, Debug)]
pub struct ClosedSets<'a> {
    /// Why a record becomes a dead letter.
    pub reasons: &'a [&'static str],
    /// Where something happens.
    pub stages: &'a [&'static str],
    /// Kinds of answers.
    pub answers: &'a [&'static str],
    /// How a training cycle ends.
    pub verdicts: &'a [&'static str],
}

/// Makes every counter that has no labels, or labels of closed sets, 0 from the start: `increase` does not
/// see the first event of a series that begins with it.
pub fn counters_at_zero(sets: &ClosedSets<'_>) {
    let ClosedSets {
        reasons,
        stages,
        answers,
        verdicts,
    } = *sets;
    for name in [
        "speechverse_requests_total",
        "speechverse_audio_seconds_total",
        "speechverse_decoder_tokens_total",
        "speechverse_training_steps_total",
    ] {
        counter!(name).increment(0);
    }
    for stage in stages {
        counter!("speechverse_stage_in_total", "stage" => *stage).increment(0);
        counter!("speechverse_stage_out_total", "stage" => *stage).increment(0);
        for reason in reasons {
            counter!("speechverse_dead_letters_total", "reason" => *reason, "stage" => *stage).increment(0);
        }
    }
    for kind in answers {
        counter!("speechverse_answers_total", "kind" => *kind).increment(0);
    }
    for verdict in verdicts {
        counter!("speechverse_training_cycles_total", "verdict" => *verdict).increment(0);
    }
    for outcome in ["stored", "duplicate", "refused"] {
        counter!("speechverse_store_puts_total", "outcome" => outcome).increment(0);
    }
    encoder_cache(0, 0);
    counter!("speechverse_chunks_repeated_total").increment(0);
    for outcome in ["taken", "not_taken"] {
        counter!("speechverse_decoder_draft_tokens_total", "outcome" => outcome).increment(0);
    }
    for kind in ["answer", "dead_letter", "event"] {
        counter!("speechverse_records_refused_total", "kind" => kind).increment(0);
    }
    for outcome in ["committed", "aborted", "abandoned"] {
        counter!("speechverse_kafka_transactions_total", "outcome" => outcome).increment(0);
    }
    counter!("speechverse_kafka_records_answered_before_total").increment(0);
    kafka::counters_at_zero();
    let _ = histogram!("speechverse_answer_latency_seconds"); // exists with empty buckets from here on
}

/// Whether requests are answered.
pub fn ready(ready: bool) {
    gauge!("speechverse_ready").set(f64::from(u8::from(ready)));
}

/// A request was read from its topic.
pub fn request_received() {
    counter!("speechverse_requests_total").increment(1);
}

/// An utterance passed its checks and entered the graph.
pub fn utterance_admitted(audio_seconds: f64) {
    // Counters are whole numbers: count milliseconds here, export seconds.
    static MILLISECONDS: AtomicU64 = AtomicU64::new(0);
    let milliseconds = (audio_seconds * 1e3).round() as u64;
    let total = MILLISECONDS.fetch_add(milliseconds, Ordering::Relaxed) + milliseconds;
    counter!("speechverse_audio_seconds_total").absolute(total / 1_000);
    histogram!("speechverse_audio_clip_seconds").record(audio_seconds);
    gauge!("speechverse_audio_in_flight_seconds").increment(audio_seconds);
}

/// An utterance left the graph, as an answer or as a dead letter.
pub fn utterance_left(audio_seconds: f64) {
    gauge!("speechverse_audio_in_flight_seconds").decrement(audio_seconds);
}

/// A work item reached `stage` after waiting `waited` for it.
pub(super) fn stage_entered(stage: &'static str, waited: Duration) {
    counter!("speechverse_stage_in_total", "stage" => stage).increment(1);
    histogram!("speechverse_stage_wait_seconds", "stage" => stage).record(waited.as_secs_f64());
}

/// A stage finished a work item after `worked`.
pub(super) fn stage_left(stage: &'static str, worked: Duration) {
    counter!("speechverse_stage_out_total", "stage" => stage).increment(1);
    histogram!("speechverse_stage_seconds", "stage" => stage).record(worked.as_secs_f64());
}

/// A stage gave a work item up after `worked`: a dead letter, or a record that is read again.
pub(super) fn stage_rejected(stage: &'static str, worked: Duration) {
    counter!("speechverse_stage_rejected_total", "stage" => stage).increment(1);
    histogram!("speechverse_stage_seconds", "stage" => stage).record(worked.as_secs_f64());
}

/// So many seconds of audio of a priority wait for `stage`.
pub fn queue_audio(stage: &'static str, priority: &'static str, audio_seconds: f64) {
    gauge!("speechverse_queue_audio_seconds", "stage" => stage, "priority" => priority).set(audio_seconds);
}

/// A stage starts, or its supervisor restarts it.
pub fn stage_started(stage: &'static str, is_restart: bool) {
    counter!("speechverse_stage_restarts_total", "stage" => stage).increment(u64::from(is_restart));
}

/// A network made one pass, which took so long.
pub fn network_pass(pass: &'static str, took: Duration) {
    histogram!("speechverse_network_pass_seconds", "pass" => pass).record(took.as_secs_f64());
}

/// Times the choice of the next tokens of all rows of a pass.
pub fn token_choice(choose: impl FnOnce()) {
    let began = std::time::Instant::now();
    choose();
    histogram!("speechverse_token_choice_seconds").record(began.elapsed().as_secs_f64());
}

/// A chunk that its stream had before was passed over.
pub fn chunk_repeated() {
    counter!("speechverse_chunks_repeated_total").increment(1);
}

/// The encoder ran one batch.
pub fn encoder_batch(rows: usize) {
    histogram!("speechverse_encoder_batch_rows").record(rows as f64);
}

/// The encoder was asked for clips, of which so many were found in its cache and so many were not.
pub fn encoder_cache(hits: usize, misses: usize) {
    counter!("speechverse_encoder_cache_total", "outcome" => "hit").increment(hits as u64);
    counter!("speechverse_encoder_cache_total", "outcome" => "miss").increment(misses as u64);
}

/// The decoder took one step that added to each of `answers` answers.
pub fn decoder_step(answers: usize) {
    histogram!("speechverse_decoder_batch_rows").record(answers as f64);
}

/// Tokens were added to an answer: one, and those that were drafted and `taken`.
pub fn tokens_chosen(drafted: usize, taken: usize) {
    counter!("speechverse_decoder_tokens_total").increment(1 + taken as u64);
    counter!("speechverse_decoder_draft_tokens_total", "outcome" => "taken").increment(taken as u64);
    let rest = drafted.saturating_sub(taken);
    counter!("speechverse_decoder_draft_tokens_total", "outcome" => "not_taken").increment(rest as u64);
}

/// How many decoder slots hold a live sequence; slots that a beam search has reserved and does not use yet do
/// not count.
pub fn decoder_slots(used: usize) {
    gauge!("speechverse_decoder_slots_used").set(used as f64);
}

/// The first answer token of an utterance, `since_admission` after it was admitted.
pub fn first_token(since_admission: Duration) {
    histogram!("speechverse_decoder_first_token_seconds").record(since_admission.as_secs_f64());
}

/// The broker acknowledged an answer.
pub fn answer_published(kind: &'static str, latency: Duration, audio_seconds: f64) {
    counter!("speechverse_answers_total", "kind" => kind).increment(1);
    histogram!("speechverse_answer_latency_seconds").record(latency.as_secs_f64());
    if audio_seconds > 0.0 {
        histogram!("speechverse_real_time_factor").record(latency.as_secs_f64() / audio_seconds);
    }
}

/// The broker acknowledged a partial answer.
pub fn partial_published() {
    counter!("speechverse_answers_total", "kind" => "partial").increment(1);
}

/// The broker acknowledged a dead letter.
pub fn dead_letter_published(reason: &'static str, stage: &'static str) {
    counter!("speechverse_dead_letters_total", "reason" => reason, "stage" => stage).increment(1);
}

/// The broker refused a record of ours whatever was left out of it, and it was given up.
pub fn record_refused(kind: &'static str) {
    counter!("speechverse_records_refused_total", "kind" => kind).increment(1);
}

/// A Kafka transaction was `committed`, `aborted`, or `abandoned` with a producer that failed for good.
pub fn transaction_ended(outcome: &'static str) {
    counter!("speechverse_kafka_transactions_total", "outcome" => outcome).increment(1);
}

/// A record was read that had been answered before a restart or a rebalance, and was passed over.
pub fn record_answered_before() {
    counter!("speechverse_kafka_records_answered_before_total").increment(1);
}

/// Samples that the store holds for a task and split.
pub fn store_samples(task: &str, split: &'static str, samples: usize) {
    gauge!("speechverse_store_samples", "task" => task.to_owned(), "split" => split).set(samples as f64);
}

/// A labelled sample was stored, or recognised as a repeat, or refused.
pub fn store_put(outcome: &'static str) {
    counter!("speechverse_store_puts_total", "outcome" => outcome).increment(1);
}

/// One optimiser step was taken.
pub fn training_step(loss: f64) {
    counter!("speechverse_training_steps_total").increment(1);
    gauge!("speechverse_training_loss").set(loss);
}

/// A training cycle began.
pub fn training_started() {
    gauge!("speechverse_training_running").set(1.0);
}

/// A training cycle ended.
pub fn training_finished(verdict: &'static str) {
    gauge!("speechverse_training_running").set(0.0);
    counter!("speechverse_training_cycles_total", "verdict" => verdict).increment(1);
}

/// New requests are pinned to `version` from now on.
pub fn adapter_serving(version: &str, previous: Option<&str>) {
    if let Some(previous) = previous.filter(|previous| *previous != version) {
        gauge!("speechverse_adapter_info", "version" => previous.to_owned()).set(0.0);
    }
    gauge!("speechverse_adapter_info", "version" => version.to_owned()).set(1.0);
}

/// Reads the process's resident memory, publishes it and returns it, bytes; `None` where `/proc` is missing.
pub fn resident_bytes() -> Option<u64> {
    let statm = std::fs::read_to_string("/proc/self/statm").ok()?;
    let pages: u64 = statm.split_whitespace().nth(1)?.parse().ok()?;
    // SAFETY: `sysconf` only reads a constant of the system.
    let page_bytes = u64::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).ok()?;
    let bytes = pages * page_bytes;
    gauge!("speechverse_process_resident_bytes").set(bytes as f64);
    Some(bytes)
}
