//! Answers in transactions: whatever happens to the processes, who reads committed records sees one answer
//! to each request.

use std::io::{BufRead, BufReader, Write};
use std::process::{ChildStdout, Command, Stdio};

use super::crashes::Mortal;
use super::*;

/// What [`process_that_answers`] gets: its settings.
const ORDERS: &str = "SPEECHVERSE_TEST_ANSWERING_PROCESS";
/// How a committed answer is printed.
const COMMITTED: &str = "committed ";
/// How the end of a source is printed.
const ENDED: &str = "ended ";
/// Answers that a process may have committed before it is killed; another number each time.
const BEFORE_KILL: [usize; 4] = [30, 110, 60, 90];
/// A member that is killed is missed after so long, unless its place is taken before.
const SESSION_MS: u64 = 300_000;

fn config(bench: &Bench, instance_id: &str) -> KafkaConfig {
    KafkaConfig {
        delivery: Delivery::ExactlyOnce,
        instance_id: instance_id.to_owned(),
        commit_interval_ms: 20,
        session_timeout_ms: SESSION_MS,
        ..bench.config.clone()
    }
}

fn answer_to(config: &KafkaConfig, record: &Record) -> OutgoingRecord {
    outgoing(&config.topics.results, number(record))
}

/// Answers a record after 0 to 60 ms, so that answers come out of order; what became of it.
async fn answer(config: &KafkaConfig, tracker: &OffsetTracker, record: &Record) -> Settled {
    tokio::time::sleep(Duration::from_millis(number(record) * 37 % 61)).await;
    let record_offsets = vec![record.record_offset.clone()];
    tracker
        .settle(record_offsets, vec![answer_to(config, record)])
        .await
}

/// Answers everything that comes, until the source ends.
async fn answer_all(config: KafkaConfig, events: flume::Receiver<SourceEvent>, tracker: OffsetTracker) {
    let config = Arc::new(config);
    while let Ok(event) = events.recv_async().await {
        if let SourceEvent::Record(record) = event {
            let (config, tracker) = (Arc::clone(&config), tracker.clone());
            tokio::spawn(async move { answer(&config, &tracker, &record).await });
        }
    }
}

/// What who reads committed records sees of the results, in the order of its value.
async fn answers(config: &KafkaConfig) -> Vec<u64> {
    let results = &config.topics.results;
    let mut reader = Reader::open(config, results, ReadFrom::Beginning, STEP)
        .await
        .unwrap();
    let mut numbers = Vec::new();
    loop {
        match reader.next(STEP).await.unwrap() {
            Read::Record(record) => numbers.push(number(&record)),
            Read::CaughtUp => break,
            Read::TimedOut => panic!("the end of the results was not reached"),
        }
    }
    numbers.sort_unstable();
    numbers
}

