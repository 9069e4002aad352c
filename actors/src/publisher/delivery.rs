//! What a send is about, and how it ended.

use speechverse::kafka::SinkError;
use speechverse::wire::{Record, RecordOffset};

/// The records that a send is about.
pub(super) enum About {
    /// The answer to a record, and the chunks before it.
    Answer {
        record: Record,
        earlier: Vec<RecordOffset>,
        request_id: String,
    },
    /// The dead letter of a record, and of the chunks before it.
    DeadLetter {
        record_offset: RecordOffset,
        earlier: Vec<RecordOffset>,
    },
    /// No record: an event.
    Event,
}

impl About {
    /// Record offsets that the send settles, the record's own last.
    pub(super) fn record_offsets(&self) -> Vec<&RecordOffset> {
        let (record_offset, earlier) = match self {
            About::Answer { record, earlier, .. } => (&record.record_offset, earlier),
            About::DeadLetter {
                record_offset,
                earlier,
            } => (record_offset, earlier),
            About::Event => return Vec::new(),
        };
        earlier.iter().chain([record_offset]).collect()
    }
}

/// How a send ended.
pub(super) enum Delivery {
    Acknowledged,
    /// It was not sent: the record's partition was taken away, and who has it now reads the record again.
    Void,
    /// The broker refuses it, whatever is left out.
    Refused(SinkError),
    /// The process stops; the record is read again after the restart.
    Stopped,
}
