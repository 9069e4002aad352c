//! The figures of a measurement, as a table or as JSON.

use std::time::Duration;

use serde::Serialize;
use speechverse::nn::accel::cpu_capability;
use speechverse::scoring::Metric;

use super::Failure;
use super::asking::{Answered, Arrivals};
use super::queue;
use super::served::Usage;
use crate::cli::BenchServe;
use crate::output;

/// What one part of the measurement showed. What the service does not tell is absent.
#[derive(Debug, Serialize)]
pub(super) struct Row {
    load: String,
    requests: usize,
    /// Requests a second that were offered.
    offered: Option<f64>,
    /// Answers a second, up to the last one.
    pub(super) answered: f64,
    /// Answers a second that were good.
    goodput: f64,
    /// Latencies, seconds.
    p50: f64,
    p95: f64,
    p99: f64,
    /// The 99th percentile of one server that answers requests of this rate and these arrivals in turn, each
    /// in the time that requests took alone ([`queue`]); absent where it could not keep up.
    queue_p99: Option<f64>,
    /// Seconds of audio answered in a second.
    audio_rate: f64,
    tokens_rate: Option<f64>,
    /// Clips in one pass of the encoder, and answers in one step of the decoder, on average.
    encoder_rows: Option<f64>,
    decoder_rows: Option<f64>,
    /// Seconds of network passes in a second. Encoder and decoder have a thread each: up to 2.
    busy: Option<f64>,
    /// Seconds of network passes a request.
    network_seconds: Option<f64>,
    /// Seconds a request of choosing tokens from logits: CTC prefix scores, grammars, sampling.
    choice_seconds: Option<f64>,
    /// Processor seconds in a second.
    processors: Option<f64>,
    /// Answers for each processor second: what can be compared on a machine that others use too.
    answers_per_processor_second: Option<f64>,
    resident_bytes: Option<u64>,
    /// Word error rate of all answers, per cent, in plain spelling.
    wer: Option<f64>,
    /// Latency without network passes, seconds a request, where requests came one after another.
    overhead_seconds: Option<f64>,
}

impl Row {
    pub(super) fn new(
        load: &str,
        offered: Option<f64>,
        answers: &[Answered],
        took: Duration,
        good: Duration,
        [before, after]: [&Usage; 2],
    ) -> Self {
        let seconds = took.as_secs_f64();
        // A series that nothing has been counted in yet is not there.
        let used = |name: &str, label: &str| {
            Some(after.metric(name, label)? - before.metric(name, label).unwrap_or(0.0))
        };
        let mean = |name: &str| {
            let count = used(&format!("{name}_count"), "").filter(|count| *count > 0.0)?;
            Some(used(&format!("{name}_sum"), "")? / count)
        };
        let mut latencies: Vec<f64> = answers
            .iter()
            .map(|answer| answer.latency.as_secs_f64())
            .collect();
        latencies.sort_by(f64::total_cmp);
        let count = answers.len().max(1) as f64;
        let network = used("speechverse_network_pass_seconds_sum", "");
        let detector = used("speechverse_network_pass_seconds_sum", "detect").unwrap_or(0.0); // on the CPU
        let mean_latency = latencies.iter().sum::<f64>() / count;
        let is_alone = load == "one at a time";
        let processor_seconds = (after.processor_seconds())
            .zip(before.processor_seconds())
            .map(|(after, before)| after - before)
            .filter(|seconds| *seconds > 0.0);
        let pairs: Vec<(&str, &str)> = answers
            .iter()
            .map(|answer| (answer.reference.as_str(), answer.text.as_str()))
            .collect();
        Self {
            load: load.to_owned(),
            requests: answers.len(),
            offered,
            answered: answers.len() as f64 / seconds,
            goodput: answers.iter().filter(|answer| answer.latency <= good).count() as f64 / seconds,
            p50: percentile(&latencies, 0.5),
            p95: percentile(&latencies, 0.95),
            p99: percentile(&latencies, 0.99),
            queue_p99: None,
            audio_rate: answers.iter().map(|answer| answer.audio_seconds).sum::<f64>() / seconds,
            tokens_rate: used("speechverse_decoder_tokens_total", "").map(|tokens| tokens / seconds),
            encoder_rows: mean("speechverse_encoder_batch_rows"),
            decoder_rows: mean("speechverse_decoder_batch_rows"),
            busy: network.map(|network| (network - detector) / seconds),
            network_seconds: network.map(|network| network / count),
            choice_seconds: used("speechverse_token_choice_seconds_sum", "").map(|choice| choice / count),
            processors: processor_seconds.map(|used| used / seconds),
            answers_per_processor_second: processor_seconds.map(|used| answers.len() as f64 / used),
            resident_bytes: after.resident_bytes(),
            wer: Metric::WerPlain.tally(&pairs).score(),
            overhead_seconds: network
                .filter(|_| is_alone)
                .map(|network| mean_latency - network / count),
        }
    }

