//! `Encoder`: batches, turns, deadlines, failures, back-pressure.

mod readings;

use std::sync::Arc;
use std::time::{Duration, Instant};

use kameo::prelude::*;
use speechverse::inference::FeatureExtractor;
use speechverse::inference::config::EncoderConfig;
use speechverse::kafka::{Budget, OffsetTracker};
use speechverse::models::config::LayerMix;
use speechverse::models::{Encoded, EncoderInfo, HiddenStates, ModelError, SpeechEncoder};
use speechverse::util::Clock;
use speechverse::wire::dead_letter::{Reason, Stage};
use speechverse::wire::request::Priority;
use speechverse_actors::encoder::{Encoder, EncoderArgs};
use speechverse_actors::messages::{
    DecodeUtterance, DecoderPlaces, EncodeUtterance, OrphanQueue, OrphanedRecord, PublishDeadLetter,
};
use tch::{Kind, Tensor};

use crate::support::{
    adapter, busy_probe, context, fill, is_silent, next, probe, queued_as, record, start_in_thread, stop,
    took_all, until,
};

/// Samples a frame.
const HOP: usize = 10;
/// Longest clip that the network takes.
const SAMPLES_MAX: usize = 100;
/// A clip that begins with this is an error.
const FAILS: f32 = -1.0;
/// A clip that begins with this is a panic.
const PANICS: f32 = -2.0;
/// Encoding a clip that begins with this lasts for as long as its features are wanted.
const LASTS: f32 = -3.0;

/// A network of two layers and width two: each frame holds its clip's first sample, and what the mix weights
/// are.
struct Network {
    calls: flume::Sender<Vec<usize>>,
}

impl SpeechEncoder for Network {
    fn info(&self) -> EncoderInfo {
        EncoderInfo {
            layers: 2,
            width: 2,
            frames_per_second: 1600.0,
            max_samples: Some(SAMPLES_MAX),
        }
    }

    fn frames(&self, samples: usize) -> i64 {
        samples.div_ceil(HOP) as i64
    }

    fn hidden_states(&self, _: &[&[f32]]) -> Result<HiddenStates, ModelError> {
        unreachable!("the actor asks for the mixture only")
    }

    fn encode_while(
        &self,
        clips: &[&[f32]],
        mix: &Tensor,
        wanted: &dyn Fn() -> bool,
    ) -> Result<Encoded, ModelError> {
        self.calls
            .send(clips.iter().map(|clip| clip.len()).collect())
            .unwrap();
        if let Some(index) = clips.iter().position(|clip| clip[0] == FAILS) {
            return Err(ModelError::EmptyClip { index });
        }
        assert!(clips.iter().all(|clip| clip[0] != PANICS), "on purpose");
        if clips.iter().any(|clip| clip[0] == LASTS) {
            while wanted() {
                std::thread::sleep(Duration::from_millis(1));
            }
            return Err(ModelError::GivenUp);
        }
        let lengths: Vec<i64> = clips.iter().map(|clip| self.frames(clip.len())).collect();
        let longest = lengths.iter().copied().max().unwrap_or(0);
        let features = Tensor::zeros([clips.len() as i64, longest, 2], (Kind::Float, tch::Device::Cpu));
        let places = Tensor::from_slice(&[1.0f32, 10.0, 100.0]);
        for (row, clip) in clips.iter().enumerate() {
            let mixed = (mix.get(row as i64) * &places).sum(Kind::Float).double_value(&[]);
            let mut valid = features.get(row as i64).narrow(0, 0, lengths[row]);
            valid.copy_(&Tensor::from_slice(&[clip[0], mixed as f32]).expand([lengths[row], 2], false));
        }
        Ok(Encoded {
            features,
            lengths,
            statistics: Tensor::zeros([clips.len() as i64, 3, 4], (Kind::Float, tch::Device::Cpu)),
        })
    }
}

struct Harness {
    encoder: ActorRef<Encoder>,
    features: flume::Receiver<DecodeUtterance>,
    letters: flume::Receiver<PublishDeadLetter>,
    /// Lengths of the clips of each pass.
    calls: flume::Receiver<Vec<usize>>,
    orphans: OrphanQueue,
    found: flume::Receiver<OrphanedRecord>,
    clock: Clock,
}

/// More than any test needs.
const MANY: usize = 64;

impl Harness {
    async fn new(batch_windows_max: usize, batch_wait_ms_max: u64) -> Self {
        let clock = Clock::system();
        Self::before(probe(), batch_windows_max, batch_wait_ms_max, MANY, MANY, clock).await
    }

