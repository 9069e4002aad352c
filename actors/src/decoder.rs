//! `Decoder`: features become text, through the adapter and the LLM.
//!
//! Receives [`DecodeUtterance`], sends [`PublishAnswer`] and [`PublishPartial`]. Blocks on the device, so it
//! lives in its own thread. Drives the generating half of the inference engine: answers are generated side by
//! side in slots, and between two steps new requests start and finished ones leave, so a short answer never
//! waits for a long one. What waits for a slot stands in a [`FairQueue`]. A failure, a panic included, ends
//! its own request with a dead letter; so does a deadline, also while the answer is being generated.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use kameo::mailbox::{MailboxReceiver, Signal};
use kameo::prelude::*;
use speechverse::inference::config::DecoderConfig;
use speechverse::inference::{
    Event, GenerateRequest, Generation, Generator, InferenceError, Input, RequestId,
};
use speechverse::models::ModelError;
use speechverse::telemetry::metrics;
use speechverse::util::Clock;
use speechverse::wire::answer::{Answer, AnswerKind, Timing};
use speechverse::wire::dead_letter::{Reason, Stage};
use speechverse::wire::request::{Priority, Request};
use tracing::{error, warn};

use crate::answering::{answer_of, reading_of, task_of};
use crate::fair_queue::FairQueue;
use crate::messages::{
    DecodeUtterance, PublishAnswer, PublishDeadLetter, PublishPartial, ReadSoFar, RequestContext, SoFar,
    WindowDone,
};
use crate::reading::ReadSegment;
use crate::windows::publish_window;

/// Most tokens that a hypothesis adds to what is confirmed: it is made for the next words only.
const HYPOTHESIS_TOKENS_MAX: usize = 24;

/// Makes the generator, warmed up, again after a restart.
pub type BuildGenerator = Arc<dyn Fn() -> Result<Generator, InferenceError> + Send + Sync>;

/// Everything a [`Decoder`] needs to start, and to start again.
#[derive(Clone)]
pub struct DecoderArgs {
    /// Slots and limits.
    pub config: DecoderConfig,
    /// Most utterances that wait for a slot; beyond it the mailbox fills.
    pub queue_max: usize,
    /// Share of the audio seconds that bulk requests get while interactive ones wait too.
    pub bulk_share: f64,
    /// By which deadlines are judged.
    pub clock: Clock,
    /// Instruction of requests that name neither an instruction nor a task: it asks for a transcript.
    pub default_instruction: String,
    /// Makes the networks on the actor's own thread.
    pub build: BuildGenerator,
    /// Takes answers.
    pub publisher: Recipient<PublishAnswer>,
    /// Takes answers so far.
    pub partials: Recipient<PublishPartial>,
    /// Takes what cannot be answered.
    pub dead_letters: Recipient<PublishDeadLetter>,
}

/// What stays with a request while its answer is generated.
#[derive(Debug)]
struct Active {
    /// The span of what is being done: prefill, then generate.
    phase: tracing::Span,
    context: RequestContext,
    version: String,
    /// Confirmed tokens that its answer begins with.
    begun: Generation,
    started: Instant,
    /// Whether its first token is there.
    began: bool,
    /// Multiples of `decoder.partial_tokens` that the answer has passed.
    passed: usize,
}

/// The decoder stage.
pub struct Decoder {
    args: DecoderArgs,
    generator: Generator,
    queue: FairQueue<DecodeUtterance>,
    active: HashMap<RequestId, Active>,
    /// What the language model reads of utterances in progress: the reading, and the adapter version. They
    /// give way to answers.
    hypotheses: HashMap<RequestId, (SoFar, String)>,
}

impl Actor for Decoder {
    type Args = DecoderArgs;
    type Error = InferenceError;

    async fn on_start(args: Self::Args, _: ActorRef<Self>) -> Result<Self, Self::Error> {
        let generator = (args.build)()?;
        Ok(Self {
            queue: FairQueue::new(args.bulk_share),
            args,
            generator,
            active: HashMap::new(),
            hypotheses: HashMap::new(),
        })
    }

    /// Advances the answers while there are any; looks into the mailbox between two steps.
    async fn next(
        &mut self,
        _: WeakActorRef<Self>,
        mailbox: &mut MailboxReceiver<Self>,
    ) -> Result<Option<Signal<Self>>, Self::Error> {
        loop {
            if self.queue.len() < self.args.queue_max {
                match mailbox.try_recv() {
                    Ok(signal) => return Ok(Some(signal)),
                    Err(tokio::sync::mpsc::error::TryRecvError::Disconnected) => return Ok(None),
                    Err(tokio::sync::mpsc::error::TryRecvError::Empty) => {}
                }
            }
            self.give_up_late().await;
            self.end_interrupted().await;
            self.drop_void();
            self.start_waiting();
            if self.generator.has_unfinished() {
                self.step().await;
            } else {
                return Ok(mailbox.recv().await);
            }
        }
    }

