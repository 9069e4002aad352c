//! `SampleCollector`: keeps the labelled samples that pass by.
//!
//! Takes records of the label topic from a source's channel, and [`UtteranceAdmitted`] from the ingest; sends
//! [`PublishDeadLetter`]. A record's offset is released only when its sample is in the store. A correction
//! needs the audio of the request that it corrects, so the latest utterances are remembered, up to a number
//! of bytes; a request that has a sample in the store is found there. Requests are read from another topic,
//! so a correction that comes first waits a while.

use std::sync::Arc;
use std::time::Duration;

use kameo::error::Infallible;
use kameo::mailbox::{MailboxReceiver, Signal};
use kameo::prelude::*;
use speechverse::audio::{AudioLimits, Damage, decode};
use speechverse::kafka::{OffsetTracker, SourceEvent, TopicPartition};
use speechverse::store::{ContentHash, Put, Sample, SampleSource, SampleStore};
use speechverse::telemetry::metrics;
use speechverse::text::TemplateVariables;
use speechverse::util::Clock;
use speechverse::wire::dead_letter::{Reason, Rejection, Stage};
use speechverse::wire::label::{Correction, Label, LabelledAudio};
use speechverse::wire::request::{Instructions, RequestLimits};
use speechverse::wire::{Record, RecordOffset};
use tracing::{debug, error, info};

use crate::answering::task_of;
use crate::inbox::{Arrival, Inbox};
use crate::messages::{OrphanQueue, PublishDeadLetter, RecordGuard, UtteranceAdmitted};
use crate::question::variables_of;
use crate::subjects::{Remembered, Waiting};
use crate::windows::reason_of;

pub use crate::question::{OPEN_TASK, question};

/// How often the corrections that wait are looked at.
const WAITING_CHECK_INTERVAL: Duration = Duration::from_millis(100);

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
    pub orphans: OrphanQueue,
    /// Requests that are remembered for corrections: audio and texts of all together, bytes.
    pub remembered_bytes_max: usize,
    /// By which corrections wait.
    pub clock: Clock,
    /// Longest that a correction waits for its request.
    pub correction_wait: Duration,
    /// Corrections that may wait at once.
    pub corrections_waiting_max: usize,
    /// Takes what cannot be kept.
    pub publisher: Recipient<PublishDeadLetter>,
}

/// The collecting stage.
pub struct SampleCollector {
    args: CollectorArgs,
    inbox: Inbox,
    remembered: Remembered,
    waiting: Vec<Waiting>,
}

impl Actor for SampleCollector {
    type Args = CollectorArgs;
    type Error = Infallible;

    async fn on_start(args: Self::Args, _: ActorRef<Self>) -> Result<Self, Self::Error> {
        let remembered = Remembered::new(args.remembered_bytes_max);
        let collector = Self {
            inbox: Inbox::new(
                "labels",
                args.events.clone(),
                args.tracker.budget().audio().clone(),
                WAITING_CHECK_INTERVAL,
                args.clock.clone(),
            ),
            args,
            remembered,
            waiting: Vec::new(),
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
                Arrival::Revoked(revocation) => self.forget(&revocation.partitions),
                Arrival::Tick => self.give_up_waiting().await,
            }
        }
    }
}

impl Message<UtteranceAdmitted> for SampleCollector {
    type Reply = ();

    async fn handle(&mut self, message: UtteranceAdmitted, _: &mut Context<Self, Self::Reply>) {
        let id = message.request.id.clone();
        self.remembered.insert(message);
        self.take_up(&id).await;
    }
}

/// A sample to store, or a correction whose request has not come.
enum Read {
    Sample(Box<Sample>),
    TooEarly(Correction),
}

impl SampleCollector {
    async fn keep(&mut self, record: Record) {
        let record = RecordGuard::new(record, Stage::Collect, self.args.orphans.clone());
        match self.read(&record) {
            Ok(Read::TooEarly(correction)) => self.wait(record, correction).await,
            Ok(Read::Sample(sample)) => self.finish(record, Ok(*sample)).await,
            Err(rejection) => self.finish(record, Err(rejection)).await,
        }
    }

    fn read(&self, record: &Record) -> Result<Read, Rejection> {
        match Label::parse(record, &self.args.limits, &*self.args.instructions)? {
            Label::Sample(label) => Ok(Read::Sample(Box::new(self.labelled(label, record)?))),
            Label::Correction(correction) => self.read_correction(correction, record),
        }
    }

