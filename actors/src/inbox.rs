//! `Inbox`: what an actor behind a source waits for: its mailbox, the source's channel, a clock.

use std::time::Duration;

use kameo::mailbox::{MailboxReceiver, Signal};
use kameo::prelude::*;
use speechverse::kafka::{AudioGauge, Revocation, SourceEvent};
use speechverse::util::{Clock, Ticks};
use speechverse::wire::Record;
use tracing::{debug, error};

/// What came first.
pub(crate) enum Arrival<A: Actor> {
    /// Of the mailbox; none when it is closed.
    Signal(Option<Signal<A>>),
    /// Of the source.
    Record(Record),
    /// Partitions of the source are being taken away.
    Revoked(Revocation),
    /// The clock.
    Tick,
}

/// A source's channel beside the mailbox, for [`Actor::next`]. Messages go first, then records, then the
/// clock.
///
/// The channel is read also while a partition has its share of the audio in flight: records of such a
/// partition are deferred, so that they do not stand before those of others.
pub(crate) struct Inbox {
    /// What the source brings, for the log.
    name: &'static str,
    events: flume::Receiver<SourceEvent>,
    ticks: Ticks,
    /// Which records have to wait, and those that do.
    audio: AudioGauge,
    ended: bool,
}

impl Inbox {
    /// Takes events from a source of `name`, records as far as `audio` admits them, and looks up every `tick`
    /// of `clock`.
    pub(crate) fn new(
        name: &'static str,
        events: flume::Receiver<SourceEvent>,
        audio: AudioGauge,
        tick: Duration,
        clock: Clock,
    ) -> Self {
        Self {
            name,
            events,
            ticks: Ticks::new(clock, tick),
            audio,
            ended: false,
        }
    }

    /// Waits for the next arrival. When the source has ended, only the mailbox is left.
    pub(crate) async fn next<A: Actor>(&mut self, mailbox: &mut MailboxReceiver<A>) -> Arrival<A> {
        while !self.ended {
            let event = tokio::select! {
                biased;
                signal = mailbox.recv() => return Arrival::Signal(signal),
                // They are few, and their partition is paused while there are any.
                record = self.audio.deferred() => return Arrival::Record(record),
                event = self.events.recv_async() => event,
                () = self.ticks.next() => return Arrival::Tick,
            };
            match event {
                Ok(SourceEvent::Record(record)) => {
                    if let Some(record) = self.audio.admit(record) {
                        return Arrival::Record(record);
                    }
                }
                Ok(SourceEvent::Revoked(revocation)) => {
                    let (partitions, lost) = (&revocation.partitions, revocation.lost);
                    debug!(source = self.name, ?partitions, lost, "partitions revoked");
                    return Arrival::Revoked(revocation);
                }
                Ok(SourceEvent::Assigned { partitions, epoch }) => {
                    debug!(source = self.name, ?partitions, epoch, "partitions assigned");
                }
                Ok(SourceEvent::Failed(error)) => error!(%error, source = self.name, "a source has ended"),
                Err(flume::RecvError::Disconnected) => self.ended = true,
            }
        }
        Arrival::Signal(mailbox.recv().await)
    }
}

#[cfg(test)]
mod tests {
    use kameo::mailbox::{self, MailboxSender};
    use speechverse::kafka::{AudioHold, TopicPartition};
    use speechverse::wire::RecordOffset;

    use super::*;

    #[derive(Actor)]
    struct Reader;

    /// An inbox with room for 60 s, and what leads to it.
    struct Fixture {
        inbox: Inbox,
        source: flume::Sender<SourceEvent>,
        audio: AudioGauge,
        mailbox: MailboxReceiver<Reader>,
        _to_mailbox: MailboxSender<Reader>,
    }

    impl Fixture {
        fn new() -> Self {
            let (source, events) = flume::bounded(4);
            let (_to_mailbox, mailbox) = mailbox::bounded(1);
            let audio = AudioGauge::new(60.0);
            let tick = Duration::from_secs(1);
            Self {
                inbox: Inbox::new("test", events, audio.clone(), tick, Clock::manual()),
                source,
                audio,
                mailbox,
                _to_mailbox,
            }
        }

        async fn send(&self, partition: i32, offset: i64) {
            let record = Record {
                record_offset: RecordOffset {
                    topic: "requests".into(),
                    partition,
                    offset,
                    epoch: 1,
                },
                key: None,
                value: None,
                headers: Vec::new(),
                timestamp_ms: None,
            };
            self.source.send_async(SourceEvent::Record(record)).await.unwrap();
        }

        fn hold(&self, partition: i32, seconds: f64) -> AudioHold {
            let partition = TopicPartition::new("requests", partition);
            self.audio.hold(partition, seconds)
        }

        /// Partition and offset of the next record; `None` when there is none for a while.
        async fn record(&mut self) -> Option<(i32, i64)> {
            let next = async {
                loop {
                    match self.inbox.next(&mut self.mailbox).await {
                        Arrival::Record(record) => return record.record_offset,
                        Arrival::Tick => {} // the first one is due at once
                        Arrival::Signal(_) | Arrival::Revoked(_) => panic!("no record"),
                    }
                }
            };
            let found = tokio::time::timeout(Duration::from_millis(100), next).await;
            found.ok().map(|found| (found.partition, found.offset))
        }
    }

    /// Each clip is a third of what one partition may have; none is finished meanwhile.
    #[tokio::test]
    async fn a_record_behind_the_backlog_of_another_partition_is_taken_at_once() {
        let mut fixture = Fixture::new();
        let mut held = Vec::new();
        for offset in 0..3 {
            fixture.send(0, offset).await;
            assert_eq!(fixture.record().await, Some((0, offset)));
            held.push(fixture.hold(0, 10.0));
        }
        for offset in 3..6 {
            fixture.send(0, offset).await;
        }
        fixture.send(1, 0).await;

        assert_eq!(fixture.record().await, Some((1, 0)));
        assert_eq!(fixture.record().await, None, "the others' share is in flight");
        assert!(fixture.source.is_empty(), "so that the source may read on");
        fixture.send(0, 6).await;
        held.clear();
        let mut order = Vec::new();
        while let Some(place) = fixture.record().await {
            order.push(place);
        }
        assert_eq!(order, [(0, 3), (0, 4), (0, 5), (0, 6)]);
    }

    #[tokio::test]
    async fn what_was_deferred_is_there_for_an_inbox_that_is_made_anew() {
        let mut fixture = Fixture::new();
        let held = fixture.hold(0, 30.0);
        fixture.send(0, 0).await;
        assert_eq!(fixture.record().await, None);

        let audio = fixture.audio.clone();
        let (events, tick) = (fixture.inbox.events.clone(), Duration::from_secs(1));
        fixture.inbox = Inbox::new("test", events, audio, tick, Clock::manual());
        drop(held);

        assert_eq!(fixture.record().await, Some((0, 0)));
    }
}
