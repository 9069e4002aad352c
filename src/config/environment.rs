//! Settings from environment variables: `SPEECHVERSE__TABLE__KEY`.
//!
//! Where a setting is text, the variable's text is taken as it is, whatever it looks like; elsewhere it is
//! read as TOML: a number, a flag, a list, a table. Each variable is tried by itself, so that an error can
//! name it.

use std::ffi::OsString;

use super::Settings;
use crate::util::{ConfigError, ENV_PREFIX};

/// Tables of librdkafka's properties, whose names have dots; no variable's name can have one.
const PROPERTIES: [&str; 3] = ["client", "consumer", "producer"];

/// A variable that overrides a setting.
#[derive(Debug)]
pub(super) struct Variable {
    name: String,
    keys: Vec<String>,
    text: String,
}

impl Variable {
    /// The variables among `env` that override settings, in order of name.
    ///
    /// # Errors
    /// [`ConfigError::Environment`] when two of them set the same.
    pub(super) fn all(env: impl IntoIterator<Item = (String, String)>) -> Result<Vec<Self>, ConfigError> {
        let mut variables: Vec<Self> = env
            .into_iter()
            .filter_map(|(name, text)| {
                let keys = name.strip_prefix(ENV_PREFIX)?.to_lowercase();
                let mut keys: Vec<String> = keys.split("__").map(str::to_owned).collect();
                if let [kafka, table, property] = keys.as_mut_slice()
                    && kafka == "kafka"
                    && PROPERTIES.contains(&table.as_str())
                {
                    *property = property.replace('_', ".");
                }
                Some(Self { name, keys, text })
            })
            .collect();
        variables.sort_by(|one, other| one.name.cmp(&other.name));
        for (index, variable) in variables.iter().enumerate() {
            if let Some(other) = variables[..index]
                .iter()
                .find(|other| other.keys == variable.keys)
            {
                return Err(variable.wrong(format!("`{}` sets the same: leave one out", other.name)));
            }
        }
        Ok(variables)
    }

    /// Whether it sets the setting that an error calls `key`.
    fn sets(&self, key: &str) -> bool {
        self.keys.join(".") == key.replace('"', "")
    }

    fn wrong(&self, message: impl Into<String>) -> ConfigError {
        ConfigError::Environment {
            variable: self.name.clone(),
            message: message.into(),
        }
    }

    /// The first reading of its text that its setting takes.
    fn value(&self, file: &toml::Table) -> Result<toml::Value, ConfigError> {
        let mut refusal = String::new();
        let readings = [Some(toml::Value::String(self.text.clone())), as_toml(&self.text)];
        for reading in readings.into_iter().flatten() {
            let mut table = file.clone();
            set(&mut table, &self.keys, reading.clone()).map_err(|message| self.wrong(message))?;
            match Settings::try_from(table) {
                Ok(_) => return Ok(reading),
                Err(error) => refusal = error,
            }
        }
        let properties = matches!(self.keys.as_slice(), [kafka, table, ..] if kafka == "kafka" && PROPERTIES.contains(&table.as_str()));
        if properties {
            refusal = "it is no TOML table of properties".to_owned(); // without its text, which may hold a secret
        }
        Err(self.wrong(refusal))
    }
}

/// The settings of a file's table with the variables over it.
///
/// # Errors
/// [`ConfigError::Environment`], which names the variable.
pub(super) fn overlay(file: toml::Table, variables: &[Variable]) -> Result<Settings, ConfigError> {
    let mut table = file.clone();
    for variable in variables {
        let value = variable.value(&file)?;
        set(&mut table, &variable.keys, value).map_err(|message| variable.wrong(message))?;
    }
    let all = || {
        variables
            .iter()
            .map(|variable| variable.name.as_str())
            .collect::<Vec<_>>()
            .join(", ")
    };
    Settings::try_from(table).map_err(|message| ConfigError::Environment {
        variable: all(),
        message,
    })
}

/// Adds the variable that set a setting to an error about it.
pub(super) fn blame(error: ConfigError, variables: &[Variable]) -> ConfigError {
    let ConfigError::Invalid { key, message } = error else {
        return error;
    };
    let message = match variables.iter().find(|variable| variable.sets(&key)) {
        Some(variable) => format!(
            "{message} (it comes from the environment variable `{}`)",
            variable.name
        ),
        None => message,
    };
    ConfigError::Invalid { key, message }
}

/// The process's variables that begin with our prefix.
///
/// # Errors
/// [`ConfigError::Environment`] for one that is not Unicode; what other programs' variables hold does not
/// matter.
pub(super) fn of_process(
    env: impl IntoIterator<Item = (OsString, OsString)>,
) -> Result<Vec<(String, String)>, ConfigError> {
    let ours = env
        .into_iter()
        .filter(|(name, _)| name.to_string_lossy().starts_with(ENV_PREFIX));
    ours.map(|(name, value)| match (name.into_string(), value.into_string()) {
        (Ok(name), Ok(value)) => Ok((name, value)),
        (name, _) => Err(ConfigError::Environment {
            variable: name.unwrap_or_else(|name| name.to_string_lossy().into_owned()),
            message: "its name or its text is not UTF-8".to_owned(),
        }),
    })
    .collect()
}