/// Waits as long as answers come.
async fn until_answered(config: &KafkaConfig, count: u64) {
    let mut progress = (0, Instant::now());
    loop {
        let answered = answers(config).await.len();
        if answered >= count as usize {
            return;
        }
        if answered > progress.0 {
            progress = (answered, Instant::now());
        }
        assert!(
            progress.1.elapsed() < STEP,
            "{answered} of {count} answers came, and no more for {STEP:?}"
        );
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

/// An answer that is committed can be read, and its request is not read again; one that is not committed is
/// read again. A request that is answered before those in front of it is answered once all the same.
pub(super) async fn together(bench: &Bench) {
    let mut config = config(bench, "");
    let topics = &mut config.topics;
    std::mem::swap(&mut topics.requests, &mut topics.control); // one partition
    let sink = bench.sink();
    for number in 0..5 {
        sink.send(outgoing(&config.topics.requests, number))
            .await
            .unwrap();
    }
    let first = start(&config);
    let mut records = Vec::new();
    for _ in 0..5 {
        records.push(first.record().await);
    }
    let sent: Vec<_> = [1, 2, 4]
        .map(|index: usize| answer(&config, &first.tracker, &records[index]))
        .into_iter()
        .collect();
    for settled in sent {
        assert_eq!(settled.await, Settled::Committed);
    }
    assert_eq!(answers(&config).await, [1, 2, 4]);
    assert_eq!(
        first.source.close(Duration::ZERO).await.unwrap(),
        Closed { unfinished: 2 }
    );

    let second = start(&config);
    for expected in [0, 3] {
        let record = second.record().await;
        assert_eq!(number(&record), expected);
        assert_eq!(
            answer(&config, &second.tracker, &record).await,
            Settled::Committed
        );
    }
    second.source.close(STEP).await.unwrap();

    assert_eq!(answers(&config).await, [0, 1, 2, 3, 4]);
    let third = start(&config);
    assert!(
        third.is_silent(Duration::from_secs(2)).await,
        "something was read again"
    );
    third.source.close(STEP).await.unwrap();
}

/// A record that never fits is given back to who wrote it; what was in its transaction is committed in
/// another one.
pub(super) async fn refused(bench: &Bench) {
    let config = config(bench, "");
    bench.publish(0..3).await;
    let running = start(&config);
    let mut records = Vec::new();
    for _ in 0..3 {
        records.push(running.record().await);
    }
    let settle = |record: &Record, outgoing: OutgoingRecord| {
        let (tracker, record_offset) = (running.tracker.clone(), record.record_offset.clone());
        async move { tracker.settle(vec![record_offset], vec![outgoing]).await }
    };
    let too_large = OutgoingRecord {
        value: Some(Bytes::from(vec![0; config.message_bytes_max + 1])),
        ..answer_to(&config, &records[1])
    };

    let (first, refused, last) = tokio::join!(
        settle(&records[0], answer_to(&config, &records[0])),
        settle(&records[1], too_large),
        settle(&records[2], answer_to(&config, &records[2])),
    );
    let shortened = settle(&records[1], answer_to(&config, &records[1])).await;

    assert!(
        matches!(refused, Settled::Refused(SinkError::TooLarge { .. })),
        "{refused:?}"
    );
    assert_eq!(
        [first, last, shortened],
        [Settled::Committed, Settled::Committed, Settled::Committed]
    );
    let mut expected: Vec<u64> = records.iter().map(number).collect();
    expected.sort_unstable();
    assert_eq!(answers(&config).await, expected);
    assert_eq!(
        running.source.close(STEP).await.unwrap(),
        Closed { unfinished: 0 }
    );
}

/// Processes of one name are killed one after another, each in the middle of its work. The group does not
/// wait for the session time-out before it gives the partitions to the next of the name.
pub(super) async fn kills(bench: &Bench) {
    let config = config(bench, "pod-0");
    let killing = async {
        let began = Instant::now();
        for count in BEFORE_KILL {
            let (process, output) = start_process(&config);
            let committed = tokio::task::spawn_blocking(move || {
                let committed = lines(output).filter(|line| line.starts_with(COMMITTED));
                committed.take(count).count()
            });
            let committed = tokio::time::timeout(STEP, committed).await;
            drop(process); // killed, also where it came to a stand, so that nobody waits for its output
            assert_eq!(
                committed.expect("answers in time").unwrap(),
                count,
                "the process ended by itself"
            );
        }
        began.elapsed()
    };
    // All the time: with a fixed number of records, a process that is killed late leaves its successors fewer
    // than they are waited for to answer.
    let (took, published) = bench.publish_during(killing).await;

    let last = start(&config);
    let tracker = last.tracker.clone();
    let work = tokio::spawn(answer_all(config.clone(), last.events.clone(), tracker));
    until_answered(&config, published).await;
    last.source.close(STEP).await.unwrap();
    drop(last.events);
    work.await.unwrap();

    assert_eq!(answers(&config).await, (0..published).collect::<Vec<u64>>());
    assert!(
        took < Duration::from_millis(SESSION_MS),
        "four processes took {took:?}"
    );
}

/// A process stands still with answers in hand; another of its name takes its place. When the first goes on,
/// it writes nothing that anybody sees, and ends.
pub(super) async fn zombie(bench: &Bench) {
    const COUNT: u64 = 300;
    let config = config(bench, "pod-0");
    bench.publish(0..COUNT).await;
    let (zombie, mut output) = {
        let config = config.clone();
        tokio::task::spawn_blocking(move || {
            let (process, output) = start_process(&config);
            let mut output = lines(output);
            let first = output
                .by_ref()
                .filter(|line| line.starts_with(COMMITTED))
                .take(40);
            assert_eq!(first.count(), 40);
            process.signal("STOP");
            (process, output)
        })
        .await
        .unwrap()
    };

    let heir = start(&config);
    let work = tokio::spawn(answer_all(
        config.clone(),
        heir.events.clone(),
        heir.tracker.clone(),
    ));
    until_answered(&config, COUNT).await;
    zombie.signal("CONT");
    let ended = tokio::task::spawn_blocking(move || output.find(|line| line.starts_with(ENDED)));
    let ended = tokio::time::timeout(STEP, ended)
        .await
        .expect("the zombie ends")
        .unwrap();

    assert!(ended.is_some(), "the zombie did not say why it ended");
    assert!(heir.source.is_running(), "the heir was shut out too");
    heir.source.close(STEP).await.unwrap();
    drop(heir.events);
    work.await.unwrap();
    assert_eq!(answers(&config).await, (0..COUNT).collect::<Vec<u64>>());
}

/// Members join and leave while requests come.
pub(super) async fn members(bench: &Bench) {
    const COUNT: u64 = 600;
    let config = config(bench, "");
    let publishing = async {
        for begin in (0..COUNT).step_by(30) {
            bench.publish(begin..begin + 30).await;
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    };
    let join = || {
        let running = start(&config);
        let work = answer_all(config.clone(), running.events, running.tracker);
        (running.source, tokio::spawn(work))
    };
    let leave = async |(source, work): (Source, tokio::task::JoinHandle<()>)| {
        source.close(STEP).await.unwrap();
        work.await.unwrap();
    };
    let working = async {
        let first = join();
        tokio::time::sleep(Duration::from_millis(1_500)).await;
        let second = join();
        tokio::time::sleep(Duration::from_millis(2_000)).await;
        leave(first).await;
        let third = join();
        tokio::time::sleep(Duration::from_millis(1_500)).await;
        leave(second).await;
        third
    };
    let ((), last) = tokio::join!(publishing, working);
    until_answered(&config, COUNT).await;
    leave(last).await;

    assert_eq!(answers(&config).await, (0..COUNT).collect::<Vec<u64>>());
}

/// With the group protocol of KIP-848, which the embedded broker does not know.
#[tokio::test(flavor = "multi_thread")]
async fn a_group_that_the_broker_shares_out_is_answered_exactly_once() {
    let Some(bench) = Bench::apache().await else {
        let name = "exactly_once::a_group_that_the_broker_shares_out_is_answered_exactly_once";
        return speechverse::testing::skip(
            name,
            "SPEECHVERSE_KAFKA is not set; scripts/kafka/suite.sh starts one and sets it",
        );
    };
    let mut bench = bench;
    bench.config.group_protocol = speechverse::kafka::config::GroupProtocol::Consumer;
    members(&bench).await;
}

/// Starts a process that answers requests, and gives its output.
fn start_process(config: &KafkaConfig) -> (Mortal, ChildStdout) {
    let name = "exactly_once::process_that_answers";
    let mut process = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", name, "--ignored", "--nocapture"])
        .env(ORDERS, serde_json::to_string(config).unwrap())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let output = process.stdout.take().unwrap();
    (Mortal(process), output)
}

fn lines(output: ChildStdout) -> impl Iterator<Item = String> + Send {
    BufReader::new(output).lines().map_while(Result::ok)
}

/// The process that others start, and kill or stop.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "started, and killed, by the checks of exactly once"]
async fn process_that_answers() {
    let orders = std::env::var(ORDERS).expect("the check that starts this process says what to do");
    let config: Arc<KafkaConfig> = Arc::new(serde_json::from_str(&orders).unwrap());
    let running = start(&config);
    while let Ok(event) = running.events.recv_async().await {
        match event {
            SourceEvent::Record(record) => {
                let (config, tracker) = (Arc::clone(&config), running.tracker.clone());
                tokio::spawn(async move {
                    if answer(&config, &tracker, &record).await == Settled::Committed {
                        writeln!(std::io::stdout(), "{COMMITTED}{}", number(&record)).unwrap();
                    }
                });
            }
            SourceEvent::Failed(error) => writeln!(std::io::stdout(), "{ENDED}{error}").unwrap(),
            SourceEvent::Assigned { .. } | SourceEvent::Revoked(_) => {}
        }
    }
}
