//! What travels on topics: records, requests, answers, dead letters, headers.
//!
//! Everything that comes in is untrusted: what cannot be understood becomes a [`Rejection`] with one [`Reason`] of a
//! closed list, and [`dead_letter`] turns the record and the rejection into the record for the dead-letter topic.
//!
//! ```text
//! requests ─ parse_request ─▶ Request            labels ─ parse_label ─▶ LabelRecord
//! control ── parse_control ─▶ ControlCommand     Answer, LifecycleEvent ─ to_record ─▶ OutgoingRecord
//!                        └──▶ Rejection ─ dead_letter ─▶ OutgoingRecord
//! ```
//!
//! Records are CloudEvents 1.0 in the Kafka binding: binary mode (attributes in `ce_…` headers, the value as it is)
//! or structured mode (`content-type: application/cloudevents+json`, the attributes and `data_base64` in JSON).

mod answer;
mod control;
mod dead_letter;
mod event;
mod headers;
mod incoming;
mod label;
mod record;
mod request;
mod trace;

pub use answer::{Answer, AnswerError, AnswerFlag, AnswerKind, TimingMs, answer_id, milliseconds};
pub use control::{Command, ControlCommand, parse_control};
pub use dead_letter::{Reason, Rejection, Stage, dead_letter, times_dead_lettered};
pub use event::{LifecycleEvent, Occurrence, Verdict};
pub use headers::{Headers, cloud_event_headers, header};
pub use incoming::{Limits, default_id};
pub use label::{Correction, LabelRecord, LabelledSample, NewLabel, parse_label};
pub use record::{OutgoingRecord, Receipt, Record};
pub use request::{
    InstructionSource, NewRequest, Request, RequestDefaults, RequestKind, TaskDefaults,
    parse_request,
};
pub use trace::TraceContext;
