//! `Decoder`: features become text, through the adapter and the LLM.
//!
//! Receives [`DecodeUtterance`], sends [`PublishAnswer`] and [`PublishPartial`]. Blocks on the device, so it
//! lives in its own thread. Answers are generated side by side in slots: between two steps, new utterances
//! join and finished ones leave, so a short answer never waits for a long one. While every slot is taken the
//! mailbox fills, which holds the encoder back.

use std::collections::{BTreeMap, VecDeque};
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Instant;

use kameo::mailbox::{MailboxReceiver, Signal};
use kameo::prelude::*;
use speechverse::config::serving::DecoderConfig;
use speechverse::models::ModelError;
use speechverse::models::decoding::{Decoded, Prompt};
use speechverse::models::responder::{Question, Responder};
use speechverse::models::speech_llm::SpeechLlmError;
use speechverse::telemetry::metrics;
use speechverse::wire::answer::{Answer, AnswerKind, Flag, Timing};
use speechverse::wire::dead_letter::{Reason, Stage};
use tracing::error;

use crate::messages::{DecodeUtterance, PublishAnswer, PublishDeadLetter, PublishPartial, RequestContext};

/// Makes the language model with its tokenizer and prompt layout, again after a restart.
pub type BuildResponder = Arc<dyn Fn() -> Result<Responder<Active>, SpeechLlmError> + Send + Sync>;

/// Everything a [`Decoder`] needs to start, and to start again.
#[derive(Clone)]
pub struct DecoderArgs {
    /// Slots and limits.
    pub config: DecoderConfig,
    /// Makes the networks on the actor's own thread.
    pub build: BuildResponder,
    /// Takes answers.
    pub publisher: Recipient<PublishAnswer>,
    /// Takes answers so far.
    pub partials: Recipient<PublishPartial>,
    /// Takes what cannot be answered.
    pub dead_letters: Recipient<PublishDeadLetter>,
}

/// What stays with an answer while it is generated.
#[derive(Debug)]
pub struct Active {
    context: RequestContext,
    version: String,
    started: Instant,
    /// Whether its first token is there.
    began: bool,
}

/// The decoder stage.
pub struct Decoder {
    args: DecoderArgs,
    responder: Responder<Active>,
    arrivals: VecDeque<DecodeUtterance>,
}

impl Actor for Decoder {
    type Args = DecoderArgs;
    type Error = SpeechLlmError;

    async fn on_start(args: Self::Args, _: ActorRef<Self>) -> Result<Self, Self::Error> {
        let responder = (args.build)()?;
        Ok(Self {
            args,
            responder,
            arrivals: VecDeque::new(),
        })
    }

    /// Advances the answers in the slots while there are any; looks into the mailbox between two steps.
    async fn next(
        &mut self,
        _: WeakActorRef<Self>,
        mailbox: &mut MailboxReceiver<Self>,
    ) -> Result<Option<Signal<Self>>, Self::Error> {
        loop {
            if self.responder.free() > self.arrivals.len() {
                match mailbox.try_recv() {
                    Ok(signal) => return Ok(Some(signal)),
                    Err(tokio::sync::mpsc::error::TryRecvError::Disconnected) => return Ok(None),
                    Err(tokio::sync::mpsc::error::TryRecvError::Empty) => {}
                }
            }
            if !self.arrivals.is_empty() {
                self.join_arrivals().await;
            } else if self.responder.used() > 0 {
                self.step().await;
            } else {
                return Ok(mailbox.recv().await);
            }
        }
    }

    async fn on_panic(
        &mut self,
        _: WeakActorRef<Self>,
        error: PanicError,
    ) -> Result<std::ops::ControlFlow<ActorStopReason>, Self::Error> {
        error!(%error, "decoder panicked, its supervisor restarts it");
        metrics::stage_restarted(Stage::Decode.as_str());
        Ok(std::ops::ControlFlow::Break(ActorStopReason::Panicked(error)))
    }

