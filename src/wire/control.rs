//! Orders to a running pipeline.

use serde::{Deserialize, Serialize};

use super::Record;
use super::dead_letter::{Reason, Rejection, Stage};

/// What may be ordered; the JSON of a control record, told apart by `command`.
#[derive(Clone, Debug, Serialize, PartialEq, Eq)]
#[serde(tag = "command", rename_all = "snake_case")]
pub enum Command {
    /// Run a training cycle now.
    Retrain {
        /// Id for the run, so that whoever ordered it can follow its events.
        #[serde(skip_serializing_if = "Option::is_none")]
        id: Option<String>,
    },
    /// Serve this version from now on.
    Promote {
        /// Name of the version.
        version: String,
    },
    /// Serve the parent of the current version, or the version named.
    Rollback {
        /// Name of the version to go back to.
        #[serde(skip_serializing_if = "Option::is_none")]
        version: Option<String>,
    },
    /// Let training wait.
    Pause,
    /// Let training go on.
    Resume,
}

/// What a control record may say. Every order may bring an `id` and a `reason`, whether they are used or not; an unknown
/// key is refused, because a misspelt `version` must not become an order about another version.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Order {
    command: String,
    id: Option<String>,
    version: Option<String>,
    #[serde(rename = "reason")]
    _reason: Option<String>,
}

impl Order {
    fn command(self) -> Result<Command, String> {
        match (self.command.as_str(), self.version) {
            ("retrain", None) => Ok(Command::Retrain { id: self.id }),
            ("promote", Some(version)) => Ok(Command::Promote { version }),
            ("promote", None) => Err("`promote` needs a `version`".to_owned()),
            ("rollback", version) => Ok(Command::Rollback { version }),
            ("pause", None) => Ok(Command::Pause),
            ("resume", None) => Ok(Command::Resume),
            (name @ ("retrain" | "pause" | "resume"), Some(_)) => Err(format!("`{name}` takes no `version`")),
            (other, _) => {
                let found: String = other.chars().take(64).collect();
                Err(format!("there is no command `{}`", found.escape_debug()))
            }
        }
    }
}

impl Command {
    /// Reads a record of the control topic.
    ///
    /// # Errors
    /// A [`Rejection`] when it is no such JSON.
    pub fn parse(record: &Record) -> Result<Self, Rejection> {
        let value = record.value.as_deref().unwrap_or_default();
        let wrong = |message| Rejection::new(Reason::InvalidCommand, Stage::Control, message);
        let order: Result<Order, _> = serde_json::from_slice(value);
        let command = order.map_err(|error| error.to_string()).and_then(Order::command).map_err(|error| {
            wrong(format!(
                "not a command: {error}; expected for example {{\"command\": \"retrain\"}} (retrain, promote, rollback, \
                 pause, resume)"
            ))
        })?;
        let names = match &command {
            Self::Retrain { id } => id.as_deref(),
            Self::Promote { version } => Some(version.as_str()),
            Self::Rollback { version } => version.as_deref(),
            Self::Pause | Self::Resume => None,
        };
        if let Some(name) = names.filter(|name| name.is_empty() || name.len() > 128) {
            return Err(wrong(format!(
                "a name of {} bytes, expected 1 to 128",
                name.len()
            )));
        }
        Ok(command)
    }

    /// The JSON of a control record.
    pub fn to_json(&self) -> String {
        serde_json::to_string(self).expect("a plain enum is always JSON")
    }
}
