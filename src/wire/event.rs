//! Life-cycle events: what happened to training, to the serving adapter, and to records that nobody could
//! answer.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::headers::header;
use super::{OutgoingRecord, number};

/// `ce_type` of every event.
pub const EVENT_TYPE: &str = "speechverse.event.v1";

/// An event: what, about which run, version, order or partition, when.
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq, JsonSchema)]
pub struct Event {
    /// Run, adapter version, order, or partition (`topic/number`); the record's key.
    pub id: String,
    /// When it happened.
    pub time: Timestamp,
    /// What happened.
    #[serde(flatten)]
    pub what: EventKind,
}

/// Outcome of a training cycle.
#[derive(Clone, Copy, Debug, Deserialize, Serialize, PartialEq, Eq, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// The candidate serves now.
    Promoted,
    /// The candidate was not better, or somebody changed the current version while it was trained; a normal
    /// outcome.
    Refused,
    /// There were too few held-out samples to tell; a candidate that looks better is kept, and an order can
    /// promote it.
    Undecided,
    /// The cycle did not get as far as a candidate.
    Failed,
}

impl Verdict {
    /// Every member.
    pub const ALL: &'static [Self] = &[Self::Promoted, Self::Refused, Self::Undecided, Self::Failed];

    /// Its name in metrics and JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Promoted => "promoted",
            Self::Refused => "refused",
            Self::Undecided => "undecided",
            Self::Failed => "failed",
        }
    }
}

/// What happened; distinguished by `type`.
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq, JsonSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum EventKind {
    /// A training cycle began.
    CycleStarted {
        /// Why: an order, the schedule, enough new samples.
        trigger: String,
        /// Version that the candidate starts from.
        parent: String,
        /// Samples to learn from.
        train_samples: usize,
        /// Samples to choose the best step by.
        #[serde(default)]
        valid_samples: usize,
        /// Samples to judge by.
        held_out_samples: usize,
    },
    /// A training cycle goes on.
    CycleProgress {
        /// Name of the stage.
        stage: String,
        /// Steps taken in it.
        step: u64,
        /// Loss of the latest step.
        #[serde(deserialize_with = "number::or_null")]
        #[schemars(with = "Option<f64>")]
        loss: f64,
    },
    /// A training cycle ended.
    CycleFinished {
        /// Its outcome.
        verdict: Verdict,
        /// Why.
        reason: String,
        /// Name of the candidate, when there is one.
        version: Option<String>,
        /// Named figures: word error rate before and after, samples, seconds.
        #[serde(deserialize_with = "number::map_or_null")]
        #[schemars(with = "BTreeMap<String, Option<f64>>")]
        metrics: BTreeMap<String, f64>,
    },
    /// New requests are pinned to another version from now on.
    AdapterSwapped {
        /// Version until now.
        from: String,
        /// Version from now on.
        to: String,
        /// Why: promoted, ordered, rolled back.
        reason: String,
    },
    /// An order was carried out. What it led to has events of its own: a cycle, another adapter.
    CommandObeyed {
        /// Name of the command.
        command: String,
    },
    /// The topic's retention deleted records before they were read.
    RecordsDeleted {
        /// Topic of the records.
        topic: String,
        /// Its partition.
        partition: i32,
        /// Offset of the first record that is gone.
        first_offset: i64,
        /// How many offsets from there on are gone.
        records: i64,
    },
    /// The broker takes neither an answer nor a dead letter of a record, which is passed over.
    RecordRefused {
        /// Topic of the record.
        topic: String,
        /// Its partition.
        partition: i32,
        /// Its offset.
        offset: i64,
        /// The broker's reason.
        reason: String,
    },
    /// An order could not be carried out.
    CommandRefused {
        /// Name of the command.
        command: String,
        /// Why.
        reason: String,
    },
    /// An order came too late to be carried out.
    CommandExpired {
        /// Name of the command.
        command: String,
        /// How late it is.
        reason: String,
    },
}

impl Event {
    /// An event that happens now.
    pub fn now(id: impl Into<String>, what: EventKind) -> Self {
        Self {
            id: id.into(),
            time: Timestamp::now(),
            what,
        }
    }

    /// The record of the event topic.
    pub fn to_record(&self, topic: Arc<str>, source: &str) -> OutgoingRecord {
        let json = serde_json::to_vec(self).expect("an event is always JSON");
        OutgoingRecord {
            topic,
            key: Some(Bytes::from(self.id.clone())),
            value: Some(Bytes::from(json)),
            headers: vec![
                header("ce_specversion", "1.0"),
                header("ce_type", EVENT_TYPE),
                header("ce_source", source),
                header("ce_id", format!("{}:{}", self.id, self.time)),
                header("ce_time", self.time.to_string()),
                header("ce_subject", self.id.as_str()),
                header("content-type", "application/json"),
            ],
        }
    }
}
