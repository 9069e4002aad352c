//! `Encoder`: gathers utterances into batches and runs the frozen speech encoder.
//!
//! Receives [`EncodeUtterance`], sends [`DecodeUtterance`]. Blocks on the device, so it lives in its own
//! thread. Drives the first half of the inference engine, the feature extractor: clips longer than the
//! encoder's window are cut, and a batch that fails is tried again one utterance at a time, so that only the
//! one at fault becomes a dead letter. A panic outside that restarts the actor with a fresh model, and the
//! contexts it held find their own way.

use std::sync::Arc;
use std::time::{Duration, Instant};

use kameo::prelude::*;
use speechverse::inference::config::EncoderConfig;
use speechverse::inference::{Clip, FeatureExtractor, Features};
use speechverse::models::ModelError;
use speechverse::telemetry::metrics;
use speechverse::wire::dead_letter::{Reason, Stage};
use tracing::{error, warn};

use crate::messages::{DecodeUtterance, EncodeUtterance, PublishDeadLetter, RequestContext};

/// Makes the feature extractor, warmed up, again after a restart.
pub type BuildExtractor = Arc<dyn Fn() -> Result<FeatureExtractor, ModelError> + Send + Sync>;

/// Everything an [`Encoder`] needs to start, and to start again.
#[derive(Clone)]
pub struct EncoderArgs {
    /// Batching.
    pub config: EncoderConfig,
    /// Makes the network on the actor's own thread.
    pub build: BuildExtractor,
    /// Takes the features.
    pub decoder: Recipient<DecodeUtterance>,
    /// Takes what cannot be encoded.
    pub publisher: Recipient<PublishDeadLetter>,
}

/// The speech encoder stage.
pub struct Encoder {
    args: EncoderArgs,
    extractor: FeatureExtractor,
    pending: Vec<EncodeUtterance>,
    pending_windows: usize,
    /// Number of the batch that is gathered: the timer of one that has left must not flush the next.
    batch: u64,
}

impl Actor for Encoder {
    type Args = EncoderArgs;
    type Error = ModelError;

    async fn on_start(args: Self::Args, _: ActorRef<Self>) -> Result<Self, Self::Error> {
        let extractor = (args.build)()?;
        Ok(Self {
            args,
            extractor,
            pending: Vec::new(),
            pending_windows: 0,
            batch: 0,
        })
    }
}

impl Message<EncodeUtterance> for Encoder {
    type Reply = ();

    async fn handle(&mut self, mut message: EncodeUtterance, ctx: &mut Context<Self, Self::Reply>) {
        message.context.dequeued();
        if self.pending.is_empty() && self.args.config.batch_windows_max > 1 {
            let wait = Duration::from_millis(self.args.config.batch_wait_ms_max);
            let flush = FlushBatch { batch: self.batch };
            ctx.actor_ref().tell(flush).send_after(wait);
        }
        self.pending_windows += self.extractor.windows(message.samples.len());
        self.pending.push(message);
        if self.pending_windows >= self.args.config.batch_windows_max {
            self.encode_pending().await;
        }
    }
}

/// Self-message: the oldest utterance of a batch has waited long enough.
struct FlushBatch {
    batch: u64,
}

impl Message<FlushBatch> for Encoder {
    type Reply = ();

    async fn handle(&mut self, message: FlushBatch, _: &mut Context<Self, Self::Reply>) {
        if message.batch == self.batch {
            self.encode_pending().await;
        }
    }
}

impl Encoder {
    /// Encodes everything that waits, in passes of at most the configured number of windows.
    async fn encode_pending(&mut self) {
        let mut waiting: Vec<Option<EncodeUtterance>> = self.pending.drain(..).map(Some).collect();
        self.pending_windows = 0;
        self.batch += 1;
        let lengths: Vec<usize> = (waiting.iter().flatten())
            .map(|message| message.samples.len())
            .collect();
        for batch in self.extractor.batches(&lengths) {
            let batch = batch.into_iter().filter_map(|at| waiting[at].take()).collect();
            self.encode_batch(batch).await;
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
                Ok(features) => self.hand_on(message, features, worked).await,
                Err(error) => self.reject(message.context, &error).await,
            }
        }
    }

    async fn hand_on(&mut self, message: EncodeUtterance, features: Features, worked: Duration) {
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
        let letter = PublishDeadLetter::of(context, Reason::InternalError, cause.to_string());
        if let Err(error) = self.args.publisher.tell(letter).await {
            error!(error = %error.to_string(), "publisher is gone");
        }
    }
}
