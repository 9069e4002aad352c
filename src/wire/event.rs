//! Life-cycle events: what the program tells about its learning and its state.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::OutgoingRecord;
use super::headers::cloud_event_headers;

/// `ce_type` of every event.
const EVENT_TYPE: &str = "speechverse.event.v1";

/// Something happened. In JSON: `{"run": …, "time": …, "type": …, …}`.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct LifecycleEvent {
    /// The training run, or the adapter or command that it is about; the record's key.
    pub run: String,
    /// When.
    pub time: Timestamp,
    /// What.
    #[serde(flatten)]
    pub occurrence: Occurrence,
}

/// What happened; the `type` of the event.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Occurrence {
    /// A fine-tuning cycle began.
    CycleStarted {
        /// What set it off: `order`, `schedule`, `samples`.
        trigger: String,
        /// The adapter version that it starts from.
        parent: String,
        /// Samples in the snapshot.
        samples: u64,
        /// The control command that ordered it.
        #[serde(default)]
        command_id: Option<String>,
    },
    /// Some steps are done.
    Progress {
        /// Stage of the curriculum.
        stage: String,
        /// Steps done in it.
        step: u64,
        /// Steps that it will have.
        steps: u64,
        /// Training loss, nats per token.
        loss: f64,
    },
    /// A cycle ended.
    CycleFinished {
        /// What came of it.
        verdict: Verdict,
        /// Why, in words.
        reason: String,
        /// The new adapter version, when there is one.
        #[serde(default)]
        adapter: Option<String>,
        /// Figures that the verdict rests on.
        #[serde(default)]
        metrics: BTreeMap<String, f64>,
        /// The control command that ordered the cycle.
        #[serde(default)]
        command_id: Option<String>,
    },
    /// New requests are answered with another adapter version.
    AdapterSwapped {
        /// The version before.
        from: String,
        /// The version from now on.
        to: String,
    },
    /// A control command is carried out.
    CommandAccepted {
        /// Its name.
        command: String,
        /// Its id.
        command_id: String,
    },
    /// A control command is not carried out.
    CommandRefused {
        /// Its name, when it could be read.
        command: Option<String>,
        /// Its id.
        command_id: String,
        /// Why, in words.
        reason: String,
    },
    /// No more requests are taken.
    Paused,
    /// Requests are taken again.
    Resumed,
}

/// What came of a cycle.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// The candidate is better and serves now.
    Promoted,
    /// The candidate is not better; the incumbent stays.
    Refused,
    /// The cycle did not come to a candidate.
    Failed,
}

impl Verdict {
    /// The name on the wire and in metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Promoted => "promoted",
            Self::Refused => "refused",
            Self::Failed => "failed",
        }
    }
}

impl LifecycleEvent {
    /// The record in binary mode, keyed by the run. `id` makes it unique under its source.
    pub fn to_record(&self, topic: Arc<str>, id: &str, source: &str) -> OutgoingRecord {
        let value =
            serde_json::to_vec(self).expect("texts and numbers can always be written as JSON");
        let content_type = Some("application/json");
        let headers = cloud_event_headers(EVENT_TYPE, id, source, self.time, content_type, None);
        OutgoingRecord {
            topic,
            key: Some(Bytes::from(self.run.clone())),
            value: Some(value.into()),
            headers,
        }
    }

    /// Reads the value of a record of the events topic.
    ///
    /// # Errors
    /// When it is no event that this version knows.
    pub fn from_value(value: &[u8]) -> Result<Self, serde_json::Error> {
        serde_json::from_slice(value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::Headers;

    fn event(occurrence: Occurrence) -> LifecycleEvent {
        LifecycleEvent {
            run: "run-7".to_owned(),
            time: "2030-01-01T00:00:00Z".parse().unwrap(),
            occurrence,
        }
    }

    #[test]
    fn events_look_as_they_always_did_and_are_read_back() {
        let finished = Occurrence::CycleFinished {
            verdict: Verdict::Refused,
            reason: "word error rate rose".to_owned(),
            adapter: Some("demo-0004".to_owned()),
            metrics: BTreeMap::from([("asr.wer".to_owned(), 0.25)]),
            command_id: Some("c-1".to_owned()),
        };
        let cases = [
            (
                Occurrence::CycleStarted {
                    trigger: "order".to_owned(),
                    parent: "demo-0003".to_owned(),
                    samples: 20,
                    command_id: None,
                },
                r#"{"run":"run-7","time":"2030-01-01T00:00:00Z","type":"cycle_started","trigger":"order","parent":"demo-0003","samples":20,"command_id":null}"#,
            ),
            (
                Occurrence::Progress {
                    stage: "one".to_owned(),
                    step: 3,
                    steps: 9,
                    loss: 1.5,
                },
                r#"{"run":"run-7","time":"2030-01-01T00:00:00Z","type":"progress","stage":"one","step":3,"steps":9,"loss":1.5}"#,
            ),
            (
                finished,
                r#"{"run":"run-7","time":"2030-01-01T00:00:00Z","type":"cycle_finished","verdict":"refused","reason":"word error rate rose","adapter":"demo-0004","metrics":{"asr.wer":0.25},"command_id":"c-1"}"#,
            ),
            (
                Occurrence::AdapterSwapped {
                    from: "a".to_owned(),
                    to: "b".to_owned(),
                },
                r#"{"run":"run-7","time":"2030-01-01T00:00:00Z","type":"adapter_swapped","from":"a","to":"b"}"#,
            ),
            (
                Occurrence::CommandAccepted {
                    command: "pause".to_owned(),
                    command_id: "c".to_owned(),
                },
                r#"{"run":"run-7","time":"2030-01-01T00:00:00Z","type":"command_accepted","command":"pause","command_id":"c"}"#,
            ),
            (
                Occurrence::CommandRefused {
                    command: None,
                    command_id: "c".to_owned(),
                    reason: "no".to_owned(),
                },
                r#"{"run":"run-7","time":"2030-01-01T00:00:00Z","type":"command_refused","command":null,"command_id":"c","reason":"no"}"#,
            ),
            (
                Occurrence::Paused,
                r#"{"run":"run-7","time":"2030-01-01T00:00:00Z","type":"paused"}"#,
            ),
            (
                Occurrence::Resumed,
                r#"{"run":"run-7","time":"2030-01-01T00:00:00Z","type":"resumed"}"#,
            ),
        ];

        for (occurrence, json) in cases {
            let event = event(occurrence);

            assert_eq!(serde_json::to_string(&event).unwrap(), json);
            assert_eq!(LifecycleEvent::from_value(json.as_bytes()).unwrap(), event);
        }
    }

    #[test]
    fn an_event_is_keyed_by_its_run() {
        let record = event(Occurrence::Paused).to_record("events".into(), "e-1", "/speechverse");

        assert_eq!(record.key, Some(Bytes::from_static(b"run-7")));
        let headers = Headers(&record.headers);
        assert_eq!(headers.text("ce_type"), Ok(Some("speechverse.event.v1")));
        assert_eq!(headers.text("ce_id"), Ok(Some("e-1")));
        assert_eq!(headers.text("content-type"), Ok(Some("application/json")));
    }

    #[test]
    fn an_event_of_a_later_version_is_an_error_and_no_panic() {
        let json = br#"{"run":"r","time":"2030-01-01T00:00:00Z","type":"invented"}"#;

        assert!(LifecycleEvent::from_value(json).is_err());
    }
}
