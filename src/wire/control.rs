//! Orders on the control topic.

use std::sync::Arc;

use bytes::Bytes;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::headers::cloud_event_headers;
use super::incoming::{Incoming, Limits};
use super::{OutgoingRecord, Reason, Record, Rejection, Stage};

/// `ce_type` that we send; records of any type are read.
const CONTROL_TYPE: &str = "speechverse.control.v1";

/// Largest command, bytes.
const COMMAND_BYTES_MAX: usize = 64 * 1024;

/// What is ordered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// Run a fine-tuning cycle now.
    Retrain,
    /// Serve with this adapter version from now on.
    Promote {
        /// The version.
        version: String,
    },
    /// Go back to an earlier adapter version.
    Rollback {
        /// The version; the parent of the present one when absent.
        version: Option<String>,
    },
    /// Take no more requests.
    Pause,
    /// Take requests again.
    Resume,
}

impl Command {
    /// The name on the wire.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Retrain => "retrain",
            Self::Promote { .. } => "promote",
            Self::Rollback { .. } => "rollback",
            Self::Pause => "pause",
            Self::Resume => "resume",
        }
    }
}

/// An order and who may ask about it later.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ControlCommand {
    /// The `id` in the value, else `ce_id`, else `topic/partition/offset`. Events about the order carry it.
    pub id: String,
    /// What is ordered.
    pub command: Command,
    /// Why, for the record.
    pub reason: Option<String>,
}

/// The value, as JSON.
#[derive(Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct Body {
    command: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    id: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    version: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
}

/// Reads a record of the control topic. Unknown keys are refused: a misspelt `version` must not become an order about
/// another version.
///
/// # Errors
/// A [`Rejection`] of stage `control`.
pub fn parse_control(record: &Record) -> Result<ControlCommand, Rejection> {
    let refuse = |reason, message: String| Err(Rejection::new(reason, Stage::Control, message));
    let limits = Limits {
        value_bytes_max: COMMAND_BYTES_MAX,
        ..Limits::default()
    };
    let at_control = |rejection: Rejection| Rejection {
        stage: Stage::Control,
        ..rejection
    };
    let incoming = Incoming::new(record, &limits).map_err(at_control)?;
    let Some(data) = incoming.data() else {
        let message = r#"the value is empty, expected for example {"command": "retrain"}"#;
        return refuse(Reason::EmptyValue, message.to_owned());
    };
    let body: Body = match serde_json::from_slice(&data) {
        Ok(body) => body,
        Err(error) => return refuse(Reason::MalformedControl, format!("the value: {error}")),
    };

    let command = match (body.command.as_str(), body.version) {
        ("retrain", None) => Command::Retrain,
        ("promote", Some(version)) => Command::Promote { version },
        ("promote", None) => {
            let message = "`promote` needs a `version`".to_owned();
            return refuse(Reason::MalformedControl, message);
        }
        ("rollback", version) => Command::Rollback { version },
        ("pause", None) => Command::Pause,
        ("resume", None) => Command::Resume,
        (name @ ("retrain" | "pause" | "resume"), Some(_)) => {
            let message = format!("`{name}` takes no `version`");
            return refuse(Reason::MalformedControl, message);
        }
        (other, _) => {
            let found: String = other.chars().take(60).collect();
            let message = format!(
                "there is no command `{}`, expected `retrain`, `promote`, `rollback`, `pause` or `resume`",
                found.escape_debug()
            );
            return refuse(Reason::UnknownCommand, message);
        }
    };
    let too_long = |text: &Option<String>| {
        text.as_ref()
            .is_some_and(|text| text.len() > limits.id_bytes_max)
    };
    let version = match &command {
        Command::Promote { version }
        | Command::Rollback {
            version: Some(version),
        } => Some(version.clone()),
        _ => None,
    };
    if too_long(&body.id) || too_long(&version) {
        let message = format!(
            "`id` or `version` has more than {} bytes",
            limits.id_bytes_max
        );
        return refuse(Reason::MalformedControl, message);
    }
    let id = match body.id {
        Some(id) => id,
        None => incoming.id().map_err(at_control)?,
    };
    Ok(ControlCommand {
        id,
        command,
        reason: body.reason,
    })
}

