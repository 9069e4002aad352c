//! Orders to a running pipeline.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::headers::{Headers, refuse_unknown_type};
use super::rejection::{Reason, Rejection, Stage};
use super::{Record, RecordOffset};

/// `ce_type` of an order; it may be left out.
pub const ORDER_TYPE: &str = "speechverse.order.v1";
/// Most samples that one order names.
pub const FORGOTTEN_SAMPLES_MAX: usize = 1_000;
/// Hexadecimal digits in the id of a sample.
const SAMPLE_ID_DIGITS: usize = 64;
/// Longest id of an order and longest name of a version, bytes.
const NAME_BYTES_MAX: usize = 128;

/// What may be ordered; distinguished by `command` in the JSON of a control record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// Run a training cycle now.
    Retrain,
    /// Serve this version from now on.
    Promote {
        /// Name of the version.
        version: String,
    },
    /// Serve the parent of the current version, or the version named.
    Rollback {
        /// Name of the version to go back to.
        version: Option<String>,
    },
    /// Let training wait.
    Pause,
    /// Let training go on.
    Resume,
    /// Remove samples from the store for good.
    Forget {
        /// Their ids, whole, in hexadecimal digits; at least one and at most [`FORGOTTEN_SAMPLES_MAX`].
        samples: Vec<String>,
    },
}

impl Command {
    /// Its name in JSON and in events.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Retrain => "retrain",
            Self::Promote { .. } => "promote",
            Self::Rollback { .. } => "rollback",
            Self::Pause => "pause",
            Self::Resume => "resume",
            Self::Forget { .. } => "forget",
        }
    }

    fn version(&self) -> Option<&str> {
        match self {
            Self::Promote { version } => Some(version),
            Self::Rollback { version } => version.as_deref(),
            Self::Retrain | Self::Pause | Self::Resume | Self::Forget { .. } => None,
        }
    }

    fn samples(&self) -> Option<&[String]> {
        match self {
            Self::Forget { samples } => Some(samples),
            _ => None,
        }
    }
}

/// An order: a command, and the id under which events tell what became of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Order {
    /// The `id` of the JSON, else the header `ce_id`. For `retrain` it is also the id of the run.
    pub id: Option<String>,
    /// What is ordered.
    pub command: Command,
}

/// What a control record may say. Every order may bring an `id` and a `reason`; an unknown key is refused,
/// because a misspelt `version` must not become an order about another version.
#[derive(Default, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "Order")]
pub(super) struct OrderJson {
    /// `retrain`, `promote`, `rollback`, `pause`, `resume` or `forget`.
    command: String,
    /// Under which events tell what became of it; else `ce_id`, else its place.
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<String>,
    /// Adapter version: which one to promote, or to roll back to.
    #[serde(skip_serializing_if = "Option::is_none")]
    version: Option<String>,
    /// Ids of stored samples, 64 hexadecimal digits each, at most 1000: which ones to forget. Those that are
    /// not in the store are passed over.
    #[serde(skip_serializing_if = "Option::is_none")]
    samples: Option<Vec<String>>,
    /// For people.
    #[serde(rename = "reason", skip_serializing)]
    _reason: Option<String>,
}

impl OrderJson {
    fn command(&self) -> Result<Command, String> {
        match (self.command.as_str(), self.version.clone(), &self.samples) {
            ("retrain", None, None) => Ok(Command::Retrain),
            ("promote", Some(version), None) => Ok(Command::Promote { version }),
            ("promote", None, None) => Err("`promote` needs a `version`".to_owned()),
            ("rollback", version, None) => Ok(Command::Rollback { version }),
            ("pause", None, None) => Ok(Command::Pause),
            ("resume", None, None) => Ok(Command::Resume),
            ("forget", None, Some(samples)) => forget(samples),
            ("forget", None, None) => Err("`forget` needs `samples`".to_owned()),
            (name @ ("retrain" | "pause" | "resume" | "forget"), Some(_), _) => {
                Err(format!("`{name}` takes no `version`"))
            }
            (name @ ("retrain" | "promote" | "rollback" | "pause" | "resume"), _, Some(_)) => {
                Err(format!("`{name}` takes no `samples`"))
            }
            (other, ..) => {
                let found: String = other.chars().take(64).collect();
                Err(format!("there is no command `{}`", found.escape_debug()))
            }
        }
    }
}

