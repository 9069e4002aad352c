//! `Decoder`: slots, turns, deadlines, pinned versions, failures, back-pressure; on a tiny language model
//! that fails when asked to.

mod failures;
mod flags;
mod interrupt;
mod so_far;
mod turns;

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use bytes::Bytes;
use kameo::prelude::*;
use speechverse::audio::Damage;
use speechverse::inference::config::DecoderConfig;
use speechverse::inference::speech_llm::SpeechLlm;
use speechverse::inference::{DecodeOptions, EngineConfig, Features, Generator};
use speechverse::models::config::LayerMix;
use speechverse::models::llms::llama::Llama;
use speechverse::models::{LanguageModel, ModelError};
use speechverse::testing::{HookedModel, LLM_WIDTH, Pass, PassPoint, TinyModels};
use speechverse::text::{PromptLayout, Tokenizer, end_of_answer_ids};
use speechverse::util::Clock;
use speechverse::wire::answer::{AnswerKind, Flag};
use speechverse::wire::dead_letter::{Reason, Stage};
use speechverse::wire::request::Priority;
use speechverse_actors::decoder::{Decoder, DecoderArgs};
use speechverse_actors::messages::{
    DecodeUtterance, OrphanQueue, OrphanedRecord, PublishAnswer, PublishDeadLetter, PublishPartial,
};
use tch::{Device, Kind, Tensor};

use crate::support::{
    adapter, busy_probe, context, fill, header, is_silent, next, probe, queued_as, record, start_in_thread,
    stop, took_all, until,
};

/// Width of the features in these tests.
const WIDTH: usize = 6;
/// Positions of a slot.
const POSITIONS: usize = 512;

/// Features of a clip with these `[T, D]`; the versions here have no summary to make of the statistics.
fn with_frames(frames: Tensor) -> Features {
    Features {
        frames,
        statistics: Tensor::zeros([1], (Kind::Float, Device::Cpu)),
    }
}

/// When the language model fails.
#[derive(Clone, Default)]
struct FailureSwitch(Arc<AtomicU8>);

impl FailureSwitch {
    const NEVER: u8 = 0;
    const PREFILL_FAILS: u8 = 1;
    const PREFILL_PANICS: u8 = 2;
    const STEP_FAILS: u8 = 3;
    const STEP_PANICS: u8 = 4;

    fn set(&self, failure: u8) {
        self.0.store(failure, Ordering::SeqCst);
    }

    fn is(&self, failure: u8) -> bool {
        self.0.load(Ordering::SeqCst) == failure
    }
}

fn failure() -> ModelError {
    ModelError::EmptyBatch // any error will do
}

/// Prompts of so many positions and more are at fault: what fails, fails for them alone.
const BAD_POSITIONS: i64 = 300;

/// A tiny Llama that fails when asked to.
fn failing_model(llm: Llama, switch: FailureSwitch) -> impl LanguageModel {
    let hook = move |pass: &Pass<'_>| {
        let (fails, panics) = match pass.point {
            PassPoint::BeforePrefill => (FailureSwitch::PREFILL_FAILS, FailureSwitch::PREFILL_PANICS),
            PassPoint::BeforeStep => (FailureSwitch::STEP_FAILS, FailureSwitch::STEP_PANICS),
            PassPoint::AfterPrefill
            | PassPoint::AfterStep
            | PassPoint::BeforeChunk
            | PassPoint::AfterChunk => return Ok(()),
        };
        if pass.lengths.iter().any(|length| *length >= BAD_POSITIONS) {
            if switch.is(fails) {
                return Err(failure());
            }
            assert!(!switch.is(panics), "on purpose");
        }
        Ok(())
    };
    HookedModel { llm, hook }
}

struct Harness {
    decoder: ActorRef<Decoder>,
    answers: flume::Receiver<PublishAnswer>,
    letters: flume::Receiver<PublishDeadLetter>,
    partials: flume::Receiver<PublishPartial>,
    failure: FailureSwitch,
    orphans: OrphanQueue,
    found: flume::Receiver<OrphanedRecord>,
    clock: Clock,
    _models: tempfile::TempDir,
}

impl Harness {
    async fn new(slots: usize) -> Self {
        let next_stage = probe();
        Self::before(next_stage, slots, 8).await
    }

