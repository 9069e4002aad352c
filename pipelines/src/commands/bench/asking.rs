//! Requests in three ways, and when their answers come.

use std::collections::HashMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use bytes::Bytes;
use speechverse::kafka::config::KafkaConfig;
use speechverse::kafka::{Read, ReadFrom, Reader, Sink};
use speechverse::training::example::AudioSource;
use speechverse::training::manifest::read_manifest;
use speechverse::util::random::SplitMix;
use speechverse::wire::OutgoingRecord;
use speechverse::wire::dead_letter::REASON_HEADER;
use speechverse::wire::headers::Headers;
use speechverse::wire::request::REQUEST_TYPE;

use crate::cli::ArrivalKind;
use crate::commands::clients::{BROKER_WAIT, CLI_SOURCE, fresh_id, header};

/// Whose transcripts are asked for.
const TASK: &str = "asr";

/// A recording, and what is said in it.
pub(super) struct Clip {
    bytes: Bytes,
    seconds: f64,
    text: String,
}

/// The recordings of manifests' transcripts, in their order.
pub(super) fn clips(references: &[PathBuf]) -> anyhow::Result<Vec<Clip>> {
    let mut clips = Vec::new();
    for path in references {
        for example in read_manifest(path, None)?.warned() {
            let AudioSource::Clip(clip) = &example.audio else {
                continue;
            };
            if example.task == TASK && clip.offset.is_none() {
                clips.push(Clip {
                    bytes: Bytes::from(crate::commands::read_input(&clip.path)?),
                    seconds: clip.seconds,
                    text: example.target.clone(),
                });
            }
        }
    }
    if clips.is_empty() {
        bail!("no whole file with the task `{TASK}` in the manifests");
    }
    Ok(clips)
}

/// An answer that came.
pub(super) struct Answered {
    pub(super) latency: Duration,
    pub(super) audio_seconds: f64,
    pub(super) reference: String,
    pub(super) text: String,
}

/// The times at which requests come.
#[derive(Clone)]
pub(super) struct Arrivals {
    kind: ArrivalKind,
    random: SplitMix,
}

impl Arrivals {
    pub(super) fn new(kind: ArrivalKind, seed: u64) -> Self {
        Self {
            kind,
            random: SplitMix::from_state(seed),
        }
    }

    /// Seconds to the next of `rate` a second.
    pub(super) fn gap(&mut self, rate: f64) -> f64 {
        match self.kind {
            ArrivalKind::Poisson => -(1.0 - self.random.unit()).ln() / rate,
            ArrivalKind::Even => 1.0 / rate,
        }
    }

    /// A number below `count`, at random.
    pub(super) fn below(&mut self, count: usize) -> usize {
        self.random.below(count)
    }
}

/// Somebody who asks and reads the answers.
pub(super) struct Asking<'c> {
    sink: Sink,
    results: Reader,
    dead_letters: Reader,
    topic: std::sync::Arc<str>,
    clips: &'c [Clip],
    limit: Duration,
    /// Requests so far; they take the clips in turn.
    asked: usize,
    /// What is out: when it was due, and which clip it is.
    open: HashMap<String, (Instant, usize)>,
}

impl<'c> Asking<'c> {
    pub(super) async fn open(
        config: &KafkaConfig,
        clips: &'c [Clip],
        limit: Duration,
    ) -> anyhow::Result<Self> {
        let reader = async |topic: &str| {
            Reader::open(config, topic, ReadFrom::End, BROKER_WAIT)
                .await
                .with_context(|| format!("does the service run at {}?", config.bootstrap))
        };
        Ok(Self {
            results: reader(&config.topics.results).await?,
            dead_letters: reader(&config.topics.dead_letters).await?,
            sink: Sink::new(config).context("Kafka producer")?,
            topic: config.topics.requests.as_str().into(),
            clips,
            limit,
            asked: 0,
            open: HashMap::new(),
        })
    }

    /// Each request after the answer to the one before.
    pub(super) async fn one_by_one(&mut self, count: usize) -> anyhow::Result<Vec<Answered>> {
        let mut answers = Vec::new();
        for _ in 0..count {
            self.ask(Instant::now());
            answers.extend(self.rest().await?);
        }
        Ok(answers)
    }

    /// All requests without a pause.
    pub(super) async fn all_at_once(&mut self, count: usize) -> anyhow::Result<Vec<Answered>> {
        (0..count).for_each(|_| self.ask(Instant::now()));
        self.rest().await
    }

