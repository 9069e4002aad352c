//! Long recordings and chunked streams, over the broker.

use bytes::Bytes;
use speechverse::text::{WindowText, join_windows};
use speechverse::wire::answer::{Answer, AnswerKind, Flag};

use crate::harness::{Client, Header, Sandbox, header};

/// Alternating tones and silence of so many seconds each; samples of 16 bits, big-endian.
fn sound(seconds: &[(f64, bool)]) -> Bytes {
    let samples = seconds.iter().enumerate().flat_map(|(number, (seconds, loud))| {
        let level = if *loud { 9_000.0 } else { 1.0 };
        let pitch = 0.1 + 0.03 * number as f64;
        (0..(seconds * 16_000.0) as usize).map(move |at| ((at as f64 * pitch).sin() * level) as i16)
    });
    samples.flat_map(i16::to_be_bytes).collect::<Vec<u8>>().into()
}

/// A sandbox with windows of at most 4 s, in which nothing longer than 8 s is kept.
async fn sandbox() -> Sandbox {
    let mut sandbox = Sandbox::new().await;
    let settings = &mut sandbox.settings;
    settings.audio.seconds_max = 300.0;
    settings.audio.whole_seconds_max = 8.0;
    settings.speech.window_seconds_max = 4.0;
    settings.speech.window_overlap_seconds = 1.0;
    sandbox
}

fn ask(more: &[(&'static str, String)]) -> Vec<Header> {
    let mut headers = vec![
        header("ce_task", "asr"),
        header("ce_partials", "true"),
        header("content-type", "audio/L16;rate=16000;channels=1"),
    ];
    headers.extend(more.iter().map(|(name, value)| header(name, value.clone())));
    headers
}

/// The partial answers up to the final one.
async fn answers(client: &mut Client) -> (Vec<Answer>, Answer) {
    let mut partials = Vec::new();
    loop {
        let (answer, _) = client.answer().await;
        match answer.kind {
            AnswerKind::Partial => partials.push(answer),
            _ => return (partials, answer),
        }
    }
}

/// Checks that the settled texts of all segments are there, and that the answer is these, joined.
fn check(partials: &[Answer], whole: &Answer) {
    let mut settled: Vec<_> = (partials.iter())
        .map(|answer| (answer.segment.clone().unwrap(), answer.text.clone()))
        .filter(|(segment, _)| segment.is_settled)
        .collect();
    settled.sort_by_key(|(segment, _)| segment.number);
    assert!(settled.len() >= 4, "{settled:?}");
    let mut end = 0.0;
    let mut texts = Vec::new();
    for (at, (segment, text)) in settled.iter().enumerate() {
        assert_eq!(segment.number, at as u64);
        assert!(segment.end_seconds - segment.begin_seconds <= 4.0);
        texts.push((text.as_str(), segment.begin_seconds < end));
        end = segment.end_seconds;
    }
    let joined = join_windows(
        texts
            .into_iter()
            .map(|(text, overlaps)| WindowText { text, overlaps }),
    );
    assert_eq!(whole.text, joined);
    assert!(!whole.flags.contains(&Flag::NoSpeech));
    assert!(whole.segment.is_none());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_recording_longer_than_what_is_kept_is_answered_window_by_window_and_others_meanwhile() {
    let sandbox = sandbox().await;
    let pipeline = sandbox.start().await;
    let mut client = sandbox.client().await;
    let long = sound(&[
        (2.0, false),
        (3.0, true),
        (1.0, false),
        (9.0, true),
        (12.0, false),
        (5.0, true),
    ]);

    client.request("long", "k", long, ask(&[])).await;
    let (partials, whole) = answers(&mut client).await;
    check(&partials, &whole);
    assert_eq!((whole.request_id.as_str(), whole.audio_seconds), ("long", 32.0));

    let refused = sound(&[(301.0, false)]);
    client
        .request("limit", "k", refused.slice(..3_800_000), ask(&[]))
        .await;
    let (_, silent) = answers(&mut client).await;
    assert_eq!((silent.text.as_str(), silent.audio_seconds), ("", 118.75));
    assert_eq!(silent.flags, [Flag::Empty, Flag::NoSpeech]);
    sandbox.end(pipeline).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_of_many_chunks_is_answered_while_it_comes_and_as_a_whole() {
    let sandbox = sandbox().await;
    let pipeline = sandbox.start().await;
    let mut client = sandbox.client().await;
    let whole = sound(&[
        (1.0, false),
        (3.0, true),
        (1.0, false),
        (9.0, true),
        (2.0, false),
        (5.0, true),
    ]);
    let chunks: Vec<Bytes> = whole.chunks(10_240).map(Bytes::copy_from_slice).collect(); // 0.32 s
    let last = chunks.len() - 1;

    for (number, chunk) in chunks.into_iter().enumerate() {
        let place = [
            ("ce_type", "speechverse.chunk.v1".to_owned()),
            ("ce_session", "talk".to_owned()),
            ("ce_sequence", number.to_string()),
            ("ce_final", (number == last).to_string()),
        ];
        client.request("talk-1", "talk", chunk, ask(&place)).await;
        if number == 20 {
            loop {
                let (answer, _) = client.answer().await;
                assert_eq!(answer.kind, AnswerKind::Partial, "the first utterance is over");
                if answer.segment.unwrap().is_settled {
                    break;
                }
            }
        }
    }
    let (partials, whole) = answers(&mut client).await;

    assert_eq!(
        (whole.request_id.as_str(), whole.session.as_deref()),
        ("talk-1", Some("talk"))
    );
    assert!((whole.audio_seconds - 21.0).abs() < 1e-9);
    assert!(partials.len() >= 4, "{partials:?}");
    sandbox.end(pipeline).await; // with nothing unfinished
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_that_are_asked_about_as_a_whole_keep_no_more_sound_than_they_may() {
    let mut sandbox = Sandbox::new().await;
    sandbox.settings.kafka.message_bytes_max = 1_000_000;
    sandbox.settings.kafka.in_flight_bytes_max = 4 << 20; // half of it is 32 s of samples
    let pipeline = sandbox.start().await;
    let mut client = sandbox.client().await;
    let chunk = |session: &str, number: usize, is_final: bool| {
        vec![
            header("ce_instruction", "How many people speak?"),
            header("content-type", "audio/L16;rate=16000;channels=1"),
            header("ce_type", "speechverse.chunk.v1"),
            header("ce_session", session.to_owned()),
            header("ce_sequence", number.to_string()),
            header("ce_final", is_final.to_string()),
        ]
    };

    for (session, seconds) in [("short", 12.0), ("long", 21.0)] {
        let begin = sound(&[(seconds, true)]);
        client
            .request(session, "k", begin, chunk(session, 0, false))
            .await;
    }
    let (id, reason, _) = client.dead_letter().await;
    assert_eq!((id.as_str(), reason.as_str()), ("long", "value_too_large"));
    client
        .request("short", "k", sound(&[(1.0, true)]), chunk("short", 1, true))
        .await;

    let (answer, _) = client.answer().await;
    assert_eq!(
        (answer.request_id.as_str(), answer.audio_seconds),
        ("short", 13.0)
    );
    sandbox.end(pipeline).await;
}
