//! Properties that are passed on to librdkafka: which are allowed, which are secret, and where secrets come
//! from.

use std::collections::BTreeMap;
use std::fmt;

use serde::de::{self, Deserializer};
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
    ("transactional.id", "set `kafka.delivery` and `kafka.instance_id`"),
    ("transaction.timeout.ms", "set `kafka.transaction_timeout_ms`"),
    ("group.instance.id", "set `kafka.instance_id`"),
    ("group.protocol", "set `kafka.group_protocol`"),
    ("statistics.interval.ms", "consumer lag is computed from it"),
    ("log.queue", "logs go through tracing"),
    (
        "test.mock.num.brokers",
        "it would answer from a mock instead of the broker",
    ),
];

/// A table of librdkafka properties; secrets print as `***`.
///
/// Values are text, numbers or flags, as librdkafka takes them. A name without quotes, which TOML reads as
/// tables inside each other (`sasl.password = "…"`), is the same as one with quotes.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct ClientOverrides(BTreeMap<String, String>);

/// A value as it is written.
#[derive(Deserialize)]
#[serde(untagged, expecting = "expected text, a number or a flag")]
enum Property {
    Text(String),
    Number(i64),
    Fraction(f64),
    Flag(bool),
    Inner(BTreeMap<String, Property>),
}

impl<'de> Deserialize<'de> for ClientOverrides {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut properties = BTreeMap::new();
        let table = BTreeMap::deserialize(deserializer)?;
        flatten("", table, &mut properties).map_err(de::Error::custom)?;
        Ok(Self(properties))
    }
}

/// Puts the properties of nested tables under their dotted names.
fn flatten(
    prefix: &str,
    table: BTreeMap<String, Property>,
    into: &mut BTreeMap<String, String>,
) -> Result<(), String> {
    for (key, value) in table {
        let name = if prefix.is_empty() {
            key
        } else {
            format!("{prefix}.{key}")
        };
        let text = match value {
            Property::Text(text) => text,
            Property::Number(number) => number.to_string(),
            Property::Fraction(number) => number.to_string(),
            Property::Flag(flag) => flag.to_string(),
            Property::Inner(inner) => {
                flatten(&name, inner, into)?;
                continue;
            }
        };
        if into.insert(name.clone(), text).is_some() {
            return Err(format!("`{name}` is set twice, with quotes and without"));
        }
    }
    Ok(())
}

impl ClientOverrides {
    /// The properties with `env:NAME` values replaced by the variable's content.
    ///
    /// # Errors
    /// [`ConfigError::Invalid`] naming the property and the variable that is not set. The content is never
    /// printed.
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
    fn numbers_flags_and_names_without_quotes_are_taken() {
        let table: ClientOverrides = toml::from_str(
            "\"socket.timeout.ms\" = 5000\n\"enable.ssl.certificate.verification\" = false\nsasl.username = \"anna\"\n\
             retry.backoff = { ms = 7 }\nsome.factor = 0.5\n",
        )
        .unwrap();

        let pairs = table.resolved("client").unwrap();
        let pairs: Vec<(&str, &str)> = pairs.iter().map(|(name, value)| (&**name, &**value)).collect();
        assert_eq!(
            pairs,
            [
                ("enable.ssl.certificate.verification", "false"),
                ("retry.backoff.ms", "7"),
                ("sasl.username", "anna"),
                ("socket.timeout.ms", "5000"),
                ("some.factor", "0.5"),
            ]
        );
        let again: ClientOverrides = toml::from_str(&toml::to_string(&table).unwrap()).unwrap();
        assert_eq!(again, table);
        let list = toml::from_str::<ClientOverrides>("debug = [\"all\"]").unwrap_err();
        assert!(
            list.to_string().contains("expected text, a number or a flag"),
            "{list}"
        );
        let twice = toml::from_str::<ClientOverrides>("\"a.b\" = 1\na.b = 2").unwrap_err();
        assert!(twice.to_string().contains("`a.b` is set twice"), "{twice}");
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