    /// Adds what waiting alone costs at the row's rate, by the latencies of requests without others.
    pub(super) fn compare_with_queue(&mut self, alone: &[f64], mut arrivals: Arrivals) {
        self.queue_p99 = (self.offered)
            .and_then(|rate| queue::latencies(alone, rate, &mut arrivals))
            .map(|latencies| percentile(&latencies, 0.99));
    }

    fn cells(&self) -> Vec<String> {
        let number = |value: Option<f64>, digits: usize| {
            value.map_or_else(|| "–".to_owned(), |value| format!("{value:.digits$}"))
        };
        vec![
            self.load.clone(),
            number(self.offered, 2),
            number(Some(self.answered), 2),
            number(Some(self.goodput), 2),
            number(Some(self.p50), 2),
            number(Some(self.p95), 2),
            number(Some(self.p99), 2),
            number(self.queue_p99, 2),
            number(Some(self.audio_rate), 1),
            number(self.tokens_rate, 0),
            number(self.encoder_rows, 1),
            number(self.decoder_rows, 1),
            number(self.busy, 2),
            number(self.processors, 2),
            number(self.answers_per_processor_second, 2),
            number(self.resident_bytes.map(|bytes| bytes as f64 / 1e6), 0),
            number(self.wer, 1),
        ]
    }
}

const HEADINGS: [&str; 17] = [
    "load",
    "offered/s",
    "answered/s",
    "good/s",
    "p50 s",
    "p95 s",
    "p99 s",
    "queue p99 s",
    "audio s/s",
    "tokens/s",
    "encoder rows",
    "decoder rows",
    "busy",
    "processors",
    "answers/processor s",
    "MB",
    "WER",
];

/// The value below which a share of the sorted values lies (nearest rank); NaN without values.
fn percentile(sorted: &[f64], share: f64) -> f64 {
    let rank = (share * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.max(1) - 1).copied().unwrap_or(f64::NAN)
}

/// Prints the rows: as a table in Markdown, with what it was measured on above it, or as JSON.
pub(super) fn print(args: &BenchServe, rows: &[Row]) -> Result<(), Failure> {
    if args.json {
        for row in rows {
            let arrivals = row.offered.map(|_| args.arrivals.name());
            let mut row = serde_json::to_value(row).map_err(anyhow::Error::from)?;
            row["arrivals"] = arrivals.into();
            row["service"] = args.name.as_str().into();
            output::line(row.to_string())?;
        }
        return Ok(());
    }
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    output::line(format!(
        "{}: {cores} cores, {}, {} s a load, {} arrivals, good up to {} ms\n",
        args.name,
        cpu_capability(),
        args.seconds,
        args.arrivals.name(),
        args.good_ms
    ))?;
    output::line(format!("| {} |", HEADINGS.join(" | ")))?;
    output::line(format!("|{}", "---|".repeat(HEADINGS.len())))?;
    for row in rows {
        output::line(format!("| {} |", row.cells().join(" | ")))?;
    }
    let alone = rows
        .first()
        .and_then(|row| Some((row.overhead_seconds?, row.network_seconds?, row.choice_seconds?)));
    if let Some((overhead, network, choice)) = alone {
        output::line(format!(
            "\nOverhead of an idle service: {:.1} ms a request, {:.1} % of its network passes ({:.0} ms); {:.1} ms of it choose tokens",
            overhead * 1e3,
            overhead / network * 100.0,
            network * 1e3,
            choice * 1e3
        ))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_values_that_occurred() {
        let values: Vec<f64> = (1..=100).map(f64::from).collect();

        assert_eq!(percentile(&values, 0.5), 50.0);
        assert_eq!(percentile(&values, 0.99), 99.0);
        assert_eq!(percentile(&[7.0], 0.99), 7.0);
        assert!(percentile(&[], 0.5).is_nan());
    }
}
