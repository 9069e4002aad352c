//! `Encoder`: gathers utterances into batches and runs the frozen speech encoder.
//!
//! Receives [`EncodeUtterance`], sends [`DecodeUtterance`]. Blocks on the device, so it lives in its own thread. Clips
//! longer than the encoder's window are cut into equal windows whose features are joined again. A batch that fails is
//! tried again one utterance at a time, so that only the one at fault becomes a dead letter; a panic outside that
//! restarts the actor with a fresh model, and the contexts it held find their own way.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::{Duration, Instant};

use kameo::prelude::*;
use speechverse::config::serving::EncoderConfig;
use speechverse::models::{EncoderInfo, ModelError, SpeechEncoder};
use speechverse::telemetry::metrics;
use speechverse::wire::dead_letter::{Reason, Stage};
use tch::Tensor;
use tracing::{error, warn};

use crate::messages::{DecodeUtterance, EncodeUtterance, PublishDeadLetter};

/// Makes the speech encoder, again after a restart.
pub type BuildEncoder = Arc<dyn Fn() -> Result<Box<dyn SpeechEncoder>, ModelError> + Send + Sync>;

/// Everything an [`Encoder`] needs to start, and to start again.
#[derive(Clone)]
pub struct EncoderArgs {
    /// Batching.
    pub config: EncoderConfig,
    /// Makes the network on the actor's own thread.
    pub build: BuildEncoder,
    /// Takes the features.
    pub decoder: Recipient<DecodeUtterance>,
    /// Takes what cannot be encoded.
    pub publisher: Recipient<PublishDeadLetter>,
}

/// The speech encoder stage.
pub struct Encoder {
    args: EncoderArgs,
    model: Box<dyn SpeechEncoder>,
    info: EncoderInfo,
    pending: Vec<EncodeUtterance>,
    pending_windows: usize,
}

impl Actor for Encoder {
    type Args = EncoderArgs;
    type Error = ModelError;

    async fn on_start(args: Self::Args, _: ActorRef<Self>) -> Result<Self, Self::Error> {
        let model = (args.build)()?;
        let info = model.info();
        Ok(Self {
            args,
            model,
            info,
            pending: Vec::new(),
            pending_windows: 0,
        })
    }

    async fn on_panic(
        &mut self,
        _: WeakActorRef<Self>,
        error: PanicError,
    ) -> Result<std::ops::ControlFlow<ActorStopReason>, Self::Error> {
        error!(%error, "encoder panicked, its supervisor restarts it");
        metrics::stage_restarted(Stage::Encode.as_str());
        Ok(std::ops::ControlFlow::Break(ActorStopReason::Panicked(error)))
    }
}

impl Message<EncodeUtterance> for Encoder {
    type Reply = ();

    async fn handle(&mut self, mut message: EncodeUtterance, ctx: &mut Context<Self, Self::Reply>) {
        let waited = message.context.dequeued();
        metrics::stage_entered(Stage::Encode.as_str(), waited);
        if self.pending.is_empty() && self.args.config.batch_windows_max > 1 {
            let wait = Duration::from_millis(self.args.config.batch_wait_ms_max);
            ctx.actor_ref().tell(FlushBatch).send_after(wait);
        }
        self.pending_windows += windows(message.samples.len(), self.info.max_samples).len();
        self.pending.push(message);
        if self.pending_windows >= self.args.config.batch_windows_max {
            self.encode_pending().await;
        }
    }
}

/// Self-message: the oldest pending utterance has waited long enough.
struct FlushBatch;

impl Message<FlushBatch> for Encoder {
    type Reply = ();

    async fn handle(&mut self, _: FlushBatch, _: &mut Context<Self, Self::Reply>) {
        self.encode_pending().await;
    }
}

impl Encoder {
    /// Encodes everything that waits, in passes of at most the configured number of windows.
    async fn encode_pending(&mut self) {
        let mut waiting = std::mem::take(&mut self.pending);
        self.pending_windows = 0;
        // Clips of like length share a pass, so that little of it is padding.
        waiting.sort_by_key(|message| message.samples.len());
        let mut batch = Vec::new();
        let mut batch_windows = 0;
        for message in waiting {
            let count = windows(message.samples.len(), self.info.max_samples).len();
            if !batch.is_empty() && batch_windows + count > self.args.config.batch_windows_max {
                self.encode_batch(std::mem::take(&mut batch)).await;
                batch_windows = 0;
            }
            batch_windows += count;
            batch.push(message);
        }
        if !batch.is_empty() {
            self.encode_batch(batch).await;
        }
    }

