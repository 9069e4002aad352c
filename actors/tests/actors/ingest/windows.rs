//! Long sound: cut into windows, sent a few at a time, answered as one.

use speechverse::inference::Generation;
use speechverse::wire::answer::{Answer, Flag};
use speechverse_actors::messages::{Joined, StageTimes, WindowAnswer, WindowDone, WindowPart};

use super::*;

/// Windows of at most 2 s of what is loud, two of them in flight; nothing longer than 4 s is kept.
pub(super) async fn harness() -> Harness {
    let speech = SpeechConfig {
        window_seconds_max: 2.0,
        window_overlap_seconds: 0.5,
        windows_in_flight_max: 2,
        utterance_pause_ms: 400,
        ..by_level()
    };
    let audio = AudioConfig {
        whole_seconds_max: 4.0,
        ..AudioConfig::default()
    };
    Harness::with(probe(), probe(), audio, speech).await
}

/// Alternating sound and silence of so many seconds each, as `audio/L16`.
pub(super) fn sound(seconds: &[(f64, bool)]) -> Bytes {
    let samples = seconds.iter().flat_map(|(seconds, loud)| {
        let level = if *loud { 9_000.0 } else { 1.0 };
        (0..(seconds * 16_000.0) as usize).map(move |at| ((at as f64 * 0.3).sin() * level) as i16)
    });
    samples.flat_map(i16::to_be_bytes).collect::<Vec<u8>>().into()
}

/// A window's part and what would be sent to the encoder for it.
struct Window {
    part: WindowPart,
    samples: usize,
}

async fn window(harness: &Harness) -> Window {
    let mut order = harness.utterance().await;
    let part = order.context.take_window().expect("a window");
    order.context.complete();
    Window {
        part,
        samples: order.samples.len(),
    }
}

fn answer(window: Window, text: &str) -> Option<Joined> {
    let WindowPart { owner, number, .. } = window.part;
    owner.answered(
        number,
        WindowAnswer {
            generation: Generation {
                ids: vec![number as i64],
                ended: true,
                ..Generation::default()
            },
            text: text.to_owned(),
            times: StageTimes::default(),
        },
    )
}

