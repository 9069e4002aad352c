//! Properties that are passed on to librdkafka: which are allowed, which are secret, and where secrets come from.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize, Serializer};

use crate::util::ConfigError;

/// What a secret prints as.
const HIDDEN: &str = "***";
/// A value that begins with this is the name of an environment variable.
const ENV_PREFIX: &str = "env:";

/// Properties that this program needs as it sets them, and where to turn instead.
const FORBIDDEN: &[(&str, &str)] = &[
    ("bootstrap.servers", "set `kafka.bootstrap`"),
    ("metadata.broker.list", "set `kafka.bootstrap`"),
    ("group.id", "set `kafka.group_id`"),
    ("session.timeout.ms", "set `kafka.session_timeout_ms`"),
    ("message.max.bytes", "set `kafka.message_bytes_max`"),
    ("fetch.message.max.bytes", "set `kafka.message_bytes_max`"),
    ("max.partition.fetch.bytes", "set `kafka.message_bytes_max`"),
    ("fetch.max.bytes", "set `kafka.message_bytes_max`"),
    ("receive.message.max.bytes", "set `kafka.message_bytes_max`"),
    ("message.timeout.ms", "set `kafka.send_timeout_ms`"),
    ("delivery.timeout.ms", "set `kafka.send_timeout_ms`"),
    (
        "enable.auto.commit",
        "offsets move only after the answer is acknowledged",
    ),
    (
        "auto.commit.enable",
        "offsets move only after the answer is acknowledged",
    ),
    ("auto.commit.interval.ms", "set `kafka.commit_interval_ms`"),
    (
        "enable.auto.offset.store",
        "offsets move only after the answer is acknowledged",
    ),
    (
        "offset.store.method",
        "offsets move only after the answer is acknowledged",
    ),
    (
        "auto.offset.reset",
        "a new group reads from the beginning, so that no request is lost",
    ),
    ("enable.partition.eof", "the readers decide it"),
    ("isolation.level", "aborted records are never answered"),
    ("enable.idempotence", "the producer is always idempotent"),
    ("acks", "an answer counts only when every in-sync replica has it"),
    (
        "request.required.acks",
        "an answer counts only when every in-sync replica has it",
    ),
    ("transactional.id", "set `kafka.delivery`"),
    ("statistics.interval.ms", "consumer lag is computed from it"),
    ("log.queue", "logs go through tracing"),
    (
        "test.mock.num.brokers",
        "it would answer from a mock instead of the broker",
    ),
];

/// A table of librdkafka properties; secrets print as `***`.
#[derive(Clone, Default, Deserialize, PartialEq, Eq)]
#[serde(transparent)]
pub struct ClientOverrides(BTreeMap<String, String>);

impl ClientOverrides {
    /// The properties with `env:NAME` values replaced by the variable's content.
    ///
    /// # Errors
    /// [`ConfigError::Invalid`] naming the property and the variable that is not set. The content is never printed.
    pub fn resolved(&self, table: &str) -> Result<Vec<(String, String)>, ConfigError> {
        self.resolved_from(table, |name| std::env::var(name).ok())
    }

    /// Whether `property` is set to `value` (in any letter case).
    pub fn is(&self, property: &str, value: &str) -> bool {
        self.0
            .get(property)
            .is_some_and(|found| found.eq_ignore_ascii_case(value))
    }

    /// Whether `property` is set at all.
    pub fn has(&self, property: &str) -> bool {
        self.0.contains_key(property)
    }

    pub(super) fn validate(&self, table: &str) -> Result<(), ConfigError> {
        for (property, value) in &self.0 {
            let key = format!("kafka.{table}.\"{property}\"");
            if property.is_empty() || property.contains('\0') || value.contains('\0') {
                return Err(ConfigError::invalid(key, "is empty or holds a zero byte"));
            }
            if let Some((_, instead)) = FORBIDDEN.iter().find(|(forbidden, _)| forbidden == property) {
                return Err(ConfigError::invalid(
                    key,
                    format!("cannot be changed here: {instead}"),
                ));
            }
        }
        self.resolved(table).map(|_| ())
    }