    async fn encode_batch(&mut self, batch: Vec<EncodeUtterance>) {
        let started = Instant::now();
        match self.run(&batch) {
            Ok(features) => self.hand_on(batch, features, started).await,
            Err(error) if batch.len() > 1 => {
                warn!(%error, utterances = batch.len(), "encoder batch failed, trying its utterances one by one");
                for message in batch {
                    let one = vec![message];
                    match self.run(&one) {
                        Ok(features) => self.hand_on(one, features, started).await,
                        Err(error) => self.reject(one, &error).await,
                    }
                }
            }
            Err(error) => self.reject(batch, &error).await,
        }
    }

    /// One pass; a panic inside the network is an error like any other.
    fn run(&self, batch: &[EncodeUtterance]) -> Result<Vec<Tensor>, ModelError> {
        std::panic::catch_unwind(AssertUnwindSafe(|| self.features(batch)))
            .unwrap_or_else(|panic| Err(ModelError::panicked("speech encoder", &*panic)))
    }

    /// Mixed features `[T, D]` of each utterance, its windows joined.
    fn features(&self, batch: &[EncodeUtterance]) -> Result<Vec<Tensor>, ModelError> {
        let _no_grad = tch::no_grad_guard();
        let mut clips: Vec<&[f32]> = Vec::new();
        let mut mixes = Vec::new();
        let mut owners = Vec::new();
        for (owner, message) in batch.iter().enumerate() {
            for range in windows(message.samples.len(), self.info.max_samples) {
                clips.push(&message.samples[range]);
                mixes.push(Tensor::from_slice(message.adapter.mix_weights()));
                owners.push(owner);
            }
        }
        metrics::encoder_batch(clips.len());
        let mix = Tensor::f_stack(&mixes, 0)?; // [B, L+1]
        let encoded = self.model.encode(&clips, &mix)?;
        let mut joined: Vec<Vec<Tensor>> = batch.iter().map(|_| Vec::new()).collect();
        for (row, &owner) in owners.iter().enumerate() {
            let valid = encoded
                .features
                .f_get(row as i64)?
                .f_narrow(0, 0, encoded.lengths[row])?; // [T, D]
            joined[owner].push(valid);
        }
        joined
            .into_iter()
            // Contiguous, so that no row keeps the whole batch in memory.
            .map(|parts| Ok(Tensor::f_cat(&parts, 0)?.f_contiguous()?))
            .collect()
    }

    async fn hand_on(&mut self, batch: Vec<EncodeUtterance>, features: Vec<Tensor>, started: Instant) {
        let worked = started.elapsed();
        for (message, features) in batch.into_iter().zip(features) {
            let EncodeUtterance {
                adapter, mut context, ..
            } = message;
            context.times.encode_ms += worked.as_secs_f64() * 1e3;
            metrics::stage_left(Stage::Encode.as_str(), worked);
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
    }

    async fn reject(&mut self, batch: Vec<EncodeUtterance>, cause: &ModelError) {
        for message in batch {
            error!(error = %cause, request_id = %message.context.request.id, "cannot encode an utterance");
            let letter = PublishDeadLetter::of(message.context, Reason::InternalError, cause.to_string());
            if let Err(error) = self.args.publisher.tell(letter).await {
                error!(error = %error.to_string(), "publisher is gone");
            }
        }
    }
}

/// Cuts a clip into the fewest equal windows that the encoder takes.
pub fn windows(samples: usize, samples_max: Option<usize>) -> Vec<std::ops::Range<usize>> {
    let count = samples_max.map_or(1, |max| samples.div_ceil(max.max(1))).max(1);
    (0..count)
        .map(|index| samples * index / count..samples * (index + 1) / count)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::windows;

    #[test]
    fn a_short_clip_is_one_window() {
        assert_eq!(windows(100, Some(480_000)), vec![0..100]);
        assert_eq!(windows(100, None), vec![0..100]);
    }

    #[test]
    fn a_long_clip_is_cut_into_the_fewest_equal_windows_without_a_gap() {
        let cut = windows(1_000_001, Some(480_000));

        assert_eq!(cut.len(), 3);
        assert_eq!(cut[0].start, 0);
        assert_eq!(cut[2].end, 1_000_001);
        assert!(cut.windows(2).all(|pair| pair[0].end == pair[1].start));
        assert!(cut.iter().all(|range| range.len() <= 480_000));
    }
}
