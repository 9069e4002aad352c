//! Consumer groups: members come, go and die; no record is lost.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{CommitMode, Consumer, StreamConsumer};
use rdkafka::message::Message;
use tokio::task::JoinHandle;

use crate::support::{Kind, Target, blocking, eventually, skip, unique, write};

const PARTITIONS: i32 = 6;
/// Longest that a group may take to agree.
const AGREEMENT: Duration = Duration::from_secs(25);

pub(crate) async fn range_hand_over(target: Target) -> Result<()> {
    hand_over(&target, &classic(&target, "range")).await
}

pub(crate) async fn cooperative_hand_over(target: Target) -> Result<()> {
    hand_over(&target, &classic(&target, "cooperative-sticky")).await
}

pub(crate) async fn new_protocol_hand_over(target: Target) -> Result<()> {
    if target.kind == Kind::Embedded {
        let check = "embedded::a_group_of_the_new_protocol_hands_over_without_loss";
        skip(check, "the embedded broker has classic groups only (no KIP-848)");
        return Ok(());
    }
    hand_over(
        &target,
        target
            .consumer(&unique("group"))
            .set("group.protocol", "consumer"),
    )
    .await
}

fn classic(target: &Target, strategy: &str) -> ClientConfig {
    let mut config = target.consumer(&unique("group"));
    config
        .set("partition.assignment.strategy", strategy)
        .set("session.timeout.ms", "6000")
        .set("heartbeat.interval.ms", "300");
    config
}

/// How often each record has been seen.
type Seen = Arc<Mutex<HashMap<(i32, i64), usize>>>;

/// A consumer that reads and commits in the background.
struct Member {
    consumer: Arc<StreamConsumer>,
    stop: Arc<AtomicBool>,
    reading: JoinHandle<()>,
}

impl Member {
    fn join(config: &ClientConfig, topic: &str, seen: &Seen) -> Result<Self> {
        let consumer: Arc<StreamConsumer> = Arc::new(config.create()?);
        consumer.subscribe(&[topic])?;
        let stop = Arc::new(AtomicBool::new(false));
        let reading = tokio::spawn(read(consumer.clone(), stop.clone(), seen.clone()));
        Ok(Self {
            consumer,
            stop,
            reading,
        })
    }

    fn partitions(&self) -> usize {
        self.consumer
            .assignment()
            .map(|assignment| assignment.count())
            .unwrap_or(0)
    }

    /// Leaves the group as a good member does.
    async fn leave(self) -> Result<()> {
        self.stop.store(true, Ordering::Relaxed);
        self.reading.await?;
        let consumer = self.consumer;
        blocking(move || drop(consumer)).await;
        Ok(())
    }
}

async fn read(consumer: Arc<StreamConsumer>, stop: Arc<AtomicBool>, seen: Seen) {
    while !stop.load(Ordering::Relaxed) {
        // Errors here are those of a group that is agreeing anew; the records tell whether it succeeded.
        if let Ok(Ok(message)) = tokio::time::timeout(Duration::from_millis(100), consumer.recv()).await {
            let place = (message.partition(), message.offset());
            *seen
                .lock()
                .expect("nobody panics holding it")
                .entry(place)
                .or_default() += 1;
            let _ = consumer.commit_message(&message, CommitMode::Async);
        }
    }
}

/// Writes to every partition in turn until asked to stop; answers how many records were acknowledged.
fn keep_writing(
    target: &Target,
    topic: &str,
    stop: Arc<AtomicBool>,
) -> Result<(JoinHandle<()>, Arc<AtomicUsize>)> {
    let (producer, topic, written) = (
        target.producer()?,
        topic.to_owned(),
        Arc::new(AtomicUsize::new(0)),
    );
    let count = written.clone();
    let writing = tokio::spawn(async move {
        let mut number = 0;
        while !stop.load(Ordering::Relaxed) {
            if write(&producer, &topic, number % PARTITIONS, "x").await.is_ok() {
                count.fetch_add(1, Ordering::Relaxed);
            }
            number += 1;
            tokio::time::sleep(Duration::from_millis(3)).await;
        }
    });
    Ok((writing, written))
}

/// One member, then two, then one again, while records keep coming.
async fn hand_over(target: &Target, config: &ClientConfig) -> Result<()> {
    let topic = target.topic("group", PARTITIONS).await?;
    let all = PARTITIONS as usize;
    let (seen, stop) = (Seen::default(), Arc::new(AtomicBool::new(false)));
    let (writing, written) = keep_writing(target, &topic, stop.clone())?;

    let first = Member::join(config, &topic, &seen)?;
    eventually("the first member has everything", AGREEMENT, || {
        first.partitions() == all
    })
    .await?;
    let second = Member::join(config, &topic, &seen)?;
    let shared = || (first.partitions(), second.partitions()) == (all / 2, all / 2);
    eventually("each has half", AGREEMENT, shared).await?;
    tokio::time::sleep(Duration::from_millis(300)).await;
    second.leave().await?;
    eventually("the first has everything again", AGREEMENT, || {
        first.partitions() == all
    })
    .await?;
    stop.store(true, Ordering::Relaxed);
    writing.await?;

    let written = written.load(Ordering::Relaxed);
    let count = || seen.lock().expect("nobody panics holding it").len();
    eventually("every record is seen", AGREEMENT, || count() >= written).await?;
    first.leave().await?;
    ensure!(count() == written && written > 0, "{} seen of {written}", count());
    Ok(())
}