    /// A graceful stop finishes what it has.
    async fn on_stop(&mut self, _: WeakActorRef<Self>, reason: ActorStopReason) -> Result<(), Self::Error> {
        self.drop_hypotheses(true);
        while matches!(reason, ActorStopReason::Normal)
            && (self.generator.has_unfinished() || !self.queue.is_empty())
        {
            self.give_up_late().await;
            self.start_waiting();
            self.step().await;
        }
        Ok(())
    }
}

impl Message<DecodeUtterance> for Decoder {
    type Reply = ();

    async fn handle(&mut self, message: DecodeUtterance, _: &mut Context<Self, Self::Reply>) {
        self.queue.push(message.context.queue_entry(), message);
        self.tell_queue();
    }
}

impl Message<ReadSoFar> for Decoder {
    type Reply = ();

    /// Publishes what the CTC head reads of an utterance in progress, where that is new. When it is time to
    /// confirm words and nothing is to be answered, the language model reads it too.
    async fn handle(&mut self, message: ReadSoFar, _: &mut Context<Self, Self::Reply>) {
        let ReadSoFar {
            features,
            adapter,
            so_far,
        } = message;
        if so_far.turn.is_answered() {
            return;
        }
        let confirmed = so_far.turn.confirmed(so_far.segment.number);
        match self.generator.read(&features, &adapter, &confirmed.ids) {
            Ok(text) => self.publish_reading(&so_far, adapter.version(), text.unwrap_or_default()),
            Err(error) => return warn!(%error, "cannot read an utterance in progress"),
        }
        let is_idle = self.queue.is_empty() && !self.generator.has_unfinished();
        if so_far.is_to_confirm && is_idle && self.generator.can_go_on() {
            let most = confirmed.ids.len() + HYPOTHESIS_TOKENS_MAX;
            let version = adapter.version().to_owned();
            let mut request = self.generate_request(&so_far.request, Input::Features { features, adapter });
            request.tokens_max = Some(request.tokens_max.map_or(most, |tokens| tokens.min(most)));
            let id = self.generator.go_on(request, confirmed);
            self.hypotheses.insert(id, (so_far, version));
        }
    }
}

impl Decoder {
    /// Publishes a reading of an utterance in progress, where it is new.
    fn publish_reading(&self, so_far: &SoFar, version: &str, text: String) {
        let (turn, segment, request) = (&so_far.turn, &so_far.segment, &so_far.request);
        let confirmed = turn.confirmed(segment.number);
        let Ok(confirmed) = self.generator.text(&confirmed) else {
            return;
        };
        let Some(read) = turn.read(segment.number, text, confirmed) else {
            return;
        };
        let answer = reading_of(request, version, read, segment.clone());
        PublishPartial::offer(answer, request, so_far.key.clone(), &self.args.partials);
    }

    /// Takes what the language model reads of an utterance in progress.
    fn agree(&self, so_far: &SoFar, version: &str, generation: &Generation, text: String) {
        let bytes = match self.generator.model().tokenizer().token_bytes() {
            Ok(bytes) => bytes,
            Err(error) => return warn!(%error, "no words can be confirmed"),
        };
        let begins_word = |id| bytes.begins_word(id);
        let segment = &so_far.segment;
        so_far
            .turn
            .agree(segment.number, segment.end_seconds, generation, begins_word);
        // One that is cut off need not be all that was read before.
        if generation.ended || text.len() > so_far.turn.published_bytes(segment.number) {
            self.publish_reading(so_far, version, text);
        }
    }

    /// Aborts readings that compete with an answer: all where `any`, else those of utterances that are being
    /// answered.
    fn drop_hypotheses(&mut self, any: bool) {
        let competes = |_: &RequestId, (so_far, _): &mut (SoFar, String)| any || so_far.turn.is_answered();
        for (id, _) in self.hypotheses.extract_if(competes) {
            self.generator.abort(id);
        }
    }

    /// Ends what need not be answered any more.
    fn drop_void(&mut self) {
        let is_void = |_: &RequestId, active: &mut Active| active.context.is_void();
        for (id, active) in self.active.extract_if(is_void) {
            self.generator.abort(id);
            active.context.withdraw();
        }
    }