    fn resolved_from(
        &self,
        table: &str,
        environment: impl Fn(&str) -> Option<String>,
    ) -> Result<Vec<(String, String)>, ConfigError> {
        let resolve = |(property, value): (&String, &String)| {
            let Some(name) = value.strip_prefix(ENV_PREFIX) else {
                return Ok((property.clone(), value.clone()));
            };
            let found = environment(name).ok_or_else(|| {
                ConfigError::invalid(
                    format!("kafka.{table}.\"{property}\""),
                    format!("the environment variable `{name}` that it names is not set"),
                )
            })?;
            Ok((property.clone(), found))
        };
        self.0.iter().map(resolve).collect()
    }

    fn shown(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(property, value)| {
            let hide = is_secret(property) && !value.starts_with(ENV_PREFIX);
            (property.as_str(), if hide { HIDDEN } else { value.as_str() })
        })
    }
}

impl FromIterator<(String, String)> for ClientOverrides {
    fn from_iter<I: IntoIterator<Item = (String, String)>>(pairs: I) -> Self {
        Self(pairs.into_iter().collect())
    }
}

impl fmt::Debug for ClientOverrides {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.shown()).finish()
    }
}

impl fmt::Display for ClientOverrides {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, (property, value)) in self.shown().enumerate() {
            let separator = if index == 0 { "" } else { ", " };
            write!(f, "{separator}{property}={value}")?;
        }
        Ok(())
    }
}

impl Serialize for ClientOverrides {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.shown())
    }
}

/// Whether the value of a librdkafka property must not be shown.
pub(crate) fn is_secret(property: &str) -> bool {
    let property = property.to_ascii_lowercase();
    [
        "password",
        "secret",
        "token",
        "ssl.key",
        "oauthbearer.config",
        "jaas",
    ]
    .iter()
    .any(|mark| property.contains(mark))
        && !property.ends_with(".location")
        && !property.ends_with(".url")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn overrides(pairs: &[(&str, &str)]) -> ClientOverrides {
        pairs
            .iter()
            .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
            .collect()
    }

    #[test]
    fn every_forbidden_property_is_refused_by_name() {
        for (property, instead) in FORBIDDEN {
            let error = overrides(&[(property, "x")])
                .validate("client")
                .unwrap_err()
                .to_string();

            assert!(error.contains(property) && error.contains(instead), "{error}");
        }
    }

    #[test]
    fn secrets_print_as_stars_wherever_they_are_shown() {
        let table = overrides(&[
            ("sasl.password", "hunter2"),
            ("sasl.username", "anna"),
            ("ssl.key.pem", "hunter2"),
            ("ssl.key.location", "/keys/a.pem"),
            ("sasl.oauthbearer.client.secret", "hunter2"),
            ("sasl.oauthbearer.config", "hunter2"),
        ]);

        let shown = [
            format!("{table:?}"),
            table.to_string(),
            toml::to_string(&table).unwrap(),
        ];

        for text in shown {
            assert!(!text.contains("hunter2"), "{text}");
            assert!(
                text.contains("***") && text.contains("anna") && text.contains("/keys/a.pem"),
                "{text}"
            );
        }
    }

    #[test]
    fn a_secret_comes_from_the_environment() {
        let table = overrides(&[("sasl.password", "env:BROKER_PASSWORD")]);

        let found = table.resolved_from("client", |name| {
            (name == "BROKER_PASSWORD").then(|| "hunter2".to_owned())
        });

        assert_eq!(
            found.unwrap(),
            [("sasl.password".to_owned(), "hunter2".to_owned())]
        );
        assert!(
            table.to_string().contains("env:BROKER_PASSWORD"),
            "the name of the variable is no secret"
        );
    }

    #[test]
    fn a_missing_variable_is_an_error_that_names_it() {
        let table = overrides(&[("sasl.password", "env:SPEECHVERSE_NO_SUCH_VARIABLE")]);

        let error = table.validate("client").unwrap_err().to_string();

        assert!(
            error.contains("SPEECHVERSE_NO_SUCH_VARIABLE") && error.contains("sasl.password"),
            "{error}"
        );
    }
}