/// What the environment gives a member in a process of its own: bootstrap, group, topic.
const MEMBER_ORDERS: &str = "SPEECHVERSE_TEST_MEMBER";
const ASSIGNED: &str = "assigned";
const SESSION_TIMEOUT: Duration = Duration::from_secs(3);

fn mortal(target: &Target, group: &str) -> ClientConfig {
    let mut config = target.consumer(group);
    config
        .set("session.timeout.ms", SESSION_TIMEOUT.as_millis().to_string())
        .set("heartbeat.interval.ms", "300");
    config
}

/// A process that dies with its owner.
struct Mortal(Child);

impl Drop for Mortal {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

pub(crate) async fn take_over(target: Target) -> Result<()> {
    let (topic, group) = (target.topic("take-over", PARTITIONS).await?, unique("group"));
    let all = PARTITIONS as usize;
    let survivor = Member::join(&mortal(&target, &group), &topic, &Seen::default())?;
    eventually("the survivor has everything", AGREEMENT, || {
        survivor.partitions() == all
    })
    .await?;

    let orders = format!("{}|{group}|{topic}", target.bootstrap);
    let mut victim = Command::new(std::env::current_exe()?)
        .args(["--exact", "groups::member_process", "--ignored", "--nocapture"])
        .env(MEMBER_ORDERS, orders)
        .stdout(Stdio::piped())
        .spawn()
        .map(Mortal)?;
    let output = BufReader::new(victim.0.stdout.take().context("the output is piped")?);
    let assigned = blocking(move || {
        output
            .lines()
            .map_while(Result::ok)
            .any(|line| line.contains(ASSIGNED))
    })
    .await;
    ensure!(assigned, "the other process never got its partitions");
    eventually("each has half", AGREEMENT, || survivor.partitions() == all / 2).await?;
    drop(victim); // SIGKILL: no farewell
    let took = eventually("the survivor takes over", AGREEMENT, || {
        survivor.partitions() == all
    })
    .await?;

    survivor.leave().await?;
    let late = SESSION_TIMEOUT + Duration::from_secs(7);
    ensure!(took < late, "the dead member's partitions moved after {took:?}");
    Ok(())
}

/// The member that [`take_over`] starts in a process of its own and kills.
#[test]
#[ignore = "started by the checks of a killed member"]
fn member_process() {
    let orders = std::env::var(MEMBER_ORDERS).expect("the check that starts this process says what to do");
    let [bootstrap, group, topic]: [&str; 3] = orders
        .split('|')
        .collect::<Vec<_>>()
        .try_into()
        .expect("three orders");
    let target = Target {
        bootstrap: bootstrap.to_owned(),
        kind: Kind::Embedded,
    };
    crate::support::run(async {
        let consumer: StreamConsumer = mortal(&target, group).create()?;
        consumer.subscribe(&[topic])?;
        let mut is_printed = false;
        loop {
            let _ = tokio::time::timeout(Duration::from_millis(50), consumer.recv()).await;
            if !is_printed && consumer.assignment()?.count() == PARTITIONS as usize / 2 {
                writeln!(std::io::stdout(), "{ASSIGNED}")?;
                std::io::stdout().flush()?;
                is_printed = true;
            }
        }
    });
}

pub(crate) async fn listed(target: Target) -> Result<()> {
    let (topic, group) = (target.topic("listed", 1).await?, unique("group"));
    write(&target.producer()?, &topic, 0, "x").await?;
    let consumer: StreamConsumer = target.consumer(&group).set("client.id", "the-client").create()?;
    consumer.subscribe(&[&topic])?;
    let message = tokio::time::timeout(AGREEMENT, consumer.recv())
        .await
        .context("a record in time")??;
    ensure!(message.offset() == 0, "the first record");

    let client: StreamConsumer = target.client().set("group.id", unique("onlooker")).create()?;
    let (state, members, is_listed) = blocking(move || -> Result<_> {
        let limit = Duration::from_secs(10);
        let one = client.fetch_group_list(Some(&group), limit)?;
        let described = one.groups().first().context("the group is described")?;
        let members: Vec<String> = described
            .members()
            .iter()
            .map(|member| member.client_id().to_owned())
            .collect();
        let all = client.fetch_group_list(None, limit)?;
        let is_listed = all.groups().iter().any(|listed| listed.name() == group);
        Ok((described.state().to_owned(), members, is_listed))
    })
    .await?;

    ensure!(
        state == "Stable" && members == ["the-client"],
        "{state} {members:?}"
    );
    ensure!(is_listed, "the group is not among all groups");
    Ok(())
}