    /// A request as the generator takes it.
    fn generate_request(&self, request: &Request, input: Input) -> GenerateRequest {
        GenerateRequest {
            input,
            instruction: request.instruction.clone(),
            grammar: request.grammar.clone(),
            tokens_max: request.max_tokens,
            spoken: request.spoken.clone(),
            joint: request.joint.clone(),
            task: task_of(
                request.task.as_deref(),
                &request.instruction,
                &self.args.default_instruction,
            )
            .map(str::to_owned),
        }
    }

    /// Gives free slots to those whose turn it is.
    fn start_waiting(&mut self) {
        self.drop_hypotheses(!self.queue.is_empty());
        while self.generator.free() > 0
            && let Some(message) = self.queue.pop(|_| true)
        {
            self.start(message);
            self.tell_queue();
        }
    }

    fn start(&mut self, message: DecodeUtterance) {
        let DecodeUtterance {
            features,
            adapter,
            mut context,
        } = message;
        context.dequeued();
        context.leave_place();
        if context.is_void() {
            context.withdraw();
            return;
        }
        let version = adapter.version().to_owned();
        let begun = context.so_far.as_ref().map(ReadSegment::confirmed);
        let begun = begun.unwrap_or_default();
        let passed = begun.ids.len() / self.args.config.partial_tokens;
        let request = self.generate_request(&context.request, Input::Features { features, adapter });
        let id = self.generator.go_on(request, begun.clone());
        let active = Active {
            phase: tracing::info_span!(parent: context.stage_span(), "prefill"),
            context,
            version,
            begun,
            started: Instant::now(),
            began: false,
            passed,
        };
        self.active.insert(id, active);
    }

    /// Ends what is late, whether it waits or is being generated.
    async fn give_up_late(&mut self) {
        let now = self.args.clock.now();
        let waiting = self.queue.take_late(now).into_iter().map(|message| {
            let mut context = message.context;
            context.dequeued();
            context
        });
        let mut late: Vec<RequestContext> = waiting.collect();
        let is_late = |_: &RequestId, active: &mut Active| {
            active.context.deadline.is_some_and(|deadline| deadline <= now)
        };
        for (id, active) in self.active.extract_if(is_late) {
            self.generator.abort(id);
            late.push(active.context);
        }
        if !late.is_empty() {
            self.tell_queue();
            metrics::decoder_slots(self.generator.slots_in_use());
        }
        for context in late {
            self.publish(PublishDeadLetter::late(context, now)).await;
        }
    }

    /// Ends the answers of sessions in which somebody speaks again, with what there is of them: before the
    /// prompt is read, the words that are confirmed.
    async fn end_interrupted(&mut self) {
        let is_interrupted = |_: &RequestId, active: &mut Active| active.context.interrupt.is_set();
        let ended: Vec<(RequestId, Active)> = self.active.extract_if(is_interrupted).collect();
        for (id, mut active) in ended {
            let begun = std::mem::take(&mut active.begun);
            let generation = self.generator.partial(id).unwrap_or(begun);
            self.generator.abort(id);
            let text = self.generator.text(&generation).unwrap_or_default();
            let text = text.trim_end_matches(char::REPLACEMENT_CHARACTER).to_owned();
            self.finish(active, generation, text).await;
        }
    }

    fn tell_queue(&self) {
        for priority in Priority::ALL {
            let seconds = self.queue.audio_seconds(*priority);
            metrics::queue_audio(Stage::Decode.as_str(), priority.as_str(), seconds);
        }
    }

    /// One step of the generator; its events become records.
    async fn step(&mut self) {
        let events = self.generator.step();
        let advanced = events.iter().filter(|event| matches!(event, Event::Token { .. }));
        match advanced.count() {
            0 => {} // a part of a prompt was read, or nothing succeeded
            answers => metrics::decoder_step(answers),
        }
        for event in events {
            match event {
                Event::Token { id, tokens } => {
                    self.begin(id);
                    self.tell_partial(id, tokens);
                }
                Event::Finished { id, generation, text } => {
                    if let Some(active) = self.active.remove(&id) {
                        self.finish(active, generation, text).await;
                    } else if let Some((so_far, version)) = self.hypotheses.remove(&id) {
                        self.agree(&so_far, &version, &generation, text);
                    }
                }
                Event::Failed { id, error } => {
                    if let Some(active) = self.active.remove(&id) {
                        self.reject(active.context, &error).await;
                    } else if self.hypotheses.remove(&id).is_some() {
                        warn!(%error, "the language model cannot read an utterance in progress");
                    }
                }
            }
        }
        metrics::decoder_slots(self.generator.slots_in_use());
    }