fn forget(samples: &[String]) -> Result<Command, String> {
    let count = samples.len();
    if !(1..=FORGOTTEN_SAMPLES_MAX).contains(&count) {
        return Err(format!(
            "`samples` names {count}, expected 1 to {FORGOTTEN_SAMPLES_MAX}"
        ));
    }
    let is_id = |id: &&String| {
        id.len() == SAMPLE_ID_DIGITS && id.bytes().all(|digit| matches!(digit, b'0'..=b'9' | b'a'..=b'f'))
    };
    match samples.iter().find(|id| !is_id(id)) {
        None => Ok(Command::Forget {
            samples: samples.to_vec(),
        }),
        Some(other) => {
            let found: String = other.chars().take(SAMPLE_ID_DIGITS).collect();
            Err(format!(
                "`samples` holds `{}`, expected ids of {SAMPLE_ID_DIGITS} hexadecimal digits in lower case",
                found.escape_debug()
            ))
        }
    }
}

impl Order {
    /// Reads a record of the control topic.
    ///
    /// # Errors
    /// A [`Rejection`] when it is no such JSON, or of another type of ours.
    pub fn parse(record: &Record) -> Result<Self, Rejection> {
        let headers = Headers::new(&record.headers);
        refuse_unknown_type(headers, &[ORDER_TYPE], Stage::Control)?;
        let wrong = |message| Rejection::new(Reason::InvalidCommand, Stage::Control, message);
        let value = record.value.as_deref().unwrap_or_default();
        let value = value.strip_prefix(b"\xef\xbb\xbf").unwrap_or(value); // a byte order mark
        let json: Result<OrderJson, _> = serde_json::from_slice(value);
        let json = json.map_err(|error| error.to_string());
        let (json, command) = json.and_then(|json| json.command().map(|command| (json, command))).map_err(|error| {
            wrong(format!(
                "not a command: {error}; expected for example {{\"command\": \"retrain\"}} (retrain, promote, rollback, \
                 pause, resume, forget)"
            ))
        })?;
        let header = headers
            .text("ce_id", NAME_BYTES_MAX)
            .map_err(|rejection| wrong(rejection.message))?;
        let id = json.id.or_else(|| header.map(str::to_owned));
        for (what, name) in [("id", id.as_deref()), ("version", command.version())] {
            if let Some(name) = name.filter(|name| name.is_empty() || name.len() > NAME_BYTES_MAX) {
                let bytes = name.len();
                return Err(wrong(format!(
                    "`{what}` has {bytes} bytes, expected 1 to {NAME_BYTES_MAX}"
                )));
            }
        }
        Ok(Self { id, command })
    }

    /// The id that the order brings, else one made of its place in the topic.
    pub fn id_at(&self, record_offset: &RecordOffset) -> String {
        let kind = if self.command == Command::Retrain {
            "run"
        } else {
            "order"
        };
        let place = || {
            format!(
                "{kind}-{}-{}-{}",
                record_offset.topic, record_offset.partition, record_offset.offset
            )
        };
        self.id.clone().unwrap_or_else(place)
    }

    /// The JSON of a control record.
    pub fn to_json(&self) -> String {
        let json = OrderJson {
            command: self.command.name().to_owned(),
            id: self.id.clone(),
            version: self.command.version().map(str::to_owned),
            samples: self.command.samples().map(<[String]>::to_vec),
            _reason: None,
        };
        serde_json::to_string(&json).expect("texts are always JSON")
    }
}
