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
pub(crate) struct Inbox {
    /// What the source brings, for the log.
    name: &'static str,
    events: flume::Receiver<SourceEvent>,
    ticks: Ticks,
    /// Nothing is taken from the source while it is full.
    audio: AudioGauge,
    ended: bool,
}

impl Inbox {
    /// Takes events from a source of `name` while `audio` has space, and looks up every `tick` of `clock`.
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
            let event = async {
                self.audio.below_bound().await;
                self.events.recv_async().await
            };
            let event = tokio::select! {
                biased;
                signal = mailbox.recv() => return Arrival::Signal(signal),
                event = event => event,
                () = self.ticks.next() => return Arrival::Tick,
            };
            match event {
                Ok(SourceEvent::Record(record)) => return Arrival::Record(record),
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