/// The answer that is published when the last window was answered before the end was known.
async fn published(harness: &Harness) -> Answer {
    let published = next(&harness.answered).await;
    published.context.complete();
    published.answer
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_recording_that_is_not_kept_is_cut_into_windows_of_which_a_few_are_in_flight() {
    let harness = harness().await;
    let value = sound(&[(1.0, false), (1.5, true), (0.6, false), (3.0, true), (1.0, false)]);
    harness.request(0, value, Vec::new()).await;
    harness.forward().await;

    let mut windows = vec![window(&harness).await, window(&harness).await];
    assert!(is_silent(&harness.utterances).await, "two are in flight");
    let audio = harness.requests.tracker.budget().audio().clone();
    let mut texts = ["one", "two", "two three", "three four"].into_iter();
    let (mut joined, mut lengths) = (None, Vec::new());
    while joined.is_none() && !windows.is_empty() {
        let first = windows.remove(0);
        lengths.push(first.samples);
        joined = answer(first, texts.next().unwrap());
        if lengths.len() < 3 {
            windows.push(window(&harness).await);
        }
    }

    assert!(lengths.iter().all(|samples| *samples <= 32_000), "{lengths:?}");
    let (text, flags) = match joined {
        Some(joined) => {
            let (text, quiet) = (joined.text, joined.context.no_speech);
            assert_eq!(joined.context.audio_seconds, 7.1);
            joined.context.complete();
            (text, quiet)
        }
        None => {
            let answer = published(&harness).await;
            assert_eq!(answer.audio_seconds, 7.1);
            (answer.text, answer.flags.contains(&Flag::NoSpeech))
        }
    };
    assert!(text.starts_with("one two"), "{text}");
    assert!(!flags);
    until("nothing is in flight", || audio.seconds() == 0.0).await;
    assert!(harness.letters.is_empty() && harness.found.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_long_recording_without_speech_is_answered_with_nothing() {
    let harness = harness().await;
    harness.request(0, sound(&[(6.0, false)]), Vec::new()).await;
    harness.request(1, sound(&[(3.0, false)]), Vec::new()).await;

    for seconds in [6.0, 3.0] {
        harness.forward().await;
        let answer = published(&harness).await;

        assert_eq!((answer.text.as_str(), answer.audio_seconds), ("", seconds));
        assert_eq!(answer.flags, [Flag::Empty, Flag::NoSpeech]);
    }
    assert!(harness.utterances.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_window_that_is_lost_makes_one_dead_letter_of_its_recording_and_the_others_are_void() {
    let harness = harness().await;
    harness.request(0, sound(&[(9.0, true)]), Vec::new()).await;
    harness.forward().await;
    let (first, second) = (harness.utterance().await, harness.utterance().await);

    drop(first); // its stage has failed
    let back = next(&harness.found).await;

    assert_eq!(back.record.record_offset.offset, 0);
    assert!(back.record.value.is_some(), "the record as it was read");
    assert!(second.context.is_void());
    drop(second);
    assert!(is_silent(&harness.found).await);
    assert!(harness.letters.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_long_recording_whose_partition_moves_is_left_to_whoever_has_it_now() {
    let harness = harness().await;
    harness.request(0, sound(&[(9.0, true)]), Vec::new()).await;
    harness.forward().await;
    let (first, second) = (harness.utterance().await, harness.utterance().await);
    let Harness {
        requests,
        utterances,
        letters,
        found,
        answered,
        ..
    } = harness;
    let audio = requests.tracker.budget().audio().clone();

    requests.leave().await;
    first.context.complete();
    until("the second window is void", || second.context.is_void()).await;
    second.context.complete();

    assert!(is_silent(&utterances).await, "nothing more of it is sent");
    assert!(letters.is_empty() && found.is_empty() && answered.is_empty());
    until("no audio is in flight", || audio.seconds() == 0.0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_no_transcript_is_refused_where_it_is_longer_than_a_prompt() {
    let harness = harness().await;
    let ask = |task: &'static str| vec![header("ce_task", task)];
    harness.request(0, sound(&[(5.0, true)]), ask("emotion")).await;
    harness.request(1, sound(&[(3.0, true)]), ask("emotion")).await;

    for _ in 0..2 {
        harness.forward().await;
    }
    let letter = next(&harness.letters).await;
    let whole = harness.utterance().await;

    assert_eq!(letter.rejection.reason, Reason::AudioTooLong);
    assert!(letter.rejection.message.contains("audio.whole_seconds_max"));
    assert_eq!(
        (whole.context.request.id.as_str(), whole.samples.len()),
        ("request-1", 48_000)
    );
    whole.context.complete();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_is_cut_while_it_comes_and_what_is_spoken_is_read_so_far() {
    let harness = harness().await;
    let whole = sound(&[(1.0, false), (1.0, true), (0.8, false), (1.0, true)]);
    let chunks: Vec<Bytes> = whole.chunks(10_240).map(Bytes::copy_from_slice).collect(); // 0.32 s
    let last = chunks.len() - 1;
    let (mut first_window, mut readings) = (None, Vec::new());
    for (number, chunk) in chunks.into_iter().enumerate() {
        let headers = vec![
            header("ce_session", "talk"),
            header("ce_sequence", number.to_string()),
            header("ce_final", (number == last).to_string()),
            header("ce_partials", "true"),
        ];
        harness.request(7, chunk, headers).await;
        harness.forward().await;
        if number == 6 {
            first_window = Some(window(&harness).await);
        }
        if let Ok(reading) = harness.readings.recv_timeout(Duration::from_millis(50)) {
            readings.push((number, reading.so_far.segment.clone(), reading.samples.len()));
        }
    }
    let second = window(&harness).await;
    let first = first_window.unwrap();

    assert!(readings.len() >= 4, "{readings:?}");
    let numbers: Vec<u64> = readings.iter().map(|(_, segment, _)| segment.number).collect();
    assert!(
        numbers.is_sorted() && numbers[0] == 0 && numbers.contains(&1),
        "{numbers:?}"
    );
    assert!(readings.iter().all(|(_, segment, _)| !segment.is_settled));
    let segment = first.part.segment.clone();
    assert!((segment.begin_seconds - 0.68).abs() < 0.05, "{segment:?}");
    assert!((segment.end_seconds - 2.13).abs() < 0.05, "{segment:?}");
    assert_eq!((segment.number, second.part.segment.number), (0, 1));
    assert!(answer(second, "there").is_none(), "the first is not answered");
    let joined = answer(first, "hello").unwrap();
    assert_eq!(joined.text, "hello there");
    assert_eq!(joined.context.earlier.len(), last);
    assert_eq!(joined.context.record.record_offset.offset, last as i64);
    assert!((joined.context.audio_seconds - 3.8).abs() < 1e-9);
    joined.context.complete();
    assert!(harness.letters.is_empty() && harness.found.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_that_is_no_longer_than_a_window_is_answered_whole_as_a_recording_is() {
    let harness = harness().await;
    let value = sound(&[(1.99, true)]); // 31,840 samples; whole frames of a window are 31,744
    harness.request(0, value.clone(), Vec::new()).await;
    harness.forward().await;
    let recording = harness.utterance().await;

    for (number, chunk) in value.chunks(2 * 31_800).enumerate() {
        let headers = vec![
            header("ce_session", "talk"),
            header("ce_sequence", number.to_string()),
            header("ce_final", (number == 1).to_string()),
        ];
        harness.request(1, Bytes::copy_from_slice(chunk), headers).await;
        harness.forward().await;
    }
    let mut stream = harness.utterance().await;

    assert!(stream.context.take_window().is_none());
    assert_eq!(stream.samples, recording.samples);
    assert!(is_silent(&harness.utterances).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_an_answer_to_a_stream_that_was_read_goes_on_from_readings() {
    let harness = harness().await;
    for (stream, is_loud) in [("loud", true), ("quiet", false)] {
        for number in 0..2 {
            let headers = vec![
                header("ce_session", stream),
                header("ce_sequence", number.to_string()),
                header("ce_final", (number == 1).to_string()),
                header("ce_partials", "true"),
            ];
            harness.request(7, sound(&[(0.5, is_loud)]), headers).await;
            harness.forward().await;
        }

        let whole = harness.utterance().await;

        assert_eq!(whole.samples.len(), 16_000);
        assert_eq!(whole.context.so_far.is_some(), is_loud, "{stream}");
    }
}

/// A stream of chunks of 100 ms.
struct Speaker<'h> {
    harness: &'h Harness,
    chunks: usize,
}

impl Speaker<'_> {
    async fn say(&mut self, seconds: &[(f64, bool)], is_final: bool) {
        let sound = sound(seconds);
        let chunks: Vec<Bytes> = sound.chunks(3_200).map(Bytes::copy_from_slice).collect();
        let last = chunks.len() - 1;
        for (number, chunk) in chunks.into_iter().enumerate() {
            let headers = vec![
                header("ce_session", "talk"),
                header("ce_sequence", self.chunks.to_string()),
                header("ce_final", (is_final && number == last).to_string()),
                header("ce_partials", "true"),
            ];
            self.harness.request(7, chunk, headers).await;
            self.harness.forward().await;
            self.chunks += 1;
        }
    }
}

/// Hands an order's answer on as the generator does.
fn done(mut order: EncodeUtterance, text: &str) -> Option<WindowDone> {
    let part = order.context.take_window().expect("a window");
    let owner = part.owner.clone();
    owner.keep(WindowDone {
        context: order.context,
        part,
        version: "one".to_owned(),
        generation: Generation {
            ended: true,
            ..Generation::default()
        },
        text: text.to_owned(),
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_utterance_is_answered_when_it_has_probably_ended_and_the_answer_kept_until_it_has() {
    let harness = harness().await;
    let audio = harness.requests.tracker.budget().audio().clone();
    let mut speaker = Speaker {
        harness: &harness,
        chunks: 0,
    };

    speaker
        .say(&[(0.5, false), (0.6, true), (0.2, false)], false)
        .await;
    let too_early = harness.utterance().await;
    let length = too_early.samples.len();
    assert!(
        (12_000..18_000).contains(&length),
        "speech, what precedes it and 0.13 s: {length}"
    );
    assert!(audio.seconds() > 0.0, "it is being worked on");
    assert!(done(too_early, "hel").is_none(), "it is kept back");
    assert_eq!(
        audio.seconds(),
        0.0,
        "its chunks may be in a partition that waits for work to be done"
    );
    until("a stream is no work before its last chunk", || {
        harness.requests.tracker.busy() == 0
    })
    .await;
    speaker.say(&[(0.3, true)], false).await;

    speaker.say(&[(0.2, false)], false).await;
    let likely = harness.utterance().await;
    assert!(likely.samples.len() > length);
    assert!(done(likely, "hello").is_none());
    assert!(harness.partials.is_empty());
    speaker.say(&[(0.3, false)], false).await;
    let settled = next(&harness.partials).await.answer;
    let segment = settled.segment.unwrap();
    assert_eq!(
        (settled.text.as_str(), segment.number, segment.is_settled),
        ("hello", 0, true)
    );

    speaker.say(&[(0.5, true), (0.2, false)], false).await;
    let withdrawn = harness.utterance().await;
    assert!(!withdrawn.context.is_void());
    speaker.say(&[(0.2, true)], false).await;
    until("speech went on", || withdrawn.context.is_void()).await;
    drop(withdrawn); // whatever becomes of it
    speaker.say(&[(0.2, false)], true).await;
    let text = match answer(window(&harness).await, "there") {
        Some(joined) => {
            joined.context.complete();
            joined.text
        }
        None => published(&harness).await.text, // the end was not known yet
    };

    assert_eq!(text, "hello there");
    assert!(
        is_silent(&harness.utterances).await,
        "each utterance was sent once"
    );
    assert!(harness.letters.is_empty() && harness.found.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn chunks_that_are_heard_do_not_fill_the_source() {
    let harness = harness().await;
    let tracker = harness.requests.tracker.clone();
    for number in 0..6 {
        let headers = vec![
            header("ce_session", "talk"),
            header("ce_sequence", number.to_string()),
            header("ce_final", (number == 5).to_string()),
        ];
        harness.request(7, sound(&[(15.0, false)]), headers).await; // 0.48 MB
        harness.forward().await;
    }

    let answer = next(&harness.answered).await;

    assert_eq!((tracker.unfinished(), answer.answer.audio_seconds), (6, 90.0));
    assert_eq!(tracker.busy(), 1, "the last one is the work");
    assert!(
        tracker.budget().bytes() < 1_600_000,
        "{}",
        tracker.budget().bytes()
    );
    answer.context.complete();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_whose_window_failed_is_refused_chunk_by_chunk() {
    let harness = harness().await;
    for number in 0..3 {
        let headers = vec![
            header("ce_session", "talk"),
            header("ce_sequence", number.to_string()),
            header("ce_final", (number == 2).to_string()),
        ];
        harness.request(7, sound(&[(2.5, true)]), headers).await;
    }
    harness.forward().await;
    let order = harness.utterance().await;
    drop(order); // its stage has failed
    harness.forward().await;
    harness.forward().await;

    for _ in 0..2 {
        let letter = next(&harness.letters).await;
        assert_eq!(letter.rejection.reason, Reason::InternalError);
    }
    let last = next(&harness.letters).await;
    assert_eq!(last.rejection.reason, Reason::BrokenStream);
    assert_eq!(last.record.record_offset.offset, 2);
}
