//! What a producer of transactions can do, and why it could not.

use crate::kafka::error::SinkError;
use crate::kafka::offset_tracker::Position;
use crate::wire::OutgoingRecord;

/// Why a call of a [`TransactionalProducer`] failed, by what helps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::kafka) enum Fault {
    /// The same call again.
    Retry(String),
    /// Only to abort the transaction.
    Abort(String),
    /// To abort, and to wait for the group: we are not the member that we were, or the group is sharing out
    /// its partitions.
    Stale(String),
    /// To abort, and to send offsets without metadata.
    MemoryTooLong,
    /// Nothing: another producer has the same transactional id, or the broker ended a transaction that had
    /// been open for too long.
    Fenced(String),
    /// Another producer.
    Fatal(String),
    /// Nothing: the broker does not do this, or not for us.
    Refused(String),
}

/// Why records could not be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::kafka) struct WriteFault {
    /// Records that will never be taken, by their place, with the reason.
    pub(in crate::kafka) refused: Vec<(usize, SinkError)>,
    /// What helps beside.
    pub(in crate::kafka) fault: Fault,
}

/// A producer of transactions.
pub(in crate::kafka) trait TransactionalProducer {
    /// Who commits offsets: a consumer's membership in its group.
    type Group;

    /// Takes the transactional id over: earlier producers of the same id are shut out, and what they left
    /// open is aborted.
    fn init(&mut self) -> Result<(), Fault>;

    /// Begins a transaction.
    fn begin(&mut self) -> Result<(), Fault>;

    /// Writes records and waits until all are acknowledged.
    fn write(&mut self, records: &[&OutgoingRecord]) -> Result<(), WriteFault>;

    /// Makes positions part of the transaction.
    fn send_offsets(&mut self, positions: &[Position], group: &Self::Group) -> Result<(), Fault>;

    /// Commits. After anything but success and [`Fault::Retry`] it is not known whether it is committed.
    fn commit(&mut self) -> Result<(), Fault>;

    /// Aborts.
    fn abort(&mut self) -> Result<(), Fault>;

    /// Puts another producer of the same id in the place of one that failed for good, or for too long.
    fn renew(&mut self) -> Result<(), Fault>;
}

impl Fault {
    /// What the producer said.
    pub(super) fn reason(&self) -> String {
        match self {
            Self::Retry(reason)
            | Self::Abort(reason)
            | Self::Stale(reason)
            | Self::Fenced(reason)
            | Self::Fatal(reason)
            | Self::Refused(reason) => reason.clone(),
            Self::MemoryTooLong => "the metadata of an offset is too long".to_owned(),
        }
    }
}
