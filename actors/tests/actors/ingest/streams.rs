//! Recordings in chunks.

use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broken_stream_is_refused_chunk_by_chunk_and_a_whole_one_answers_for_all_its_records() {
    let harness = Harness::new(probe(), probe()).await;
    let chunk = |session: &'static str, sequence: u64, last: bool| {
        vec![
            header("ce_session", session),
            header("ce_sequence", sequence.to_string()),
            header("ce_final", last.to_string()),
        ]
    };
    harness
        .request(0, pcm(800, 0.25), chunk("broken", 0, false))
        .await;
    harness.request(1, pcm(800, 0.25), chunk("whole", 0, false)).await;
    harness.request(2, pcm(800, 0.25), chunk("broken", 2, true)).await;
    harness.request(3, pcm(800, 0.25), chunk("whole", 1, true)).await;

    for _ in 0..4 {
        harness.forward().await;
    }

    for offset in [0, 2] {
        let letter = next(&harness.letters).await;
        assert_eq!(letter.record.record_offset.offset, offset);
        assert_eq!(letter.rejection.reason, Reason::BrokenStream);
        assert_eq!(letter.rejection.stage, Stage::Ingest);
        assert_eq!(letter.audio_seconds, 0.0, "it never counted as in flight");
    }
    let utterance = harness.utterance().await;
    assert_eq!(utterance.samples.len(), 1_600);
    assert_eq!(utterance.context.record.record_offset.offset, 3);
    let earlier: Vec<i64> = utterance
        .context
        .earlier
        .iter()
        .map(|record_offset| record_offset.offset)
        .collect();
    assert_eq!(earlier, [1]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_is_pinned_to_the_version_of_the_moment_it_begins() {
    let harness = Harness::new(probe(), probe()).await;
    let chunk = |sequence: u64, last: bool| {
        vec![
            header("ce_session", "stream"),
            header("ce_sequence", sequence.to_string()),
            header("ce_final", last.to_string()),
        ]
    };
    harness.request(0, pcm(800, 0.25), chunk(0, false)).await;
    harness.request(1, pcm(800, 0.25), Vec::new()).await;
    harness.request(2, pcm(800, 0.25), chunk(1, true)).await;

    for _ in 0..2 {
        harness.forward().await;
    }
    harness.utterance().await.context.complete(); // it has taken the chunk that came before
    harness.serve(adapter("two", LayerMix::Last, 2, 4));
    harness.forward().await;
    let stream = harness.utterance().await;

    assert_eq!(stream.samples.len(), 1_600);
    assert_eq!(stream.adapter.version(), "one");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_speaks_in_a_stream_that_is_decoded_at_its_end_ends_what_is_in_progress_and_not_itself() {
    let harness = Harness::new(probe(), probe()).await;
    let file = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../tests/fixtures/audio/tone-44100-2.flac"
    );
    let flac = std::fs::read(file).unwrap();
    let session = vec![header("ce_session", "talk")];
    harness.request(0, pcm(1_600, 0.25), session).await;
    harness.forward().await;
    let before = harness.utterance().await;

    for (number, chunk) in flac.chunks(flac.len().div_ceil(2)).enumerate() {
        let headers = vec![
            header("ce_session", "talk"),
            header("ce_sequence", number.to_string()),
            header("ce_final", (number == 1).to_string()),
            header("ce_bargein", "true"),
        ];
        harness.request(1, Bytes::copy_from_slice(chunk), headers).await;
        harness.forward().await;
    }
    let stream = harness.utterance().await;

    assert!(before.context.interrupt.is_set());
    assert!(!stream.context.interrupt.is_set());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_chunk_that_arrives_twice_is_finished_and_its_stream_is_answered() {
    let harness = Harness::new(probe(), probe()).await;
    let half = || pcm(800, 0.25);
    for (number, sequence, last) in [(0, 0, false), (0, 0, false), (1, 1, true), (1, 1, true)] {
        let headers = vec![
            header("ce_session", "twice"),
            header("ce_sequence", u64::to_string(&sequence)),
            header("ce_final", bool::to_string(&last)),
        ];
        harness.request(number, half(), headers).await;
        harness.forward().await;
    }

    let utterance = harness.utterance().await;

    assert_eq!(utterance.samples.len(), 1_600);
    assert_eq!(utterance.context.record.record_offset.offset, 2);
    // What is left is the stream's own two records; both repeats are finished.
    until("the repeats are released", || {
        harness.requests.tracker.unfinished() == 2
    })
    .await;
    assert!(is_silent(&harness.letters).await);
    assert!(is_silent(&harness.utterances).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_that_is_silent_for_more_than_a_minute_is_given_up_chunk_by_chunk() {
    const SILENCE_MAX: Duration = Duration::from_secs(60);
    let harness = Harness::new(probe(), probe()).await;
    for number in 0..2 {
        let headers = vec![
            header("ce_session", "stream"),
            header("ce_sequence", number.to_string()),
        ];
        harness.request(number, pcm(800, 0.25), headers).await;
    }
    harness.request(2, pcm(800, 0.25), Vec::new()).await;
    for _ in 0..3 {
        harness.forward().await;
    }
    harness.utterance().await.context.complete(); // it has taken the chunks that came before

    harness.clock.advance(SILENCE_MAX);
    assert!(is_silent(&harness.letters).await);
    harness.clock.advance(Duration::from_secs(1));

    for offset in [0, 1] {
        let letter = next(&harness.letters).await;
        assert_eq!(letter.record.record_offset.offset, offset);
        assert_eq!(letter.rejection.reason, Reason::BrokenStream);
        assert!(
            letter.rejection.message.contains("60 s of silence"),
            "{}",
            letter.rejection
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn chunks_of_an_unfinished_stream_are_handed_back_when_the_ingest_dies_and_the_rest_is_refused() {
    let harness = Harness::new(probe(), probe()).await;
    for number in 0..3 {
        let headers = vec![
            header("ce_session", "stream"),
            header("ce_sequence", number.to_string()),
            header("ce_final", (number == 2).to_string()),
        ];
        harness.request(number, pcm(800, 0.25), headers).await;
    }
    for _ in 0..2 {
        harness.forward().await;
    }
    until("it has taken both", || harness.to_ingest.is_empty()).await;
    tokio::time::sleep(crate::support::A_WHILE).await;

    harness.ingest.kill();
    let mut back =
        [next(&harness.found).await, next(&harness.found).await].map(|lost| lost.record.record_offset.offset);
    harness.forward().await;
    let letter = next(&harness.letters).await;

    back.sort_unstable();
    assert_eq!(back, [0, 1]);
    assert_eq!(letter.record.record_offset.offset, 2);
    assert_eq!(letter.rejection.reason, Reason::BrokenStream);
}

/// An ingest that has taken the first chunk of a stream, and the request that came behind it.
async fn with_an_unfinished_stream() -> (Harness, EncodeUtterance) {
    let harness = Harness::new(probe(), probe()).await;
    let headers = vec![header("ce_session", "stream"), header("ce_sequence", "0")];
    harness.request(0, pcm(800, 0.25), headers).await;
    harness.request(1, pcm(800, 0.25), Vec::new()).await;
    harness.forward().await;
    harness.forward().await;
    let taken = harness.utterance().await; // it has taken the chunk that came before
    (harness, taken)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_whose_partition_is_held_back_is_not_taken_for_silent() {
    let (harness, taken) = with_an_unfinished_stream().await;
    let partition = TopicPartition::of(&taken.context.record.record_offset);
    taken.context.complete();
    let audio = harness.requests.tracker.budget().audio().clone();

    let held = audio.hold(partition, AUDIO_SECONDS_MAX * 0.9);
    for _ in 0..3 {
        harness.clock.advance(Duration::from_secs(50));
        assert!(is_silent(&harness.letters).await, "its chunks may have to wait");
    }
    drop(held);
    harness.clock.advance(Duration::from_secs(50));
    assert!(is_silent(&harness.letters).await);
    harness.clock.advance(Duration::from_secs(12));

    let letter = next(&harness.letters).await;
    assert_eq!(letter.record.record_offset.offset, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_stream_is_taken_for_silent_while_nothing_is_read() {
    let (harness, taken) = with_an_unfinished_stream().await;
    let partition = TopicPartition::of(&taken.context.record.record_offset);
    drop(taken.context.complete()); // its record stays unfinished
    let tracker = harness.requests.tracker.clone();
    let is_excused = async || {
        for _ in 0..3 {
            harness.clock.advance(Duration::from_secs(50));
            assert!(is_silent(&harness.letters).await, "nothing is read");
        }
    };

    let elsewhere = TopicPartition::new("speechverse.requests", 1);
    let all = tracker.budget().audio().hold(elsewhere, AUDIO_SECONDS_MAX);
    is_excused().await;
    drop(all);
    let bytes = tracker.budget().hold(tracker.budget().bytes_max());
    until("the source is full", || tracker.holds_back(&partition)).await;
    is_excused().await;
    drop(bytes);
    until("the source reads on", || !tracker.holds_back(&partition)).await;
    harness.clock.advance(Duration::from_secs(61));

    let letter = next(&harness.letters).await;
    assert_eq!(letter.rejection.reason, Reason::BrokenStream);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unfinished_streams_that_are_decoded_at_their_end_keep_no_more_than_a_share_of_what_may_be_in_flight()
{
    const CHUNK_BYTES: usize = 50_000;
    let mut kafka = Kafka::start().await;
    kafka.config.message_bytes_max = 100_000;
    kafka.config.in_flight_bytes_max = 1_000_000;
    let harness = Harness::reading(kafka, probe(), probe(), AudioConfig::default(), by_level()).await;
    let send = async |session: &'static str, number: usize| {
        let mut chunk = vec![0; CHUNK_BYTES];
        chunk[..4].copy_from_slice(b"fLaC");
        let headers = vec![
            header("ce_session", session),
            header("ce_sequence", number.to_string()),
        ];
        harness.request(0, chunk.into(), headers).await;
        harness.forward().await;
    };

    for (session, number) in [("one", 0), ("one", 1), ("one", 2), ("other", 0)] {
        send(session, number).await;
    }
    let budget = harness.requests.tracker.budget();
    until("records and what is kept of them count", || {
        budget.bytes() >= 8 * CHUNK_BYTES as u64
    })
    .await;
    assert!(is_silent(&harness.letters).await, "a fifth");
    send("other", 1).await;

    for offset in 0..3 {
        let letter = next(&harness.letters).await;
        assert_eq!(letter.rejection.reason, Reason::ValueTooLarge);
        assert_eq!(letter.record.record_offset.offset, offset);
    }
    assert!(is_silent(&harness.letters).await, "the other one goes on");
    let most = 7 * CHUNK_BYTES as u64 + 10_000; // five records, two of them kept
    assert!(budget.bytes() < most, "{}", budget.bytes());
}