    /// As [`new`](Self::new): one utterance a pass, so many places before the generator, and a clock that the
    /// test moves.
    async fn with_places(places: usize) -> Self {
        Self::before(probe(), 1, FOREVER_MS, MANY, places, Clock::manual()).await
    }

    async fn before(
        (decoder, features): (Recipient<DecodeUtterance>, flume::Receiver<DecodeUtterance>),
        batch_windows_max: usize,
        batch_wait_ms_max: u64,
        queue_max: usize,
        places: usize,
        clock: Clock,
    ) -> Self {
        let mailbox = queue_max.min(8);
        let (publisher, letters) = probe();
        let (called, calls) = flume::unbounded();
        let args = EncoderArgs {
            config: EncoderConfig {
                batch_windows_max,
                batch_wait_ms_max,
                cache_bytes_max: 0,
            },
            queue_max,
            bulk_share: 0.0,
            places: DecoderPlaces::new(places),
            clock: clock.clone(),
            build: Arc::new(move || {
                let network = Network {
                    calls: called.clone(),
                };
                Ok(FeatureExtractor::new(Box::new(network), batch_windows_max))
            }),
            decoder,
            reader: probe().0,
            publisher,
        };
        let (orphans, found) = OrphanQueue::new();
        Self {
            encoder: start_in_thread(args, mailbox).await,
            features,
            letters,
            calls,
            orphans,
            found,
            clock,
        }
    }

    fn utterance(&self, number: usize, samples: Vec<f32>) -> EncodeUtterance {
        let mut context = context(record(number), &self.orphans);
        context.queue_for(Stage::Encode);
        EncodeUtterance {
            samples,
            adapter: adapter("one", LayerMix::Last, 2, 4),
            context,
        }
    }

    /// Sends utterance `number`: `samples` times `value`.
    async fn tell(&self, number: usize, value: f32, samples: usize) {
        let utterance = self.utterance(number, vec![value; samples]);
        self.encoder.tell(utterance).await.unwrap();
    }

    /// The next utterance that comes out: its number, and the first column of its features.
    async fn result(&self) -> (i64, Vec<f32>) {
        let message = next(&self.features).await;
        let column = message.features.frames.select(1, 0).contiguous();
        let number = message.context.complete().record.record_offset.offset;
        (number, Vec::try_from(column).unwrap())
    }
}