    /// Notes a request's first token.
    fn begin(&mut self, id: RequestId) {
        if let Some(active) = self.active.get_mut(&id).filter(|active| !active.began) {
            active.began = true;
            active.phase = tracing::info_span!(parent: active.context.stage_span(), "generate");
            active.context.times.prefill_ms = active.started.elapsed().as_secs_f64() * 1e3;
            metrics::first_token(active.context.admitted.elapsed());
        }
    }

    /// Publishes how far an answer is, if its request wants to know and so many tokens have been added. A
    /// text so far is always one of a multiple of these, so its sequence number names it, also when it is
    /// sent again after a crash. Of a stream that was read while it was spoken, the numbers name readings,
    /// and its answer is not published in parts.
    fn tell_partial(&mut self, id: RequestId, tokens: usize) {
        let every = self.args.config.partial_tokens;
        let passed = tokens / every;
        let Some(active) = (self.active.get_mut(&id)).filter(|active| {
            let context = &active.context;
            let is_told = context.request.partials && !context.is_part() && context.so_far.is_none();
            is_told && passed > active.passed
        }) else {
            return;
        };
        active.passed = passed;
        let Some(mut generation) = self.generator.partial(id) else {
            return;
        };
        generation.truncate(passed * every);
        let Ok(text) = self.generator.text(&generation) else {
            return;
        };
        // A character that is not complete yet.
        let text = text.trim_end_matches(char::REPLACEMENT_CHARACTER).to_owned();
        let context = &active.context;
        let request = &context.request;
        let number = (passed - 1) as u64;
        let whole = answer_of(
            context,
            active.version.clone(),
            &generation,
            text,
            &self.args.config,
        );
        let generated = active.started.elapsed().as_secs_f64() * 1e3 - context.times.prefill_ms;
        let answer = Answer {
            id: Answer::id_of(
                request.source.as_deref(),
                &request.id,
                AnswerKind::Partial,
                number,
            ),
            kind: AnswerKind::Partial,
            flags: Vec::new(),
            timing_ms: Timing {
                generate: generated.max(0.0),
                ..whole.timing_ms
            },
            ..whole
        };
        let key = context.record.key.clone();
        PublishPartial::offer(answer, &context.request, key, &self.args.partials);
    }

    /// Turns a complete answer into a result record; that to a window goes to whoever joins.
    async fn finish(&mut self, active: Active, mut generation: Generation, text: String) {
        let mut context = active.context;
        let worked = active.started.elapsed();
        context.times.generate_ms = (worked.as_secs_f64() * 1e3 - context.times.prefill_ms).max(0.0);
        drop(active.phase);
        context.queue_for(Stage::Publish);
        let Some(part) = context.take_window() else {
            generation.place_words(0.0, context.audio_seconds);
            return self.send(active.version, context, &generation, text).await;
        };
        let owner = Arc::clone(&part.owner);
        let done = WindowDone {
            context,
            part,
            version: active.version,
            generation,
            text,
        };
        if let Some(done) = owner.keep(done) {
            let (answers, partials) = (&self.args.publisher, &self.args.partials);
            publish_window(done, &self.args.config, answers, partials).await;
        }
    }

    async fn send(
        &mut self,
        version: String,
        context: RequestContext,
        generation: &Generation,
        text: String,
    ) {
        let answer = answer_of(&context, version, generation, text, &self.args.config);
        if let Err(error) = self.args.publisher.tell(PublishAnswer { answer, context }).await {
            error!(error = %error.to_string(), "publisher is gone, an answer goes back");
        }
    }

    async fn reject(&mut self, context: RequestContext, cause: &InferenceError) {
        let reason = match cause {
            InferenceError::Model(ModelError::TooManyPositions { .. }) => Reason::AudioTooLong,
            InferenceError::Model(ModelError::InstructionTooLong { .. }) => Reason::InstructionTooLong,
            InferenceError::Model(ModelError::Constraint { .. }) => match &context.request.grammar {
                Some(grammar) if grammar.structure().is_some() => Reason::InvalidStructure,
                _ => Reason::InvalidLabels,
            },
            _ => Reason::InternalError,
        };
        (context.span).in_scope(|| error!(error = %cause, "cannot answer an utterance"));
        self.publish(PublishDeadLetter::of(context, reason, cause.to_string()))
            .await;
    }

    async fn publish(&mut self, letter: Option<PublishDeadLetter>) {
        let Some(letter) = letter else { return };
        if let Err(error) = self.args.dead_letters.tell(letter).await {
            error!(error = %error.to_string(), "publisher is gone");
        }
    }
}