    /// A graceful stop finishes the answers that have begun.
    async fn on_stop(&mut self, _: WeakActorRef<Self>, reason: ActorStopReason) -> Result<(), Self::Error> {
        while matches!(reason, ActorStopReason::Normal)
            && (self.responder.used() > 0 || !self.arrivals.is_empty())
        {
            if self.arrivals.is_empty() {
                self.step().await;
            } else {
                self.join_arrivals().await;
            }
        }
        Ok(())
    }
}

impl Message<DecodeUtterance> for Decoder {
    type Reply = ();

    async fn handle(&mut self, message: DecodeUtterance, _: &mut Context<Self, Self::Reply>) {
        self.arrivals.push_back(message);
    }
}

impl Decoder {
    /// Lets the arrivals join in one pass over their prompts.
    async fn join_arrivals(&mut self) {
        let mut ready = Vec::new();
        while self.responder.free() > ready.len() {
            let Some(mut message) = self.arrivals.pop_front() else {
                break;
            };
            let waited = message.context.dequeued();
            metrics::stage_entered(Stage::Decode.as_str(), waited);
            let started = Instant::now();
            match self.prompt(&message) {
                Ok(prompt) => {
                    let version = message.adapter.version().to_owned();
                    let active = Active {
                        context: message.context,
                        version,
                        started,
                        began: false,
                    };
                    ready.push((active, prompt));
                }
                Err(error) => self.reject(message.context, &error).await,
            }
        }
        if ready.is_empty() {
            return;
        }
        let joined = std::panic::catch_unwind(AssertUnwindSafe(|| self.responder.join(ready)))
            .unwrap_or_else(|panic| Err(ModelError::panicked("language model", &*panic)));
        match joined {
            Ok(mut finished) => {
                let newcomers = self
                    .responder
                    .active()
                    .chain(finished.iter_mut().map(|(active, _)| active));
                for active in newcomers.filter(|active| !active.began) {
                    active.began = true;
                    active.context.times.prefill_ms = active.started.elapsed().as_secs_f64() * 1e3;
                    metrics::first_token(active.context.admitted.elapsed());
                }
                self.finish(finished).await;
            }
            // Their contexts were dropped with the prompts; the publisher finds them in orphan queue.
            Err(error) => error!(%error, "cannot begin a batch of answers"),
        }
        metrics::decoder_slots(self.responder.used());
    }

    fn prompt(&mut self, message: &DecodeUtterance) -> Result<Prompt, SpeechLlmError> {
        let request = &message.context.request;
        let question = Question {
            features: &message.features,
            instruction: &request.instruction,
            shape: request.shape.as_ref(),
            tokens_max: request.max_tokens,
        };
        std::panic::catch_unwind(AssertUnwindSafe(|| {
            self.responder.prompt(&message.adapter, &question)
        }))
        .unwrap_or_else(|panic| Err(ModelError::panicked("speech adapter", &*panic).into()))
    }

    async fn step(&mut self) {
        metrics::decoder_step(self.responder.used());
        let stepped = std::panic::catch_unwind(AssertUnwindSafe(|| self.responder.step()))
            .unwrap_or_else(|panic| Err(ModelError::panicked("language model", &*panic)));
        match stepped {
            Ok(finished) => {
                self.finish(finished).await;
                self.tell_partials();
            }
            Err(error) => {
                error!(%error, answers = self.responder.used(), "a decoding step failed, its answers are given up");
                let error = SpeechLlmError::from(error);
                for active in self.responder.clear() {
                    self.reject(active.context, &error).await;
                }
            }
        }
        metrics::decoder_slots(self.responder.used());
    }

    /// Tells how far the answers are whose requests want to know, whenever so many tokens have been added. A
    /// text so far is always one of a multiple of these, so its sequence number names it, also when it is
    /// told again after a crash.
    fn tell_partials(&self) {
        let every = self.args.config.partial_tokens;
        for (active, decoded) in self.responder.so_far() {
            let context = &active.context;
            if !context.request.partials || !decoded.ids.len().is_multiple_of(every) {
                continue;
            }
            let Ok(text) = self.responder.text(&decoded) else {
                continue;
            };
            // A character that is not complete yet.
            let text = text.trim_end_matches(char::REPLACEMENT_CHARACTER).to_owned();
            let number = (decoded.ids.len() / every - 1) as u64;
            let whole = self.answer(context, active.version.clone(), &decoded, text);
            let generated = active.started.elapsed().as_secs_f64() * 1e3 - context.times.prefill_ms;
            let answer = Answer {
                id: Answer::id_of(&context.request.id, AnswerKind::Partial, number),
                kind: AnswerKind::Partial,
                flags: Vec::new(),
                timing_ms: Timing {
                    generate: generated.max(0.0),
                    ..whole.timing_ms
                },
                ..whole
            };
            let partial = PublishPartial {
                answer,
                key: context.record.key.clone(),
                trace: context.request.trace.clone(),
            };
            let _ = self.args.partials.tell(partial).try_send(); // a busy publisher has better to do
        }
    }