    async fn before(
        next_stage: (Recipient<PublishAnswer>, flume::Receiver<PublishAnswer>),
        slots: usize,
        mailbox: usize,
    ) -> Self {
        Self::in_parts(next_stage, slots, mailbox, 0).await
    }

    /// One that reads prompts in parts of so many positions.
    async fn in_parts(
        (publisher, answers): (Recipient<PublishAnswer>, flume::Receiver<PublishAnswer>),
        slots: usize,
        mailbox: usize,
        prefill_positions_max: usize,
    ) -> Self {
        let models = tempfile::tempdir().unwrap();
        let folder = TinyModels::write(models.path(), 7).llm;
        let (dead_letters, letters) = probe();
        let (tell_partials, partials) = probe();
        let failure = FailureSwitch::default();
        let config = DecoderConfig {
            slots,
            positions_max: POSITIONS,
            tokens_max: 64,
            ..DecoderConfig::default()
        };
        let engine = EngineConfig {
            slots,
            positions_max: POSITIONS,
            answer_positions: 64,
            batch_windows_max: 1,
            options: DecodeOptions::greedy(64),
            by_window: None,
            prefill_positions_max,
            draft_tokens_max: 0,
            preallocate: true,
        };
        let switch = failure.clone();
        let clock = Clock::manual();
        let args = DecoderArgs {
            config,
            queue_max: mailbox,
            bulk_share: 0.0,
            clock: clock.clone(),
            default_instruction: "Transcribe the speech.".into(),
            build: Arc::new(move || {
                let llm = Llama::open(&folder, Device::Cpu, Kind::Float)?;
                let llm = failing_model(llm, switch.clone());
                let tokenizer = Tokenizer::open(&folder)?;
                let layout = PromptLayout::open(&folder, &tokenizer, None)?;
                let ends = end_of_answer_ids(&folder)?;
                let model = SpeechLlm::new(Box::new(llm), tokenizer, layout, ends)?;
                Ok(Generator::new(model, &engine))
            }),
            publisher,
            partials: tell_partials,
            dead_letters,
        };
        let (orphans, found) = OrphanQueue::new();
        Self {
            decoder: start_in_thread(args, mailbox).await,
            answers,
            letters,
            partials,
            failure,
            orphans,
            found,
            clock,
            _models: models,
        }
    }

    /// Utterance `number`, pinned to `version`; its features depend on `sound`.
    fn utterance(&self, number: usize, version: &str, sound: f64) -> DecodeUtterance {
        self.asked(number, version, sound, Vec::new())
    }

    fn asked(
        &self,
        number: usize,
        version: &str,
        sound: f64,
        headers: Vec<(String, Option<Bytes>)>,
    ) -> DecodeUtterance {
        let frames = Tensor::arange(20, (Kind::Float, Device::Cpu)).unsqueeze(1);
        let channels = Tensor::arange(WIDTH as i64, (Kind::Float, Device::Cpu)).unsqueeze(0) + 1.0;
        let mut record = record(number);
        record.headers.extend(headers);
        let mut context = context(record, &self.orphans);
        context.queue_for(Stage::Decode);
        DecodeUtterance {
            features: with_frames((frames * channels * sound).sin()),
            adapter: adapter(version, LayerMix::Paper, WIDTH, LLM_WIDTH),
            context,
        }
    }

    /// An utterance whose answer is about a hundred tokens: every allowed one is that long.
    fn long(&self, number: usize) -> DecodeUtterance {
        let labels = serde_json::json!(["x".repeat(100), "y".repeat(100)]).to_string();
        let headers = vec![header("ce_labels", labels), header("ce_maxtokens", "200")];
        self.asked(number, "one", 0.3, headers)
    }

    async fn tell(&self, utterance: DecodeUtterance) {
        self.decoder.tell(utterance).await.unwrap();
    }

    /// The next answer: number, version, text.
    async fn answer(&self) -> (i64, String, String) {
        let PublishAnswer { answer, context } = next(&self.answers).await;
        (
            context.complete().record.record_offset.offset,
            answer.adapter,
            answer.text,
        )
    }