    async fn finish(&self, record: RecordGuard, sample: Result<Sample, Rejection>) {
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

    async fn wait(&mut self, record: RecordGuard, correction: Correction) {
        debug!(subject = %correction.subject, "a correction waits for its request");
        self.waiting.push(Waiting {
            record,
            correction,
            until: self.args.clock.now() + self.args.correction_wait,
        });
        if self.waiting.len() > self.args.corrections_waiting_max {
            let oldest = self.waiting.remove(0);
            self.refuse_unknown(oldest).await;
        }
        if self.args.correction_wait.is_zero() {
            self.give_up_waiting().await;
        }
    }

    /// Takes up the corrections of a request that has just come, in the order in which they came.
    async fn take_up(&mut self, id: &str) {
        let (found, waiting) = std::mem::take(&mut self.waiting)
            .into_iter()
            .partition(|waiting| waiting.correction.subject == id);
        self.waiting = waiting;
        for Waiting {
            record,
            correction,
            until,
        } in found
        {
            match self.read_correction(correction, &record) {
                Ok(Read::Sample(sample)) => self.finish(record, Ok(*sample)).await,
                Err(rejection) => self.finish(record, Err(rejection)).await,
                // The request has the same id, and another source than the correction says.
                Ok(Read::TooEarly(correction)) => self.waiting.push(Waiting {
                    record,
                    correction,
                    until,
                }),
            }
        }
    }

    /// Refuses the corrections that have waited long enough.
    async fn give_up_waiting(&mut self) {
        let now = self.args.clock.now();
        let (over, waiting) = std::mem::take(&mut self.waiting)
            .into_iter()
            .partition(|waiting| waiting.until <= now);
        self.waiting = waiting;
        for waiting in over {
            self.refuse_unknown(waiting).await;
        }
    }

    async fn refuse_unknown(&self, waiting: Waiting) {
        let rejection = waiting.unknown_subject();
        self.finish(waiting.record, Err(rejection)).await;
    }

    /// Drops the corrections of partitions that were taken away; whoever gets them reads the records again.
    fn forget(&mut self, partitions: &[TopicPartition]) {
        let (gone, waiting) = std::mem::take(&mut self.waiting)
            .into_iter()
            .partition(|waiting| partitions.contains(&TopicPartition::of(&waiting.record.record_offset)));
        self.waiting = waiting;
        for Waiting { record, .. } in gone {
            record.complete();
        }
    }

    fn labelled(&self, label: LabelledAudio, record: &Record) -> Result<Sample, Rejection> {
        let waveform = decode(&label.audio, label.content_type.as_deref(), &self.args.audio)
            .map_err(|error| Rejection::new(reason_of(&error), Stage::Collect, error.to_string()))?;
        check_damage(&waveform.damage, &label.id)?;
        let (received_ms, written_ms) = times(record);
        Ok(Sample {
            audio: waveform.samples,
            task: self.sample_task(label.task.as_deref(), &label.instruction),
            instruction: label.instruction,
            target: label.target,
            source: source(&record.record_offset),
            request_source: label.source.unwrap_or_default(),
            request_id: label.id,
            constrained: label.constrained,
            labels: label.labels.unwrap_or_default(),
            fields: label.fields,
            written_ms,
            received_ms,
            may_train: label.may_train,
        })
    }

    /// The sample that a correction makes of its request.
    fn read_correction(&self, correction: Correction, record: &Record) -> Result<Read, Rejection> {
        let Some(mut sample) = self.subject_of(&correction)? else {
            return Ok(Read::TooEarly(correction));
        };
        let (received_ms, written_ms) = times(record);
        sample.target = self.allowed(&sample, correction.target)?;
        sample.source = source(&record.record_offset);
        (sample.received_ms, sample.written_ms) = (received_ms, written_ms);
        Ok(Read::Sample(Box::new(sample)))
    }

    /// The request that a correction names, as a sample that has no target yet; none when it has not come.
    ///
    /// The source that the correction names counts. Where it names none, its own source does if there is such
    /// a request, else the only one there is.
    fn subject_of(&self, correction: &Correction) -> Result<Option<Sample>, Rejection> {
        let id = correction.subject.as_str();
        let mut sources = self.args.store.sources_of(id);
        sources.extend(self.remembered.sources_of(id).map(str::to_owned));
        sources.sort();
        sources.dedup();
        let has = |source: &String| sources.contains(source);
        let chosen = match (
            &correction.subject_source,
            correction.source.as_ref().filter(|own| has(own)),
        ) {
            (Some(named), _) => named.clone(),
            (None, Some(own)) => own.clone(),
            (None, None) if sources.len() > 1 => {
                let message = format!(
                    "{} requests are called `{}`, of the sources {}: name one with `ce_subjectsource`",
                    sources.len(),
                    id.escape_debug(),
                    sources.join(", ").escape_debug()
                );
                return Err(Rejection::new(Reason::UnknownSubject, Stage::Collect, message));
            }
            (None, None) => match sources.pop() {
                Some(only) => only,
                None => return Ok(None),
            },
        };
        if let Some(admitted) = self.remembered.get(&chosen, id) {
            check_damage(&admitted.damage, id)?;
            return Ok(Some(self.untargeted(admitted)));
        }
        let stored = self.args.store.of_request(&chosen, id).map_err(|error| {
            error!(%error, "the sample store failed");
            Rejection::new(Reason::StoreRefused, Stage::Collect, error.to_string())
        })?;
        Ok(stored.map(|stored| stored.sample))
    }

    /// A remembered request as a sample that has no target yet.
    fn untargeted(&self, admitted: &UtteranceAdmitted) -> Sample {
        let request = &admitted.request;
        Sample {
            audio: admitted.samples.to_vec(),
            instruction: request.instruction.clone(),
            target: String::new(),
            task: self.sample_task(request.task.as_deref(), &request.instruction),
            source: source(&admitted.record_offset),
            request_source: request.source.clone().unwrap_or_default(),
            request_id: request.id.clone(),
            labels: request.labels.clone().unwrap_or_default(),
            fields: request.fields.clone(),
            constrained: request.constrained,
            written_ms: 0,
            received_ms: 0,
            may_train: true,
        }
    }

    /// The task of a sample that may name one, as serving takes its request.
    fn sample_task(&self, named: Option<&str>, instruction: &str) -> String {
        let default = self.args.instructions.default_instruction();
        task_of(named, instruction, &default)
            .unwrap_or(OPEN_TASK)
            .to_owned()
    }

    /// The target as it is stored, if it is one of the answers that the request or its task allows.
    fn allowed(&self, sample: &Sample, target: String) -> Result<String, Rejection> {
        let refused = |reason: String| Rejection::new(Reason::InvalidSample, Stage::Collect, reason);
        let instructions = &self.args.instructions;
        let of_task = |names: &str, variables: &TemplateVariables, own: Option<&str>| {
            instructions.of_task(names, variables, own)
        };
        let asked = question(&sample.task, &sample.instruction, &variables_of(sample), of_task)
            .map_err(|error| refused(format!("the request's task: {error}")))?;
        asked.check_target(&target).map_err(refused)?;
        Ok(target)
    }

    fn put(&self, sample: &Sample) -> Result<(), Rejection> {
        let refused = |message: String| Rejection::new(Reason::StoreRefused, Stage::Collect, message);
        match self.args.store.put(sample) {
            Ok(Put::Stored {
                id,
                split,
                supersedes,
                ..
            }) => {
                metrics::store_put("stored");
                info!(%id, split = split.name(), task = %sample.task, "sample stored");
                superseded(sample, id, supersedes);
                Ok(())
            }
            Ok(Put::Duplicate {
                id,
                withdrawn,
                supersedes,
            }) => {
                metrics::store_put("duplicate");
                debug!(%id, withdrawn, "sample was stored before");
                superseded(sample, id, supersedes);
                Ok(())
            }
            Ok(Put::Outdated { by }) => {
                metrics::store_put("outdated");
                info!(request_id = %sample.request_id, %by, "a later answer to the same question is stored, this one is not");
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

/// Refuses sound of which so much is missing that a target may name words that are not in it; less is logged.
fn check_damage(damage: &Damage, id: &str) -> Result<(), Rejection> {
    if let Err(reason) = damage.check_labelled() {
        return Err(Rejection::new(Reason::InvalidSample, Stage::Collect, reason));
    }
    if *damage != Damage::default() {
        let (undecoded_seconds, notes) = (damage.undecoded_seconds, &damage.notes);
        info!(request_id = %id, undecoded_seconds, ?notes, "the sound of a sample is damaged, it is kept");
    }
    Ok(())
}

fn source(record_offset: &RecordOffset) -> SampleSource {
    SampleSource {
        topic: record_offset.topic.to_string(),
        partition: record_offset.partition,
        offset: record_offset.offset,
    }
}

/// When a record is received, and when it was written: not after that, whatever its sender's clock says.
fn times(record: &Record) -> (i64, i64) {
    let now = jiff::Timestamp::now().as_millisecond();
    (now, record.timestamp_ms.map_or(now, |written| written.min(now)))
}

fn superseded(sample: &Sample, by: ContentHash, earlier: Option<ContentHash>) {
    if let Some(earlier) = earlier {
        metrics::store_put("superseded");
        info!(%earlier, %by, request_id = %sample.request_id, "an earlier answer to the same question is withdrawn");
    }
}