    /// Turns complete answers into result records.
    async fn finish(&mut self, finished: Vec<(Active, Decoded)>) {
        for (active, decoded) in finished {
            let text = match self.responder.text(&decoded) {
                Ok(text) => text,
                Err(error) => {
                    self.reject(active.context, &error).await;
                    continue;
                }
            };
            let mut context = active.context;
            let worked = active.started.elapsed();
            context.times.generate_ms = (worked.as_secs_f64() * 1e3 - context.times.prefill_ms).max(0.0);
            metrics::stage_left(Stage::Decode.as_str(), worked);
            context.queue_for(Stage::Publish);
            let answer = self.answer(&context, active.version, &decoded, text);
            if let Err(error) = self.args.publisher.tell(PublishAnswer { answer, context }).await {
                error!(error = %error.to_string(), "publisher is gone, an answer goes back");
            }
        }
    }

    fn answer(&self, context: &RequestContext, adapter: String, decoded: &Decoded, text: String) -> Answer {
        let request = &context.request;
        let times = context.times;
        let label = decoded
            .label
            .and_then(|index| request.shape.as_ref()?.choice()?.get(index).cloned());
        let mut flags = flags(decoded, &text, self.args.config.low_confidence_below);
        flags.extend(context.no_speech.then_some(Flag::NoSpeech));
        let fields = (request.joint.as_ref()).map_or_else(BTreeMap::new, |joint| joint.by_task(&text));
        Answer {
            id: Answer::id_of(&request.id, AnswerKind::Final, 0),
            request_id: request.id.clone(),
            session: request.session.clone(),
            kind: AnswerKind::Final,
            task: request.task.clone(),
            instruction: request.instruction.clone(),
            flags,
            text,
            label,
            fields,
            adapter,
            score: decoded.score(),
            audio_seconds: context.audio_seconds,
            tokens: decoded.ids.len(),
            timing_ms: Timing {
                queue: times.queue_ms,
                decode_audio: times.decode_audio_ms,
                encode: times.encode_ms,
                prefill: times.prefill_ms,
                generate: times.generate_ms,
                total: context.admitted.elapsed().as_secs_f64() * 1e3,
            },
        }
    }

    async fn reject(&mut self, context: RequestContext, cause: &SpeechLlmError) {
        let reason = match cause {
            SpeechLlmError::Model(ModelError::TooManyPositions { .. }) => Reason::AudioTooLong,
            SpeechLlmError::Model(ModelError::InstructionTooLong { .. }) => Reason::InstructionTooLong,
            SpeechLlmError::Model(ModelError::Constraint { .. }) => Reason::InvalidLabels,
            _ => Reason::InternalError,
        };
        error!(error = %cause, request_id = %context.request.id, "cannot answer an utterance");
        let letter = PublishDeadLetter::of(context, reason, cause.to_string());
        if let Err(error) = self.args.dead_letters.tell(letter).await {
            error!(error = %error.to_string(), "publisher is gone");
        }
    }
}

/// What a reader should know about an answer.
pub fn flags(decoded: &Decoded, text: &str, low_confidence_below: f64) -> Vec<Flag> {
    let mut flags = Vec::new();
    if decoded.looping {
        flags.push(Flag::Looping);
    }
    if text.is_empty() {
        flags.push(Flag::Empty);
    }
    if !decoded.ended {
        flags.push(Flag::Truncated);
    }
    if decoded.score() < low_confidence_below {
        flags.push(Flag::LowConfidence);
    }
    flags
}