    /// `rate` requests a second for so many seconds. A request that is published late counts from when it
    /// was due.
    pub(super) async fn at_rate(
        &mut self,
        rate: f64,
        seconds: f64,
        arrivals: &mut Arrivals,
    ) -> anyhow::Result<Vec<Answered>> {
        let begin = Instant::now();
        let (mut after, mut answers) = (arrivals.gap(rate), Vec::new());
        while after < seconds {
            let due = begin + Duration::from_secs_f64(after);
            while let Some(left) = due.checked_duration_since(Instant::now()) {
                answers.extend(self.next(left).await?);
            }
            self.ask(due);
            after += arrivals.gap(rate);
        }
        answers.extend(self.rest().await?);
        Ok(answers)
    }

    fn ask(&mut self, due: Instant) {
        let (number, clip) = (self.asked, self.asked % self.clips.len());
        self.asked += 1;
        let id = fresh_id(number);
        let record = OutgoingRecord {
            topic: self.topic.clone(),
            key: Some(Bytes::from(id.clone())),
            value: Some(self.clips[clip].bytes.clone()),
            headers: vec![
                header("ce_specversion", "1.0"),
                header("ce_source", CLI_SOURCE),
                header("ce_id", id.as_str()),
                header("ce_type", REQUEST_TYPE),
                header("ce_task", TASK),
            ],
        };
        self.open.insert(id, (due, clip));
        let sink = self.sink.clone();
        tokio::spawn(async move {
            if let Err(error) = sink.send(record).await {
                tracing::error!(%error, "a request is not published");
            }
        });
    }

    /// The answers to everything that is out.
    async fn rest(&mut self) -> anyhow::Result<Vec<Answered>> {
        let deadline = Instant::now() + self.limit;
        let mut answers = Vec::new();
        while !self.open.is_empty() {
            let Some(left) = deadline.checked_duration_since(Instant::now()) else {
                bail!(
                    "{} requests are without an answer after {:?}",
                    self.open.len(),
                    self.limit
                );
            };
            answers.extend(self.next(left).await?);
        }
        Ok(answers)
    }

    /// The next answer within `limit`. A dead letter fails the measurement.
    async fn next(&mut self, limit: Duration) -> anyhow::Result<Option<Answered>> {
        tokio::select! {
            read = self.results.next(limit) => {
                let Read::Record(record) = read? else { return Ok(None) };
                // Other services write no more of an answer than this.
                let value = record.value.unwrap_or_default();
                let answer: serde_json::Value = serde_json::from_slice(&value).context("an answer is no JSON")?;
                let text = |name: &str| answer[name].as_str().unwrap_or_default();
                let Some((due, clip)) = (text("kind") == "final").then(|| self.open.remove(text("request_id"))).flatten()
                else {
                    return Ok(None);
                };
                let clip = &self.clips[clip];
                Ok(Some(Answered {
                    latency: due.elapsed(),
                    audio_seconds: clip.seconds,
                    reference: clip.text.clone(),
                    text: text("text").to_owned(),
                }))
            }
            read = self.dead_letters.next(limit) => {
                let Read::Record(record) = read? else { return Ok(None) };
                let headers = Headers::new(&record.headers);
                let text = |name: &str| headers.bytes(name).map(String::from_utf8_lossy).unwrap_or_default();
                match self.open.contains_key(&*text("ce_id")) {
                    true => bail!("a request became a dead letter: {}", text(REASON_HEADER)),
                    false => Ok(None),
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn even_gaps_are_all_equal_and_poisson_gaps_are_exponential_at_the_same_rate() {
        let gaps = |kind| {
            let mut arrivals = Arrivals::new(kind, 3);
            (0..100_000).map(|_| arrivals.gap(4.0)).collect::<Vec<f64>>()
        };
        let poisson = gaps(ArrivalKind::Poisson);
        let share_above = |seconds: f64| {
            let above = poisson.iter().filter(|gap| **gap > seconds).count();
            above as f64 / poisson.len() as f64
        };

        assert!(gaps(ArrivalKind::Even).iter().all(|gap| *gap == 0.25));
        assert!((poisson.iter().sum::<f64>() / poisson.len() as f64 - 0.25).abs() < 0.005);
        assert!((share_above(0.25) - (-1.0f64).exp()).abs() < 0.01);
        assert!((share_above(0.5) - (-2.0f64).exp()).abs() < 0.01);
    }
}