/// Longer than any test is patient: whatever comes out did not wait for it.
const FOREVER_MS: u64 = 600_000;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_batch_goes_at_once_in_one_pass() {
    let harness = Harness::new(3, FOREVER_MS).await;

    for number in 0..3 {
        harness.tell(number, number as f32, 40).await;
    }

    for number in 0..3 {
        assert_eq!(harness.result().await, (number, vec![number as f32; 4]));
    }
    assert_eq!(next(&harness.calls).await, [40, 40, 40]);
    assert!(harness.calls.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_utterance_whose_partition_was_taken_away_is_not_encoded() {
    let harness = Harness::new(1, FOREVER_MS).await;
    let mut taken = harness.utterance(0, vec![0.5; 40]);
    let without_partitions = OffsetTracker::new(Budget::new(1));
    taken.context.is_tracked(without_partitions);

    harness.encoder.tell(taken).await.unwrap();
    harness.tell(1, 0.25, 40).await;

    assert_eq!(harness.result().await, (1, vec![0.25; 4]));
    assert!(harness.letters.is_empty() && harness.found.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_utterance_without_company_goes_when_it_has_waited_long_enough_and_not_before() {
    let harness = Harness::new(8, 200).await;
    let sent = Instant::now();

    harness.tell(0, 0.5, 40).await;
    harness.result().await;

    assert!(
        sent.elapsed() >= Duration::from_millis(200),
        "{:?}",
        sent.elapsed()
    );
    assert_eq!(next(&harness.calls).await, [40]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_timer_of_a_batch_that_has_left_does_not_flush_the_next_one() {
    const WAIT: Duration = Duration::from_millis(600);
    let harness = Harness::new(2, WAIT.as_millis() as u64).await;
    harness.tell(0, 0.5, 40).await;
    harness.tell(1, 0.5, 40).await; // the batch is full and leaves; its timer runs on
    harness.result().await;
    harness.result().await;
    tokio::time::sleep(WAIT / 2).await;
    let sent = Instant::now();

    harness.tell(2, 0.5, 40).await;
    harness.result().await;

    assert!(sent.elapsed() >= WAIT, "{:?}", sent.elapsed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_never_has_more_windows_than_configured_also_of_one_long_clip() {
    let harness = Harness::new(2, FOREVER_MS).await;

    harness.tell(0, 0.5, 5 * SAMPLES_MAX).await;

    assert_eq!(harness.result().await.1.len(), 5 * SAMPLES_MAX / HOP);
    let passes: Vec<usize> = harness.calls.drain().map(|pass| pass.len()).collect();
    assert_eq!(passes, [2, 2, 1]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clips_of_like_length_share_a_pass_and_a_long_clip_comes_back_whole() {
    let harness = Harness::new(4, FOREVER_MS).await;
    let long: Vec<f32> = (0..250).map(|index| (index / 10) as f32).collect(); // three windows

    harness.tell(0, 0.25, 90).await;
    harness.tell(1, 0.5, 30).await;
    harness.encoder.tell(harness.utterance(2, long)).await.unwrap();

    // Windows of 83, 83 and 84 samples begin with samples 0, 83 and 166; nine frames each.
    let joined = [0.0, 8.0, 16.0].map(|first| vec![first; 9]).concat();
    assert_eq!(harness.result().await, (1, vec![0.5; 3]));
    assert_eq!(harness.result().await, (0, vec![0.25; 9]));
    assert_eq!(harness.result().await, (2, joined));
    assert_eq!(next(&harness.calls).await, [30, 90]);
    assert_eq!(next(&harness.calls).await, [83, 83, 84]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_utterance_of_a_batch_is_mixed_with_the_weights_of_its_own_version() {
    let harness = Harness::new(2, FOREVER_MS).await;

    for (number, mix) in [LayerMix::Last, LayerMix::Softmax].into_iter().enumerate() {
        let utterance = EncodeUtterance {
            adapter: adapter(&format!("version-{number}"), mix, 2, 4),
            ..harness.utterance(number, vec![0.5; 20])
        };
        harness.encoder.tell(utterance).await.unwrap();
    }
    let mut mixed = Vec::new();
    for _ in 0..2 {
        let message = next(&harness.features).await;
        mixed.push((
            message.adapter.version().to_owned(),
            message.features.frames.double_value(&[0, 1]),
        ));
        message.context.complete();
    }

    assert_eq!(next(&harness.calls).await.len(), 2, "one pass for both");
    assert_eq!(mixed[0], ("version-0".to_owned(), 100.0)); // the last state alone
    assert_eq!(mixed[1].0, "version-1");
    assert!(
        (mixed[1].1 - 37.0).abs() < 1e-3,
        "a third of each state: {mixed:?}"
    );
}

/// One of three makes the network fail; the others are answered, it becomes a dead letter, and the actor
/// lives.
async fn one_bad_utterance_of_three(bad: f32) {
    let harness = Harness::new(3, FOREVER_MS).await;

    harness.tell(0, 0.5, 40).await;
    harness.tell(1, bad, 40).await;
    harness.tell(2, 0.25, 40).await;
    let letter = next(&harness.letters).await;
    let others = [harness.result().await.0, harness.result().await.0];

    assert_eq!(others, [0, 2]);
    assert_eq!(letter.record.record_offset, record(1).record_offset);
    assert_eq!(letter.rejection.reason, Reason::InternalError);
    assert_eq!(letter.rejection.stage, Stage::Encode);
    assert_eq!(letter.audio_seconds, 1.0);
    let passes: Vec<_> = harness.calls.drain().map(|pass| pass.len()).collect();
    assert_eq!(passes, [3, 1, 1, 1], "all together, then one by one");
    for number in 3..6 {
        harness.tell(number, 0.5, 40).await;
    }
    assert_eq!(harness.result().await.0, 3);
    assert!(
        is_silent(&harness.found).await,
        "a dead letter is an outcome: the context is settled"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_utterance_that_fails_becomes_a_dead_letter_and_its_batch_is_encoded() {
    one_bad_utterance_of_three(FAILS).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_utterance_that_makes_the_network_panic_becomes_a_dead_letter_and_its_batch_is_encoded() {
    one_bad_utterance_of_three(PANICS).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_the_decoder_is_busy_the_encoder_holds_its_sender_back_and_loses_nothing() {
    let harness = Harness::before(busy_probe(), 1, FOREVER_MS, 1, MANY, Clock::system()).await;

    let (taken, refused) = fill(&harness.encoder, |number| {
        harness.utterance(number, vec![0.5; 40])
    })
    .await;

    // The decoder holds one and has one in its mailbox, the encoder holds one, and one is in its mailbox.
    assert_eq!(taken, 4);
    assert_eq!(harness.calls.len(), 3);
    refused.context.complete();
    for number in 0..taken as i64 {
        assert_eq!(harness.result().await.0, number);
    }
    assert!(is_silent(&harness.found).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_an_encoder_held_when_it_died_is_handed_back_and_its_successor_goes_on() {
    let harness = Harness::new(2, FOREVER_MS).await;
    harness.tell(0, 0.5, 40).await;
    until("the encoder holds it", || took_all(&harness.encoder)).await;

    harness.encoder.kill();
    let back = next(&harness.found).await;
    harness.tell(1, 0.5, 40).await;
    harness.tell(2, 0.5, 40).await;

    assert_eq!(back.record.record_offset, record(0).record_offset);
    assert_eq!(back.stage, Stage::Encode);
    assert_eq!([harness.result().await.0, harness.result().await.0], [1, 2]);
    assert_eq!(next(&harness.calls).await, [40, 40]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_graceful_stop_encodes_what_is_in_the_mailbox() {
    let harness = Harness::new(1, FOREVER_MS).await;
    for number in 0..4 {
        harness.tell(number, 0.5, 40).await;
    }

    stop(&harness.encoder).await;

    for number in 0..4 {
        assert_eq!(harness.result().await.0, number);
    }
}

/// Sends utterance `number` under a key, with a deadline so many seconds from now.
async fn tell_as(
    harness: &Harness,
    number: usize,
    key: &'static str,
    priority: Priority,
    deadline: Option<u64>,
) {
    let mut utterance = harness.utterance(number, vec![0.5; 40]);
    utterance.context = queued_as(utterance.context, key, priority, &harness.orphans);
    utterance.context.deadline = deadline.map(|seconds| harness.clock.now() + Duration::from_secs(seconds));
    harness.encoder.tell(utterance).await.unwrap();
}

/// What comes out next, without its place before the generator: the test gives that back.
async fn taken(harness: &Harness) -> (i64, DecodeUtterance) {
    let message = next(&harness.features).await;
    (message.context.record.record_offset.offset, message)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_take_turns_interactive_goes_first_and_nothing_is_encoded_without_a_place() {
    use Priority::{Bulk, Interactive};
    let harness = Harness::with_places(1).await;
    tell_as(&harness, 0, "chatty", Interactive, None).await;
    let (first, held) = taken(&harness).await; // the place is taken, so what follows waits
    tell_as(&harness, 1, "bulk", Bulk, None).await;
    let (bulk, bulk_held) = taken(&harness).await; // bulk has a place of its own
    for number in 2..5 {
        tell_as(&harness, number, "chatty", Interactive, None).await;
    }
    tell_as(&harness, 5, "bulk", Bulk, None).await;
    tell_as(&harness, 6, "other", Interactive, None).await;
    until("the encoder has taken all", || took_all(&harness.encoder)).await;
    assert!(is_silent(&harness.features).await, "no place is free");
    assert_eq!(harness.calls.drain().count(), 2);
    assert_eq!((first, bulk), (0, 1));

    let mut order = Vec::new();
    let mut held = held;
    for _ in 0..4 {
        held.context.complete(); // its place is free
        let (number, message) = taken(&harness).await;
        order.push(number);
        held = message;
    }
    held.context.complete();
    bulk_held.context.complete();
    order.push(taken(&harness).await.0);

    assert_eq!(order, [2, 6, 3, 4, 5]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_late_when_its_turn_comes_becomes_a_dead_letter_and_is_not_encoded() {
    let harness = Harness::with_places(1).await;
    tell_as(&harness, 0, "a", Priority::Interactive, None).await;
    let (_, held) = taken(&harness).await;
    tell_as(&harness, 1, "a", Priority::Interactive, Some(5)).await;
    tell_as(&harness, 2, "a", Priority::Interactive, Some(60)).await;
    until("the encoder has taken all", || took_all(&harness.encoder)).await;
    assert!(harness.letters.is_empty());

    harness.clock.advance(Duration::from_secs(5));
    let letter = next(&harness.letters).await;

    assert_eq!(letter.record.record_offset, record(1).record_offset);
    assert_eq!(letter.rejection.reason, Reason::DeadlineExceeded);
    assert_eq!(letter.rejection.stage, Stage::Encode);
    held.context.complete();
    let (number, last) = taken(&harness).await;
    last.context.complete();
    assert_eq!(number, 2);
    assert_eq!(harness.calls.drain().count(), 2);
    assert!(is_silent(&harness.found).await);
}
