//! `Decoder`: features become text, through the adapter and the LLM.
//!
//! Receives [`DecodeUtterance`], sends [`PublishAnswer`]. Blocks on the device, so it lives in its own thread. Answers
//! are generated side by side in slots: between two steps, new utterances join and finished ones leave, so a short
//! answer never waits for a long one. While every slot is taken the mailbox fills, which holds the encoder back.

use std::collections::VecDeque;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Instant;

use kameo::mailbox::{MailboxReceiver, Signal};
use kameo::prelude::*;
use speechverse::config::serving::DecoderConfig;
use speechverse::models::ModelError;
use speechverse::models::decoding::Decoded;
use speechverse::models::speech_llm::Responder;
use speechverse::telemetry::metrics;
use speechverse::wire::answer::{Answer, AnswerKind, Flag, Timing};
use speechverse::wire::dead_letter::{Reason, Stage};
use tracing::error;

use crate::messages::{DecodeUtterance, PublishAnswer, PublishDeadLetter, Ticket};

/// Makes the language model with its tokenizer and prompt layout, again after a restart.
pub type BuildResponder = Arc<dyn Fn() -> Result<Responder<Active>, ModelError> + Send + Sync>;

/// Everything a [`Decoder`] needs to start, and to start again.
#[derive(Clone)]
pub struct DecoderArgs {
    /// Slots and limits.
    pub config: DecoderConfig,
    /// Makes the networks on the actor's own thread.
    pub build: BuildResponder,
    /// Takes answers.
    pub publisher: Recipient<PublishAnswer>,
    /// Takes what cannot be answered.
    pub dead_letters: Recipient<PublishDeadLetter>,
}

/// What stays with an answer while it is generated.
#[derive(Debug)]
pub struct Active {
    ticket: Ticket,
    version: String,
    started: Instant,
}

/// The decoder stage.
pub struct Decoder {
    args: DecoderArgs,
    responder: Responder<Active>,
    arrivals: VecDeque<DecodeUtterance>,
}

impl Actor for Decoder {
    type Args = DecoderArgs;
    type Error = ModelError;

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
                    Err(kameo::mailbox::TryRecvError::Disconnected) => return Ok(None),
                    Err(kameo::mailbox::TryRecvError::Empty) => {}
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
        while matches!(reason, ActorStopReason::Normal) && (self.responder.used() > 0 || !self.arrivals.is_empty()) {
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
    /// Lets the arrivals join: together, and where that fails one by one, so that only the one at fault is refused.
    async fn join_arrivals(&mut self) {
        let mut ready = Vec::new();
        while self.responder.free() > ready.len() {
            let Some(mut message) = self.arrivals.pop_front() else { break };
            let waited = message.ticket.taken_up();
            metrics::stage_entered(Stage::Decode.as_str(), waited);
            match self.prompt(&message) {
                Ok(prompt) => {
                    let version = message.adapter.version().to_owned();
                    let active = Active {
                        ticket: message.ticket,
                        version,
                        started: Instant::now(),
                    };
                    ready.push((active, prompt));
                }
                Err(error) => self.reject(message.ticket, &error).await,
            }
        }
        if ready.is_empty() {
            return;
        }
        let started = Instant::now();
        let joined = std::panic::catch_unwind(AssertUnwindSafe(|| self.responder.join(ready)))
            .unwrap_or_else(|panic| Err(ModelError::panicked("language model", &*panic)));
        let spent = started.elapsed();
        match joined {
            Ok(finished) => {
                for active in self.responder.active_mut().filter(|active| active.started >= started || active.ticket.times.prefill_ms == 0.0) {
                    active.ticket.times.prefill_ms = spent.as_secs_f64() * 1e3;
                    metrics::first_token(active.ticket.admitted.elapsed());
                }
                self.finish(finished).await;
            }
            // The tickets went with the prompts; the publisher finds them in lost and found.
            Err(error) => error!(%error, "cannot begin a batch of answers"),
        }
        metrics::decoder_slots(self.responder.used());
    }

    async fn step(&mut self) {
        metrics::decoder_step(self.responder.used());
        let stepped = std::panic::catch_unwind(AssertUnwindSafe(|| self.responder.step()))
            .unwrap_or_else(|panic| Err(ModelError::panicked("language model", &*panic)));
        match stepped {
            Ok(finished) => self.finish(finished).await,
            Err(error) => {
                error!(%error, answers = self.responder.used(), "a decoding step failed, its answers are given up");
                for active in self.responder.clear() {
                    self.reject(active.ticket, &error).await;
                }
            }
        }
        metrics::decoder_slots(self.responder.used());
    }
}
