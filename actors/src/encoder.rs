//! `Encoder`: gathers utterances into batches and runs the frozen speech encoder.
//!
//! Receives [`EncodeUtterance`], sends [`DecodeUtterance`]. Blocks on the device, so it lives in its own
//! thread. What it receives waits in a [`FairQueue`] for its turn, and for one of the [`DecoderPlaces`]; what
//! is late by then becomes a dead letter and never reaches the device. Drives the first half of the inference
//! engine, the feature extractor: clips longer than the encoder's window are cut, and a batch that fails is
//! tried again one utterance at a time, so that only the one at fault becomes a dead letter. A panic outside
//! that restarts the actor with a fresh model, and the contexts it held find their own way.

use std::sync::Arc;
use std::time::{Duration, Instant};

use kameo::mailbox::{MailboxReceiver, Signal};
use kameo::prelude::*;
use speechverse::inference::config::EncoderConfig;
use speechverse::inference::{Clip, FeatureExtractor, Features};
use speechverse::models::ModelError;
use speechverse::telemetry::metrics;
use speechverse::util::Clock;
use speechverse::wire::dead_letter::{Reason, Stage};
use speechverse::wire::request::Priority;
use tracing::{error, warn};

use crate::fair_queue::FairQueue;
use crate::messages::{
    DecodeUtterance, DecoderPlaces, EncodeSoFar, EncodeUtterance, PublishDeadLetter, ReadSoFar,
    RequestContext,
};

/// Makes the feature extractor, warmed up, again after a restart.
pub type BuildExtractor = Arc<dyn Fn() -> Result<FeatureExtractor, ModelError> + Send + Sync>;

/// Everything an [`Encoder`] needs to start, and to start again.
#[derive(Clone)]
pub struct EncoderArgs {
    /// Batching.
    pub config: EncoderConfig,
    /// Most utterances that wait for their turn; beyond it the mailbox fills.
    pub queue_max: usize,
    /// Share of the audio seconds that bulk requests get while interactive ones wait too.
    pub bulk_share: f64,
    /// How many utterances may wait for the generator.
    pub places: DecoderPlaces,
    /// By which deadlines are judged and batches wait.
    pub clock: Clock,
    /// Makes the network on the actor's own thread.
    pub build: BuildExtractor,
    /// Takes the features.
    pub decoder: Recipient<DecodeUtterance>,
    /// Takes the features of utterances in progress.
    pub reader: Recipient<ReadSoFar>,
    /// Takes what cannot be encoded.
    pub publisher: Recipient<PublishDeadLetter>,
}

/// The speech encoder stage.
pub struct Encoder {
    args: EncoderArgs,
    extractor: FeatureExtractor,
    queue: FairQueue<EncodeUtterance>,
    /// Windows of all that waits.
    windows: usize,
    /// When what waits has waited long enough for company; none while nothing waits.
    flush_at: Option<Instant>,
}

impl Actor for Encoder {
    type Args = EncoderArgs;
    type Error = ModelError;

    async fn on_start(args: Self::Args, _: ActorRef<Self>) -> Result<Self, Self::Error> {
        let extractor = (args.build)()?;
        Ok(Self {
            queue: FairQueue::new(args.bulk_share),
            args,
            extractor,
            windows: 0,
            flush_at: None,
        })
    }

    /// Takes all that has come before it encodes, so that the queue has something to choose from.
    async fn next(
        &mut self,
        _: WeakActorRef<Self>,
        mailbox: &mut MailboxReceiver<Self>,
    ) -> Result<Option<Signal<Self>>, Self::Error> {
        loop {
            let has_room = self.queue.len() < self.args.queue_max;
            if has_room {
                match mailbox.try_recv() {
                    Ok(signal) => return Ok(Some(signal)),
                    Err(tokio::sync::mpsc::error::TryRecvError::Disconnected) => return Ok(None),
                    Err(tokio::sync::mpsc::error::TryRecvError::Empty) => {}
                }
            }
            self.refuse_late().await;
            let is_due = self.is_due();
            if is_due && self.encode_next().await {
                continue;
            }
            let (queue, clock) = (&self.queue, &self.args.clock);
            let wake_at = if is_due {
                queue.deadline()
            } else {
                earlier(self.flush_at, queue.deadline())
            };
            tokio::select! {
                biased;
                signal = mailbox.recv(), if has_room => return Ok(signal),
                () = self.args.places.free(|priority| queue.has(priority)), if is_due => {}
                () = clock.sleep_until(wake_at.unwrap_or_else(|| clock.now())), if wake_at.is_some() => {}
            }
        }
    }

    /// A graceful stop encodes what waits.
    async fn on_stop(&mut self, _: WeakActorRef<Self>, reason: ActorStopReason) -> Result<(), Self::Error> {
        while matches!(reason, ActorStopReason::Normal) && !self.queue.is_empty() {
            self.refuse_late().await;
            if !self.encode_next().await {
                self.args.places.free(|priority| self.queue.has(priority)).await;
            }
        }
        Ok(())
    }
}

impl Message<EncodeUtterance> for Encoder {
    type Reply = ();

    async fn handle(&mut self, message: EncodeUtterance, _: &mut Context<Self, Self::Reply>) {
        let wait = Duration::from_millis(self.args.config.batch_wait_ms_max);
        self.flush_at.get_or_insert(self.args.clock.now() + wait);
        self.windows += self.extractor.windows(message.samples.len());
        self.queue.push(message.context.queue_entry(), message);
        self.tell_queue();
    }
}

