//! What travels on topics: records, requests, answers, dead letters, headers.

mod record;

pub use record::{OutgoingRecord, Receipt, Record};