impl ControlCommand {
    /// The record in binary mode.
    pub fn to_record(
        &self,
        topic: Arc<str>,
        key: Option<Bytes>,
        source: &str,
        time: Timestamp,
    ) -> OutgoingRecord {
        let version = match &self.command {
            Command::Promote { version } => Some(version.clone()),
            Command::Rollback { version } => version.clone(),
            Command::Retrain | Command::Pause | Command::Resume => None,
        };
        let body = Body {
            command: self.command.name().to_owned(),
            id: Some(self.id.clone()),
            version,
            reason: self.reason.clone(),
        };
        let value = serde_json::to_vec(&body).expect("texts can always be written as JSON");
        let content_type = Some("application/json");
        let headers = cloud_event_headers(CONTROL_TYPE, &self.id, source, time, content_type, None);
        OutgoingRecord {
            topic,
            key,
            value: Some(value.into()),
            headers,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::wire::{Receipt, header};

    fn record(value: impl Into<Bytes>) -> Record {
        Record {
            receipt: Receipt {
                topic: "control".into(),
                partition: 0,
                offset: 9,
                epoch: 0,
            },
            key: None,
            value: Some(value.into()),
            headers: Vec::new(),
            timestamp_ms: None,
        }
    }

    #[test]
    fn the_smallest_order_is_a_command() {
        let order = parse_control(&record(r#"{"command": "retrain"}"#)).unwrap();

        assert_eq!(
            order,
            ControlCommand {
                id: "control/0/9".to_owned(),
                command: Command::Retrain,
                reason: None
            }
        );
    }

    #[test]
    fn what_is_no_order_is_refused_with_its_reason() {
        for (value, reason) in [
            ("", Reason::EmptyValue),
            ("retrain", Reason::MalformedControl),
            ("{}", Reason::MalformedControl),
            (r#"{"command": 7}"#, Reason::MalformedControl),
            (r#"{"command": "dance"}"#, Reason::UnknownCommand),
            (r#"{"command": "promote"}"#, Reason::MalformedControl),
            (
                r#"{"command": "rollback", "verison": "1"}"#,
                Reason::MalformedControl,
            ),
            (
                r#"{"command": "pause", "version": "1"}"#,
                Reason::MalformedControl,
            ),
        ] {
            let rejection = parse_control(&record(value)).unwrap_err();

            assert_eq!(
                (rejection.reason, rejection.stage),
                (reason, Stage::Control),
                "{value}"
            );
        }
    }

    #[test]
    fn an_order_is_read_from_a_structured_event_too() {
        let mut record =
            record(r#"{"id": "c-1", "data": {"command": "promote", "version": "demo-0002"}}"#);
        record.headers = vec![header("content-type", "application/cloudevents+json")];

        let order = parse_control(&record).unwrap();

        assert_eq!(order.id, "c-1");
        assert_eq!(
            order.command,
            Command::Promote {
                version: "demo-0002".to_owned()
            }
        );
    }

    proptest! {
        #[test]
        fn what_is_sent_is_read_back(
            id in "[a-z0-9-]{1,20}", version in "\\PC{0,20}", reason in prop::option::of("\\PC{0,40}"),
            which in 0..6_usize,
        ) {
            let command = [
                Command::Retrain, Command::Promote { version: version.clone() },
                Command::Rollback { version: Some(version) }, Command::Rollback { version: None },
                Command::Pause, Command::Resume,
            ][which].clone();
            let order = ControlCommand { id, command, reason };

            let sent = order.to_record("control".into(), None, "/cli", Timestamp::UNIX_EPOCH);
            let read = parse_control(&Record { headers: sent.headers, ..record(sent.value.unwrap()) });

            prop_assert_eq!(read, Ok(order));
        }
    }
}