impl Message<EncodeSoFar> for Encoder {
    type Reply = ();

    /// At once, or not at all: when something waits that is to be answered, this would stand in its way.
    /// Given up where the utterance is being answered before it is read.
    async fn handle(&mut self, message: EncodeSoFar, _: &mut Context<Self, Self::Reply>) {
        if !self.queue.is_empty() || message.so_far.turn.is_answered() {
            return;
        }
        let EncodeSoFar {
            samples,
            adapter,
            so_far,
        } = message;
        let clip = Clip {
            samples: &samples,
            adapter: &adapter,
        };
        match self.extractor.extract_while(clip, &|| !so_far.turn.is_answered()) {
            Ok(Some(features)) => {
                let order = ReadSoFar {
                    features,
                    adapter,
                    so_far,
                };
                let _ = self.args.reader.tell(order).try_send(); // the next one is not far
            }
            Ok(None) => {}
            Err(error) => warn!(%error, "cannot encode an utterance in progress"),
        }
    }
}

/// The earlier of two times.
fn earlier(one: Option<Instant>, other: Option<Instant>) -> Option<Instant> {
    [one, other].into_iter().flatten().min()
}

impl Encoder {
    /// Whether what waits makes a full batch, or has waited long enough.
    fn is_due(&self) -> bool {
        let most = self.args.config.batch_windows_max;
        let is_full = self.windows >= most || self.queue.len() >= self.args.queue_max;
        let has_waited = self.flush_at.is_some_and(|at| at <= self.args.clock.now());
        !self.queue.is_empty() && (is_full || has_waited || most == 1)
    }

    /// Encodes those whose turn it is, one batch of them; whether there were any with a place before the
    /// generator.
    async fn encode_next(&mut self) -> bool {
        let (mut batch, mut windows) = (Vec::new(), 0);
        while windows < self.args.config.batch_windows_max {
            let places = &self.args.places;
            let Some(mut message) = self.queue.pop(|priority| places.has_free(priority)) else {
                break;
            };
            if let Some(place) = places.try_take(message.context.request.priority) {
                message.context.take_place(place);
            }
            message.context.dequeued();
            let count = self.extractor.windows(message.samples.len());
            if message.context.is_void() {
                self.windows -= count;
                message.context.withdraw();
                continue;
            }
            windows += count;
            batch.push(message);
        }
        self.windows -= windows;
        if self.queue.is_empty() {
            self.flush_at = None;
        }
        self.tell_queue();
        let any = !batch.is_empty();
        let lengths: Vec<usize> = batch.iter().map(|message| message.samples.len()).collect();
        let mut waiting: Vec<Option<EncodeUtterance>> = batch.into_iter().map(Some).collect();
        for pass in self.extractor.batches(&lengths) {
            let pass = pass.into_iter().filter_map(|at| waiting[at].take()).collect();
            self.encode_batch(pass).await;
        }
        any
    }

    async fn refuse_late(&mut self) {
        let now = self.args.clock.now();
        let late = self.queue.take_late(now);
        if !late.is_empty() {
            self.tell_queue();
        }
        for mut message in late {
            self.windows -= self.extractor.windows(message.samples.len());
            message.context.dequeued();
            self.publish(PublishDeadLetter::late(message.context, now)).await;
        }
        if self.queue.is_empty() {
            self.flush_at = None;
        }
    }

    fn tell_queue(&self) {
        for priority in Priority::ALL {
            let seconds = self.queue.audio_seconds(*priority);
            metrics::queue_audio(Stage::Encode.as_str(), priority.as_str(), seconds);
        }
    }

    async fn encode_batch(&mut self, batch: Vec<EncodeUtterance>) {
        let started = Instant::now();
        let windows = batch
            .iter()
            .map(|message| self.extractor.windows(message.samples.len()));
        metrics::encoder_batch(windows.sum());
        let clips: Vec<Clip<'_>> = (batch.iter())
            .map(|message| Clip {
                samples: &message.samples,
                adapter: &message.adapter,
            })
            .collect();
        let found = self.extractor.extract(&clips);
        let worked = started.elapsed();
        for (message, features) in batch.into_iter().zip(found) {
            match features {
                Ok(features) => self.forward(message, features, worked).await,
                Err(error) => self.reject(message.context, &error).await,
            }
        }
    }

    async fn forward(&mut self, message: EncodeUtterance, features: Features, worked: Duration) {
        let EncodeUtterance {
            adapter, mut context, ..
        } = message;
        context.times.encode_ms += worked.as_secs_f64() * 1e3;
        context.queue_for(Stage::Decode);
        let order = DecodeUtterance {
            features,
            adapter,
            context,
        };
        if let Err(error) = self.args.decoder.tell(order).await {
            warn!(error = %error.to_string(), "decoder is gone, its utterance goes back");
        }
    }

    async fn reject(&mut self, context: RequestContext, cause: &ModelError) {
        (context.span).in_scope(|| error!(error = %cause, "cannot encode an utterance"));
        self.publish(PublishDeadLetter::of(
            context,
            Reason::InternalError,
            cause.to_string(),
        ))
        .await;
    }

    async fn publish(&mut self, letter: Option<PublishDeadLetter>) {
        let Some(letter) = letter else { return };
        if let Err(error) = self.args.publisher.tell(letter).await {
            error!(error = %error.to_string(), "publisher is gone");
        }
    }
}