/// Sets `value` at the path `keys`, making tables on the way.
fn set(table: &mut toml::Table, keys: &[String], value: toml::Value) -> Result<(), String> {
    match keys {
        [] => Err("it names no setting".to_owned()),
        keys if keys.iter().any(String::is_empty) => Err(format!(
            "it names no setting: expected a name such as `{ENV_PREFIX}KAFKA__BOOTSTRAP`"
        )),
        [key] => {
            table.insert(key.clone(), value);
            Ok(())
        }
        [key, rest @ ..] => {
            let entry = table
                .entry(key.clone())
                .or_insert_with(|| toml::Value::Table(toml::Table::new()));
            let inner = entry
                .as_table_mut()
                .ok_or_else(|| format!("`{key}` is a value, not a table"))?;
            set(inner, rest, value)
        }
    }
}

/// Reads a variable's text as a TOML value; none when it is no such thing.
fn as_toml(text: &str) -> Option<toml::Value> {
    let table = toml::from_str::<toml::Table>(&format!("v = {text}"));
    table
        .ok()
        .filter(|table| table.len() == 1)
        .and_then(|mut table| table.remove("v"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(pairs: &[(&str, &str)]) -> Result<Settings, ConfigError> {
        let env = pairs
            .iter()
            .map(|(name, text)| (format!("{ENV_PREFIX}{name}"), (*text).to_owned()));
        Settings::parse("[kafka]\npartitions = 2\n", env)
    }

    #[test]
    fn a_text_setting_takes_any_text() {
        for text in [
            "12345",
            "true",
            "1.5",
            "[a]",
            "{}",
            "2026-01-31",
            "\"quoted\"",
            "a = 1",
            "",
            " x ",
            "\u{e4}\n",
            "inf",
        ] {
            let settings = with(&[
                ("KAFKA__GROUP_ID", text),
                ("MODEL__SYSTEM", text),
                ("ADAPTERS__DIR", text),
            ])
            .unwrap();

            assert_eq!(settings.kafka.group_id, text);
            assert_eq!(settings.model.system.as_deref(), Some(text));
            assert_eq!(settings.adapters.dir, std::path::Path::new(text));
        }
    }

    #[test]
    fn numbers_flags_and_tables_are_read_as_toml() {
        let settings = with(&[
            ("KAFKA__PARTITIONS", "3"),
            ("KAFKA__EMBEDDED", "true"),
            ("AUDIO__SECONDS_MAX", "40.5"),
            ("DECODING__EARLY_STOPPING", "never"),
            ("KAFKA__CONSUMER", "{ \"fetch.wait.max.ms\" = 7 }"),
        ])
        .unwrap();

        assert_eq!((settings.kafka.partitions, settings.kafka.embedded), (3, true));
        assert!((settings.audio.seconds_max - 40.5).abs() < f64::EPSILON);
        assert!(settings.kafka.consumer.is("fetch.wait.max.ms", "7"));
        let flag = with(&[("DECODING__EARLY_STOPPING", "true")]).unwrap();
        let file = Settings::parse("[decoding]\nearly_stopping = true", []).unwrap();
        assert_eq!(flag.decoding, file.decoding);
    }

    #[test]
    fn an_underscore_in_a_property_s_variable_is_its_dot() {
        let settings = with(&[
            ("KAFKA__CLIENT__SECURITY_PROTOCOL", "SSL"),
            ("KAFKA__CLIENT__SASL__PASSWORD", "12345"),
        ])
        .unwrap();

        assert!(settings.kafka.client.is("security.protocol", "ssl"));
        assert!(settings.kafka.client.is("sasl.password", "12345"));
    }

    #[test]
    fn an_error_names_the_variable_and_no_other() {
        let good = ("KAFKA__GROUP_ID", "a");
        for (bad, words) in [
            (("KAFKA__PARTITIONS", "many"), "partitions"),
            (("KAFKA__PARTITIONS", "3.5"), "3.5"),
            (("ENCODER__BATCH", "3"), "batch"),
            (("KAFKA__BOOTSTRAP__X", "3"), "bootstrap"),
            (
                ("KAFKA__CLIENT", "{ \"sasl.password\" = secret }"),
                "table of properties",
            ),
            (("", "3"), "names no setting"),
            (("KAFKA__", "3"), "names no setting"),
        ] {
            let error = with(&[good, bad]).unwrap_err().to_string();

            assert!(error.contains(&format!("`{ENV_PREFIX}{}`", bad.0)), "{error}");
            assert!(error.contains(words) && !error.contains("GROUP_ID"), "{error}");
            assert!(!error.contains("secret"), "{error}");
        }
        let twice = with(&[good, ("kafka__group_id", "b")]).unwrap_err().to_string();
        assert!(
            twice.contains("GROUP_ID") && twice.contains("group_id"),
            "{twice}"
        );
    }

    #[test]
    fn a_value_out_of_range_names_the_variable_that_it_comes_from() {
        let name = format!("{ENV_PREFIX}KAFKA__PARTITIONS");
        let variables = Variable::all([(name.clone(), "0".to_owned())]).unwrap();
        let settings = overlay(toml::Table::new(), &variables).unwrap();

        let error = blame(settings.validate().unwrap_err(), &variables).to_string();

        assert!(
            error.contains("kafka.partitions") && error.contains(&name),
            "{error}"
        );
    }

    #[cfg(unix)]
    #[test]
    fn only_variables_of_ours_have_to_be_text() {
        use std::os::unix::ffi::OsStringExt;
        let odd = || OsString::from_vec(vec![0xff]);

        assert!(
            of_process([("LS_COLORS".into(), odd()), (odd(), odd())])
                .unwrap()
                .is_empty()
        );
        let ours = of_process([("SPEECHVERSE__KAFKA__GROUP_ID".into(), odd())]).unwrap_err();
        assert!(
            ours.to_string().contains("SPEECHVERSE__KAFKA__GROUP_ID"),
            "{ours}"
        );
    }
}
