//! Recordings that are longer than what is kept of them: whose turn it is, and who is not waited for.

use speechverse::wire::answer::Flag;

use super::windows::sound;
use super::*;

/// Nothing longer than 4 s is kept; one long recording of a priority is worked on at once, window by window.
async fn harness() -> Harness {
    let speech = SpeechConfig {
        window_seconds_max: 2.0,
        windows_in_flight_max: 1,
        long_recordings_max: 1,
        ..by_level()
    };
    let audio = AudioConfig {
        whole_seconds_max: 4.0,
        ..AudioConfig::default()
    };
    Harness::with(probe(), probe(), audio, speech).await
}

impl Harness {
    /// Hands `request-NUMBER` to the ingest, so many seconds of sound under a key.
    async fn send(&self, number: usize, seconds: f64, key: &'static str, headers: &[(&str, &'static str)]) {
        let headers = headers.iter().map(|(name, value)| header(name, *value));
        self.request(number, sound(&[(seconds, true)]), headers.collect())
            .await;
        let mut record = self.requests.record().await;
        record.key = Some(Bytes::from_static(key.as_bytes()));
        let event = SourceEvent::Record(record);
        self.to_ingest.send_async(event).await.unwrap();
    }

    /// Fails the window that is sent next, and with it its recording; whose it is.
    async fn fail_next(&self) -> String {
        let order = self.utterance().await;
        let id = order.context.request.id.clone();
        drop(order);
        next(&self.found).await;
        id
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn long_bulk_recordings_do_not_keep_an_interactive_one_waiting() {
    let harness = harness().await;
    for number in 0..3 {
        harness
            .send(number, 9.0, "bulk", &[("ce_priority", "bulk")])
            .await;
    }
    let bulk = harness.utterance().await;
    assert_eq!(bulk.context.request.id, "request-0");
    assert!(is_silent(&harness.utterances).await, "one at once");

    harness.send(3, 5.0, "talk", &[]).await;

    let interactive = harness.utterance().await;
    assert_eq!(interactive.context.request.id, "request-3");
    assert!(is_silent(&harness.utterances).await);
    drop(bulk);
    assert_eq!(harness.utterance().await.context.request.id, "request-1");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_take_turns_with_long_recordings() {
    let harness = harness().await;
    for (number, key) in [(0, "one"), (1, "one"), (2, "one"), (3, "other")] {
        harness.send(number, 5.0, key, &[]).await;
    }
    harness.send(4, 1.0, "one", &[]).await;

    let running = harness.utterance().await;
    let short = harness.utterance().await; // behind those that wait
    assert_eq!(short.context.complete().request.id, "request-4");
    drop(running);
    next(&harness.found).await;
    let mut order = Vec::new();
    for _ in 0..3 {
        order.push(harness.fail_next().await);
    }

    assert_eq!(order, ["request-1", "request-3", "request-2"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_long_recording_is_late_or_interrupted_while_it_waits() {
    let harness = harness().await;
    harness.send(0, 9.0, "key", &[]).await;
    let running = harness.utterance().await;
    let deadline = (harness.clock.time() + Duration::from_secs(10)).to_string();
    harness
        .send(1, 5.0, "key", &[("ce_deadline", deadline.leak())])
        .await;
    harness.send(2, 5.0, "key", &[("ce_session", "talk")]).await;
    let again = [("ce_session", "talk"), ("ce_bargein", "true")];
    harness.send(3, 1.0, "key", &again).await;
    let again = harness.utterance().await;
    assert_eq!(again.context.complete().request.id, "request-3");

    harness.clock.advance(Duration::from_secs(2));
    let interrupted = next(&harness.answered).await;
    assert!(harness.letters.is_empty());
    harness.clock.advance(Duration::from_secs(9));
    let late = next(&harness.letters).await;

    let answer = &interrupted.answer;
    assert_eq!(
        (answer.request_id.as_str(), answer.text.as_str()),
        ("request-2", "")
    );
    assert!(answer.flags.contains(&Flag::Cancelled));
    interrupted.context.complete();
    assert_eq!(late.rejection.reason, Reason::DeadlineExceeded);
    assert_eq!(late.rejection.stage, Stage::Ingest);
    assert_eq!(late.record.record_offset.offset, 1);
    running.context.complete();
    assert!(harness.found.is_empty());
}

/// Decoding an hour takes seconds, in which the ingest would take nothing else.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn how_long_a_recording_is_is_found_out_when_its_turn_has_come() {
    let harness = harness().await;
    harness.send(0, 9.0, "key", &[]).await;
    harness.send(1, 5.0, "key", &[("ce_task", "emotion")]).await; // too long for a prompt

    let running = harness.utterance().await;
    assert!(is_silent(&harness.letters).await);
    drop(running);

    let letter = next(&harness.letters).await;
    assert_eq!(letter.rejection.reason, Reason::AudioTooLong);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_recording_that_only_claims_to_be_long_is_answered_whole() {
    let fixture = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../tests/fixtures/audio/tone-44100-2.flac"
    );
    let mut flac = std::fs::read(fixture).unwrap(); // 0.25 s
    flac[22..26].copy_from_slice(&17_640_u32.to_be_bytes()); // its number of samples: 0.4 s
    let audio = AudioConfig {
        whole_seconds_max: 0.3,
        ..AudioConfig::default()
    };
    let harness = Harness::with(probe(), probe(), audio, by_level()).await;

    harness.request(0, flac.into(), Vec::new()).await;
    harness.forward().await;
    let mut utterance = harness.utterance().await;

    assert!(utterance.context.take_window().is_none());
    assert_eq!(utterance.samples.len(), 4_000);
    assert!(utterance.context.damage.cut_short);
    assert_eq!(utterance.context.audio_seconds, 0.25);
}
