//! `RequestListener`: reads the requests that other processes answer, so that corrections find their audio.
//!
//! Reads the request topic outside any group, from its end on; sends [`UtteranceAdmitted`]. It answers
//! nothing, rejects nothing and commits nothing. Chunks of streams are passed over: a correction of a stream
//! needs a process that answers and learns.

use std::sync::Arc;
use std::time::{Duration, Instant};

use kameo::mailbox::{MailboxReceiver, Signal};
use kameo::prelude::*;
use speechverse::audio::{AudioLimits, Waveform, decode};
use speechverse::kafka::config::KafkaConfig;
use speechverse::kafka::{KafkaError, Read, ReadFrom, Reader};
use speechverse::wire::Record;
use speechverse::wire::request::{Instructions, Request, RequestLimits};
use tracing::{debug, info};

use crate::messages::{AdmittedRequest, UtteranceAdmitted};

/// How long one look into the topic takes at most.
const READ_WAIT: Duration = Duration::from_secs(1);

/// How often the topic is checked for partitions that were added.
const PARTITIONS_INTERVAL: Duration = Duration::from_secs(30);
/// How long one such check takes at most.
const PARTITIONS_WAIT: Duration = Duration::from_secs(5);

/// Everything a [`RequestListener`] needs to start, and to start again.
#[derive(Clone)]
pub struct ListenerArgs {
    /// Where the request topic is.
    pub kafka: KafkaConfig,
    /// Longest wait for the topic at the start.
    pub open_wait: Duration,
    /// What a recording may be.
    pub audio: AudioLimits,
    /// What a request may be.
    pub limits: RequestLimits,
    /// Instructions of requests that have none of their own.
    pub instructions: Arc<dyn Instructions + Send + Sync>,
    /// Remembers requests.
    pub collector: Recipient<UtteranceAdmitted>,
}

/// The listening stage.
pub struct RequestListener {
    args: ListenerArgs,
    reader: Reader,
    /// When the topic is checked for partitions next.
    next_check: Instant,
}

impl Actor for RequestListener {
    type Args = ListenerArgs;
    type Error = KafkaError;

    async fn on_start(args: Self::Args, _: ActorRef<Self>) -> Result<Self, Self::Error> {
        let topic = &args.kafka.topics.requests;
        let reader = Reader::open(&args.kafka, topic, ReadFrom::End, args.open_wait).await?;
        info!(topic, "listening to requests, for corrections");
        let next_check = Instant::now() + PARTITIONS_INTERVAL;
        Ok(Self {
            args,
            reader,
            next_check,
        })
    }

    /// Takes records as they come, beside the mailbox.
    async fn next(
        &mut self,
        _: WeakActorRef<Self>,
        mailbox: &mut MailboxReceiver<Self>,
    ) -> Result<Option<Signal<Self>>, Self::Error> {
        loop {
            if Instant::now() >= self.next_check {
                self.next_check = Instant::now() + PARTITIONS_INTERVAL;
                match self.reader.take_new_partitions(PARTITIONS_WAIT).await {
                    Ok(0) => {}
                    Ok(taken) => info!(taken, "partitions were added to the request topic"),
                    Err(error) => debug!(%error, "it is not known whether the topic has new partitions"),
                }
            }
            tokio::select! {
                biased;
                signal = mailbox.recv() => return Ok(signal),
                read = self.reader.next(READ_WAIT) => {
                    if let Read::Record(record) = read? {
                        self.remember(&record).await;
                    }
                }
            }
        }
    }
}

impl RequestListener {
    async fn remember(&self, record: &Record) {
        match self.read(record) {
            Ok(Some(admitted)) => {
                if let Err(error) = self.args.collector.tell(admitted).await {
                    debug!(error = %error.to_string(), "collector is gone");
                }
            }
            Ok(None) => {}
            Err(reason) => debug!(record_offset = ?record.record_offset, reason, "no request to remember"),
        }
    }

    /// What is remembered of a record: nothing of a chunk, and of what may not be trained on. The process
    /// that answers it says what is wrong with it.
    fn read(&self, record: &Record) -> Result<Option<UtteranceAdmitted>, String> {
        let request = Request::parse(record, &self.args.limits, &*self.args.instructions)
            .map_err(|rejection| rejection.message)?;
        if request.chunk.is_some() || request.train == Some(false) {
            return Ok(None);
        }
        let Waveform { samples, damage, .. } =
            decode(&request.audio, request.content_type.as_deref(), &self.args.audio)
                .map_err(|error| error.to_string())?;
        Ok(Some(UtteranceAdmitted {
            request: AdmittedRequest::from(&request),
            record_offset: record.record_offset.clone(),
            samples: Arc::from(samples),
            damage,
        }))
    }
}
