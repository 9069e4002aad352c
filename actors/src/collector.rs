//! `SampleCollector`: keeps the labelled samples that pass by.
//!
//! Takes records of the label topic from a source's channel, and [`UtteranceAdmitted`] from the ingest; sends
//! [`PublishDeadLetter`]. A record's offset is released only when its sample is in the store. A correction needs the
//! audio of the request that it corrects, so the latest utterances are remembered, up to a number of bytes.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use kameo::error::Infallible;
use kameo::mailbox::{MailboxReceiver, Signal};
use kameo::prelude::*;
use speechverse::audio::{AudioLimits, decode};
use speechverse::kafka::{OffsetTracker, SourceEvent};
use speechverse::store::{Put, Sample, SampleSource, SampleStore};
use speechverse::telemetry::metrics;
use speechverse::wire::dead_letter::{Reason, Rejection, Stage};
use speechverse::wire::label::{Label, LabelledAudio};
use speechverse::wire::request::{Instructions, RequestLimits};
use speechverse::wire::{Record, RecordOffset};
use tracing::{debug, error, info};

use crate::inbox::{Arrival, Inbox};
use crate::ingest::reason_of;
use crate::messages::{OrphanQueue, PublishDeadLetter, RecordGuard, UtteranceAdmitted};

/// Task of a sample that names none.
pub const DEFAULT_TASK: &str = "asr";

/// Everything a [`SampleCollector`] needs to start, and to start again.
#[derive(Clone)]
pub struct CollectorArgs {
    /// Records of the label topic.
    pub events: flume::Receiver<SourceEvent>,
    /// Which offsets are finished.
    pub tracker: OffsetTracker,
    /// Where samples are kept.
    pub store: Arc<SampleStore>,
    /// What a value may be.
    pub audio: AudioLimits,
    /// What a record may be.
    pub limits: RequestLimits,
    /// Instructions of samples that have none of their own.
    pub instructions: Arc<dyn Instructions + Send + Sync>,
    /// Where records go that it was at when it failed.
    pub lost: OrphanQueue,
    /// Audio of answered requests that is remembered for corrections, bytes.
    pub remembered_bytes_max: usize,
    /// Takes what cannot be kept.
    pub publisher: Recipient<PublishDeadLetter>,
}

/// The collecting stage.
pub struct SampleCollector {
    args: CollectorArgs,
    inbox: Inbox,
    remembered: Remembered,
}

impl Actor for SampleCollector {
    type Args = CollectorArgs;
    type Error = Infallible;

    async fn on_start(args: Self::Args, _: ActorRef<Self>) -> Result<Self, Self::Error> {
        let remembered = Remembered::new(args.remembered_bytes_max);
        let collector = Self {
            inbox: Inbox::new("labels", args.events.clone(), None),
            args,
            remembered,
        };
        collector.count();
        Ok(collector)
    }

    /// Takes records as they come, beside the mailbox.
    async fn next(
        &mut self,
        _: WeakActorRef<Self>,
        mailbox: &mut MailboxReceiver<Self>,
    ) -> Result<Option<Signal<Self>>, Self::Error> {
        loop {
            match self.inbox.next(mailbox).await {
                Arrival::Signal(signal) => return Ok(signal),
                Arrival::Record(record) => self.keep(record).await,
                Arrival::Revoked(_) | Arrival::Tick => {}
            }
        }
    }
}

impl Message<UtteranceAdmitted> for SampleCollector {
    type Reply = ();

    async fn handle(&mut self, message: UtteranceAdmitted, _: &mut Context<Self, Self::Reply>) {
        self.remembered.insert(message);
    }
}

impl SampleCollector {
    async fn keep(&mut self, record: Record) {
        let record = RecordGuard::new(record, Stage::Collect, self.args.lost.clone());
        let sample = Label::parse(&record, &self.args.limits, &*self.args.instructions)
            .and_then(|label| self.sample(label, &record.record_offset));
        let outcome = sample.and_then(|sample| self.put(&sample));
        let record = record.complete();
        match outcome {
            Ok(()) => {
                self.args.tracker.release(&record.record_offset);
                self.count();
            }
            Err(rejection) => {
                metrics::store_put("refused");
                let letter = PublishDeadLetter::at_admission(record, rejection);
                if let Err(error) = self.args.publisher.tell(letter).await {
                    error!(error = %error.to_string(), "publisher is gone");
                }
            }
        }
    }

