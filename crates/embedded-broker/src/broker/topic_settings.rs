//! What a topic may be set to: the settings that this broker honours, and those that mean nothing to it.

use std::collections::BTreeMap;

use crate::BrokerConfig;

/// A topic's settings, as their creator wrote them and as the broker reads them.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct TopicSettings {
    /// `max.message.bytes`.
    message_bytes_max: Option<usize>,
    /// `retention.bytes`, per partition.
    pub(crate) retention_bytes: Option<u64>,
    /// `retention.ms`, by the records' own times.
    pub(crate) retention_ms: Option<i64>,
    written: BTreeMap<&'static str, String>,
}

/// How a setting is treated.
enum Treatment {
    /// Read by this broker.
    Honoured,
    /// Describes disks, replicas or flushing, which a broker in memory has none of: kept for display.
    Displayed,
    /// Only this value describes what the broker does.
    Only(&'static str),
}

const KNOWN: &[(&str, Treatment)] = &[
    ("cleanup.policy", Treatment::Only("delete")),
    ("compression.type", Treatment::Only("producer")),
    ("delete.retention.ms", Treatment::Displayed),
    ("file.delete.delay.ms", Treatment::Displayed),
    ("flush.messages", Treatment::Displayed),
    ("flush.ms", Treatment::Displayed),
    ("index.interval.bytes", Treatment::Displayed),
    ("max.message.bytes", Treatment::Honoured),
    ("message.timestamp.type", Treatment::Only("CreateTime")),
    ("min.insync.replicas", Treatment::Only("1")),
    ("preallocate", Treatment::Displayed),
    ("retention.bytes", Treatment::Honoured),
    ("retention.ms", Treatment::Honoured),
    ("segment.bytes", Treatment::Displayed),
    ("segment.index.bytes", Treatment::Displayed),
    ("segment.jitter.ms", Treatment::Displayed),
    ("segment.ms", Treatment::Displayed),
    ("unclean.leader.election.enable", Treatment::Displayed),
];

/// A setting as `DescribeConfigs` shows it.
#[derive(Debug, PartialEq)]
pub(crate) struct Shown {
    /// Its name.
    pub(crate) name: &'static str,
    /// Its value.
    pub(crate) value: String,
    /// Whether the topic's creator wrote it.
    pub(crate) written: bool,
}

impl TopicSettings {
    /// Reads one setting.
    ///
    /// # Errors
    /// A sentence for the client: unknown, not a number, or more than this broker does.
    pub(crate) fn set(&mut self, name: &str, value: &str) -> Result<(), String> {
        let Some((known, treatment)) = KNOWN.iter().find(|(known, _)| *known == name) else {
            return Err(format!("the embedded broker has no topic setting `{name}`"));
        };
        match treatment {
            Treatment::Displayed => {}
            Treatment::Only(only) if value == *only => {}
            Treatment::Only(only) => {
                return Err(format!(
                    "the embedded broker does only `{name}={only}`, not `{value}`: use a real Kafka"
                ));
            }
            Treatment::Honoured => self.honour(known, value)?,
        }
        self.written.insert(known, value.to_owned());
        Ok(())
    }

    fn honour(&mut self, name: &str, value: &str) -> Result<(), String> {
        let number: i64 = value
            .parse()
            .map_err(|_| format!("`{name}` is `{value}`, which is not a whole number"))?;
        match name {
            "max.message.bytes" => {
                let bytes = usize::try_from(number).map_err(|_| format!("`{name}` is {number}, below 0"))?;
                self.message_bytes_max = Some(bytes);
            }
            // Negative means without limit.
            "retention.bytes" => self.retention_bytes = u64::try_from(number).ok(),
            _ => self.retention_ms = (number >= 0).then_some(number),
        }
        Ok(())
    }

    /// Largest batch that the topic takes, bytes.
    pub(crate) fn message_bytes_max(&self, config: &BrokerConfig) -> usize {
        self.message_bytes_max
            .unwrap_or(usize::MAX)
            .min(config.message_bytes_max)
    }

    /// Everything worth showing, defaults included.
    pub(crate) fn shown(&self, config: &BrokerConfig) -> Vec<Shown> {
        let defaults = [
            ("cleanup.policy", "delete".to_owned()),
            ("compression.type", "producer".to_owned()),
            ("max.message.bytes", config.message_bytes_max.to_string()),
            ("message.timestamp.type", "CreateTime".to_owned()),
            ("min.insync.replicas", "1".to_owned()),
            ("retention.bytes", "-1".to_owned()),
            ("retention.ms", "-1".to_owned()),
        ];
        let written = self.written.iter().map(|(name, value)| Shown {
            name,
            value: value.clone(),
            written: true,
        });
        let unwritten = defaults
            .into_iter()
            .filter(|(name, _)| !self.written.contains_key(name))
            .map(|(name, value)| Shown {
                name,
                value,
                written: false,
            });
        written.chain(unwritten).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_broker_cannot_do_is_refused_by_name() {
        let mut settings = TopicSettings::default();

        let compacted = settings.set("cleanup.policy", "compact").unwrap_err();
        let unknown = settings.set("retention.hours", "1").unwrap_err();
        let wordy = settings.set("retention.ms", "an hour").unwrap_err();

        assert!(compacted.contains("cleanup.policy=delete"), "{compacted}");
        assert!(unknown.contains("retention.hours"), "{unknown}");
        assert!(wordy.contains("an hour"), "{wordy}");
        assert_eq!(settings, TopicSettings::default());
    }

    #[test]
    fn a_topic_may_lower_the_largest_message_but_not_raise_it() {
        let config = BrokerConfig {
            message_bytes_max: 5_000,
            ..BrokerConfig::default()
        };
        let mut lower = TopicSettings::default();
        let mut higher = TopicSettings::default();

        lower.set("max.message.bytes", "4000").unwrap();
        higher.set("max.message.bytes", "6000").unwrap();

        assert_eq!(lower.message_bytes_max(&config), 4_000);
        assert_eq!(higher.message_bytes_max(&config), 5_000);
    }

    #[test]
    fn a_negative_retention_means_none() {
        let mut settings = TopicSettings::default();

        settings.set("retention.ms", "-1").unwrap();
        settings.set("retention.bytes", "-1").unwrap();

        assert_eq!((settings.retention_ms, settings.retention_bytes), (None, None));
    }
}