    /// That the decoder still answers.
    async fn is_well(&self) {
        self.failure.set(FailureSwitch::NEVER);
        self.tell(self.utterance(99, "one", 0.3)).await;
        assert_eq!(self.answer().await.0, 99);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_is_computed_and_named_by_the_version_that_its_utterance_is_pinned_to() {
    let harness = Harness::new(4).await;
    let mut alone = Vec::new();
    for version in ["one", "two"] {
        harness.tell(harness.utterance(0, version, 0.3)).await;
        alone.push(harness.answer().await.2);
    }
    assert_ne!(
        alone[0], alone[1],
        "the two versions must answer differently for this test to tell"
    );

    // Pinned before, after, and again before a swap; all four under way at once.
    for (number, version) in ["one", "two", "one", "two"].into_iter().enumerate() {
        harness.tell(harness.utterance(number, version, 0.3)).await;
    }
    let mut answers = Vec::new();
    for _ in 0..4 {
        answers.push(harness.answer().await);
    }

    answers.sort();
    for (number, (found, version, text)) in answers.into_iter().enumerate() {
        let which = number % 2;
        assert_eq!(found, number as i64);
        assert_eq!(version, ["one", "two"][which]);
        assert_eq!(text, alone[which]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_to_one_id_from_two_sources_have_ids_of_their_own_and_name_the_source() {
    let harness = Harness::new(2).await;
    let ask = |source: Option<&'static str>| {
        let source = source.map(|source| header("ce_source", source));
        harness.asked(0, "one", 0.3, source.into_iter().collect())
    };

    let mut ids = Vec::new();
    for source in [None, Some("/phone"), Some("/desk"), Some("/phone")] {
        harness.tell(ask(source)).await;
        let PublishAnswer { answer, context } = next(&harness.answers).await;
        context.complete();
        assert_eq!(
            (answer.request_id.as_str(), answer.request_source.as_deref()),
            ("request-0", source)
        );
        ids.push(answer.id);
    }

    assert_eq!(ids[0], "request-0:final");
    assert_eq!(ids[1], ids[3], "a repeat is recognisable");
    let different: std::collections::HashSet<&String> = ids.iter().collect();
    assert_eq!(different.len(), 3, "{ids:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn more_versions_than_are_kept_ready_are_all_answered_as_if_alone() {
    let harness = Harness::new(2).await;
    let versions: Vec<String> = (0..6).map(|number| format!("version-{number}")).collect();

    let mut rounds = Vec::new();
    for _ in 0..2 {
        let mut texts = Vec::new();
        for (number, version) in versions.iter().enumerate() {
            harness.tell(harness.utterance(number, version, 0.3)).await;
            let (_, named, text) = harness.answer().await;
            assert_eq!(named, *version);
            texts.push(text);
        }
        rounds.push(texts);
    }

    assert_eq!(rounds[0], rounds[1]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_short_answer_joins_while_a_long_one_is_under_way_and_is_there_first() {
    let harness = Harness::new(2).await;

    harness.tell(harness.long(0)).await;
    until("the long one is under way", || took_all(&harness.decoder)).await;
    harness
        .tell(harness.asked(1, "one", 0.3, vec![header("ce_maxtokens", "1")]))
        .await;

    let first = next(&harness.answers).await;
    assert_eq!(first.answer.request_id, "request-1");
    assert_eq!(
        first.answer.flags.contains(&Flag::Truncated),
        first.answer.tokens == 1
    );
    let second = next(&harness.answers).await;
    assert_eq!(second.answer.request_id, "request-0");
    assert_eq!(second.answer.text.len(), 100);
    assert_eq!(second.answer.label, Some(second.answer.text.clone()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_the_publisher_is_busy_the_decoder_holds_its_sender_back_and_loses_nothing() {
    let harness = Harness::before(busy_probe(), 2, 1).await;

    let (taken, refused) = fill(&harness.decoder, |number| harness.utterance(number, "one", 0.3)).await;

    // The publisher has one in hand and one in its mailbox. The decoder waits with a third, at most one more
    // is in its other slot or about to join, one waits for a slot, and one is in its mailbox.
    assert!((4..=7).contains(&taken), "{taken}");
    refused.context.complete();
    let mut answered = Vec::new();
    for _ in 0..taken {
        answered.push(harness.answer().await.0);
    }
    answered.sort_unstable();
    assert_eq!(answered, (0..taken as i64).collect::<Vec<_>>());
    assert!(is_silent(&harness.found).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_graceful_stop_finishes_the_answers_that_have_begun() {
    let harness = Harness::new(2).await;
    harness.tell(harness.long(0)).await;
    until("it has begun", || took_all(&harness.decoder)).await;

    stop(&harness.decoder).await;

    assert_eq!(harness.answer().await.0, 0);
    assert!(harness.found.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_wants_partial_answers_gets_the_text_so_far_by_number_and_then_the_answer() {
    let harness = Harness::new(2).await;
    let mut wanted = harness.long(0);
    wanted.context.request.partials = true;
    let mut again = harness.long(1);
    again.context.request.partials = true;

    harness.tell(wanted).await;
    harness.tell(harness.long(2)).await;
    let answers = [harness.answer().await, harness.answer().await];
    let partials: Vec<PublishPartial> = harness.partials.drain().collect();
    harness.tell(again).await;
    harness.answer().await;
    let repeated: Vec<PublishPartial> = harness.partials.drain().collect();

    let whole = &answers.iter().find(|(number, ..)| *number == 0).unwrap().2;
    assert!(partials.len() >= 5, "{}", partials.len());
    let mut before = 0;
    for (number, (partial, repeat)) in partials.iter().zip(&repeated).enumerate() {
        let answer = &partial.answer;
        assert_eq!(answer.kind, AnswerKind::Partial);
        assert_eq!(answer.id, format!("request-0:partial:{number}"));
        assert_eq!(answer.tokens, 8 * (number + 1));
        assert!(whole.starts_with(&answer.text) && answer.text.len() > before);
        assert!((answer.label.is_none(), answer.flags.is_empty()) == (true, true));
        assert_eq!(partial.key, record(0).key);
        assert_eq!(repeat.answer.id, format!("request-1:partial:{number}"));
        assert_eq!(repeat.answer.text, answer.text);
        before = answer.text.len();
    }
    assert_eq!(partials.len(), repeated.len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sound_without_speech_is_answered_and_flagged() {
    let harness = Harness::new(2).await;
    let mut quiet = harness.utterance(0, "one", 0.3);
    quiet.context.no_speech = true;
    quiet.context.damage = Damage {
        undecoded_seconds: 0.25,
        cut_short: true,
        repaired: true,
        notes: Vec::new(),
    };

    harness.tell(quiet).await;
    let flagged = next(&harness.answers).await;
    harness.tell(harness.utterance(1, "one", 0.3)).await;
    let plain = next(&harness.answers).await;

    for flag in [Flag::NoSpeech, Flag::Truncated, Flag::AudioRepaired] {
        assert!(flagged.answer.flags.contains(&flag), "{flag:?}");
    }
    assert_eq!(flagged.answer.audio_unheard_seconds, 0.25);
    assert!(!plain.answer.flags.contains(&Flag::NoSpeech));
    assert_eq!(plain.answer.audio_unheard_seconds, 0.0);
    assert_eq!(flagged.answer.text, plain.answer.text);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_asks_for_more_tokens_than_a_slot_has_room_for_gets_as_many_as_fit() {
    let harness = Harness::new(2).await;

    harness
        .tell(harness.asked(0, "one", 0.3, vec![header("ce_maxtokens", "1000")]))
        .await;
    let answer = next(&harness.answers).await.answer;

    assert!((1..POSITIONS).contains(&answer.tokens));
    assert!(harness.letters.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_list_without_an_answer_of_so_few_tokens_is_a_dead_letter_that_names_the_shortest() {
    let harness = Harness::new(2).await;
    let headers = vec![
        header("ce_labels", r#"["affirmative","negative"]"#),
        header("ce_maxtokens", "2"),
    ];

    harness.tell(harness.asked(0, "one", 0.3, headers)).await;
    let letter = next(&harness.letters).await;

    assert_eq!(letter.rejection.reason, Reason::InvalidLabels);
    let message = &letter.rejection.message;
    assert!(message.contains("`negative`, takes "), "{message}");
}