    fn sample(&self, label: Label, record_offset: &RecordOffset) -> Result<Sample, Rejection> {
        let source = SampleSource {
            topic: record_offset.topic.to_string(),
            partition: record_offset.partition,
            offset: record_offset.offset,
        };
        let received_ms = jiff::Timestamp::now().as_millisecond();
        match label {
            Label::Sample(LabelledAudio {
                id,
                task,
                instruction,
                target,
                may_train,
                content_type,
                audio,
            }) => {
                let waveform = decode(&audio, content_type.as_deref(), &self.args.audio)
                    .map_err(|error| Rejection::new(reason_of(&error), Stage::Collect, error.to_string()))?;
                Ok(Sample {
                    audio: waveform.samples,
                    instruction,
                    target,
                    task: task.unwrap_or_else(|| DEFAULT_TASK.to_owned()),
                    source,
                    request_id: id,
                    received_ms,
                    may_train,
                })
            }
            Label::Correction { subject, target, .. } => {
                let admitted = self.remembered.get(&subject).ok_or_else(|| {
                    let message = format!(
                        "request `{}` is not remembered (it never came, or too much came since): send the audio with the label",
                        subject.escape_debug()
                    );
                    Rejection::new(Reason::UnknownSubject, Stage::Collect, message)
                })?;
                Ok(Sample {
                    audio: admitted.samples.to_vec(),
                    instruction: admitted.request.instruction.clone(),
                    target,
                    task: admitted
                        .request
                        .task
                        .clone()
                        .unwrap_or_else(|| DEFAULT_TASK.to_owned()),
                    source,
                    request_id: subject,
                    received_ms,
                    may_train: true,
                })
            }
        }
    }

    fn put(&self, sample: &Sample) -> Result<(), Rejection> {
        let refused = |message: String| Rejection::new(Reason::StoreRefused, Stage::Collect, message);
        match self.args.store.put(sample) {
            Ok(Put::Stored { id, split, .. }) => {
                metrics::store_put("stored");
                info!(%id, split = split.name(), task = %sample.task, "sample stored");
                Ok(())
            }
            Ok(Put::Duplicate { id, withdrawn }) => {
                metrics::store_put("duplicate");
                debug!(%id, withdrawn, "sample was stored before");
                Ok(())
            }
            Ok(Put::Refused { refusal }) => Err(refused(refusal.to_string())),
            Err(error) => {
                error!(%error, "the sample store failed");
                Err(refused(error.to_string()))
            }
        }
    }

    fn count(&self) {
        for count in self.args.store.counts() {
            metrics::store_samples(&count.task, count.split.name(), count.samples);
        }
    }
}

/// The latest utterances, for corrections; the oldest go first.
struct Remembered {
    bytes_max: usize,
    bytes: usize,
    by_id: HashMap<String, UtteranceAdmitted>,
    order: VecDeque<String>,
}

impl Remembered {
    fn new(bytes_max: usize) -> Self {
        Self {
            bytes_max,
            bytes: 0,
            by_id: HashMap::new(),
            order: VecDeque::new(),
        }
    }

    fn get(&self, id: &str) -> Option<&UtteranceAdmitted> {
        self.by_id.get(id)
    }

    fn insert(&mut self, admitted: UtteranceAdmitted) {
        let id = admitted.request.id.clone();
        self.bytes += size_of_val(&*admitted.samples);
        match self.by_id.insert(id.clone(), admitted) {
            Some(before) => self.bytes -= size_of_val(&*before.samples),
            None => self.order.push_back(id),
        }
        while self.bytes > self.bytes_max {
            let Some(oldest) = self.order.pop_front() else {
                break;
            };
            if let Some(gone) = self.by_id.remove(&oldest) {
                self.bytes -= size_of_val(&*gone.samples);
            }
        }
    }
}
