//! `TaskTable`: what the program is asked to do, one TOML file per task (`configs/tasks/*.toml`).
//!
//! A task gives a request that only names it its default instruction, gives training many wordings of the same
//! wish, and keeps some wordings back to see whether the model follows words it was not trained on.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde::Deserialize;

use super::TextError;
use super::error::read_text;

/// A task file is written by hand.
const TASK_BYTES_MAX: u64 = 1 << 20; // 1 MiB

/// How answers of a task are scored.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum TaskMetric {
    /// Word error rate over the corpus; lower is better.
    Wer,
    /// Share of answers equal to the target; higher is better.
    Accuracy,
    /// F1 of the set of keywords; higher is better.
    KeywordF1,
    /// F1 of the words of a short free answer; higher is better.
    TokenF1,
}

/// One allowed answer of a task.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct TaskLabel {
    /// The answer, as the model shall write it.
    pub name: String,
    /// What it means, in words that can go into an instruction.
    #[serde(default)]
    pub description: String,
}

/// One task.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct Task {
    /// Name, as in the `ce_task` header; also the file's name.
    pub name: String,
    /// What the task is, for people.
    pub description: String,
    /// Instruction used when a request only names the task.
    pub instruction: String,
    /// Wordings used in training, besides `instruction`.
    #[serde(default)]
    pub prompts: Vec<String>,
    /// Wordings kept out of training.
    #[serde(default)]
    pub held_out_prompts: Vec<String>,
    /// Allowed answers; empty for free text.
    #[serde(default)]
    pub labels: Vec<TaskLabel>,
    /// How answers are scored.
    pub metric: TaskMetric,
}

impl Task {
    /// Checks what the file format cannot: names, repeats, wordings both trained on and held out.
    fn validate(&self) -> Result<(), String> {
        let good_name = !self.name.is_empty()
            && self.name.len() <= 64
            && (self.name.bytes())
                .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"_-".contains(&byte));
        if !good_name {
            return Err(format!(
                "name `{}` must be 1 to 64 of the characters a-z, 0-9, `_` and `-`",
                self.name
            ));
        }
        if self.instruction.trim().is_empty() {
            return Err("`instruction` is empty".to_owned());
        }
        let mut seen = BTreeSet::new();
        for (list, wordings) in [
            ("prompts", &self.prompts),
            ("held_out_prompts", &self.held_out_prompts),
        ] {
            for wording in wordings {
                if wording.trim().is_empty() {
                    return Err(format!("`{list}` holds an empty wording"));
                }
                if !seen.insert(wording) {
                    return Err(format!(
                        "`{wording}` in `{list}` is there twice; held-out wordings must not be trained on"
                    ));
                }
            }
        }
        if self.held_out_prompts.contains(&self.instruction) {
            return Err(format!(
                "the default instruction `{}` is held out; it is used in training",
                self.instruction
            ));
        }
        let mut names = BTreeSet::new();
        for label in &self.labels {
            if label.name.trim().is_empty() || !names.insert(&label.name) {
                return Err(format!("label `{}` is empty or there twice", label.name));
            }
        }
        Ok(())
    }
}

/// All tasks, by name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TaskTable {
    tasks: BTreeMap<String, Task>,
}

impl TaskTable {
    /// Reads every `*.toml` of a folder.
    ///
    /// # Errors
    /// [`TextError::Task`] with the file and what is wrong with it; [`TextError::Read`] when the folder or a
    /// file cannot be read.
    pub fn load(folder: &Path) -> Result<Self, TextError> {
        let read_error = |source| TextError::Read {
            path: folder.to_path_buf(),
            source,
        };
        let mut table = Self::default();
        for entry in std::fs::read_dir(folder).map_err(read_error)? {
            let path = entry.map_err(read_error)?.path();
            if path.extension().is_none_or(|extension| extension != "toml") {
                continue;
            }
            let task_error = |reason| TextError::Task {
                path: path.clone(),
                reason,
            };
            let text = read_text(&path, TASK_BYTES_MAX)?;
            let task: Task = toml::from_str(&text).map_err(|error| task_error(error.to_string()))?;
            task.validate().map_err(task_error)?;
            if path.file_stem().is_none_or(|stem| stem != task.name.as_str()) {
                return Err(task_error(format!(
                    "the file must be called `{}.toml`, like its task",
                    task.name
                )));
            }
            table.tasks.insert(task.name.clone(), task);
        }
        Ok(table)
    }

    /// A table of tasks made in code.
    ///
    /// # Errors
    /// [`TextError::Task`] when a task does not hold together or a name is there twice.
    pub fn from_tasks(tasks: impl IntoIterator<Item = Task>) -> Result<Self, TextError> {
        let mut table = Self::default();
        for task in tasks {
            let path = format!("{}.toml", task.name).into();
            if let Err(reason) = task.validate() {
                return Err(TextError::Task { path, reason });
            }
            if table.tasks.contains_key(&task.name) {
                let reason = "there is another task of that name".to_owned();
                return Err(TextError::Task { path, reason });
            }
            table.tasks.insert(task.name.clone(), task);
        }
        Ok(table)
    }

    /// The task of that name.
    ///
    /// # Errors
    /// [`TextError::UnknownTask`] with the names there are.
    pub fn get(&self, name: &str) -> Result<&Task, TextError> {
        self.tasks.get(name).ok_or_else(|| TextError::UnknownTask {
            name: name.chars().take(100).collect(),
            known: self.names().collect::<Vec<_>>().join(", "),
        })
    }

    /// All names, in order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tasks.keys().map(String::as_str)
    }

    /// All tasks, in order of name.
    pub fn iter(&self) -> impl Iterator<Item = &Task> {
        self.tasks.values()
    }

    /// How many tasks there are.
    pub fn len(&self) -> usize {
        self.tasks.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.tasks.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "name = 'x'\ndescription = 'd'\ninstruction = 'Do it.'\nmetric = 'wer'\n";

    fn load(text: &str) -> Result<TaskTable, TextError> {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("x.toml"), text).unwrap();
        std::fs::write(folder.path().join("notes.md"), "not a task").unwrap();
        TaskTable::load(folder.path())
    }

    #[test]
    fn the_shipped_tasks_load_and_asr_has_many_wordings() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("configs/tasks");

        let table = TaskTable::load(&folder).unwrap();

        let asr = table.get("asr").unwrap();
        assert_eq!(asr.instruction, "Transcribe the speech.");
        assert_eq!(asr.prompts[0], asr.instruction);
        assert!(asr.prompts.len() >= 15 && asr.held_out_prompts.len() >= 2);
        for name in ["intent", "keywords", "question"] {
            assert!(!table.get(name).unwrap().instruction.is_empty());
        }
    }

    #[test]
    fn a_misspelt_key_is_an_error_that_names_the_file_and_the_key() {
        let error = load(&format!("{GOOD}promts = ['a']\n")).unwrap_err().to_string();

        assert!(error.contains("x.toml") && error.contains("promts"), "{error}");
    }

    #[test]
    fn a_task_that_does_not_hold_together_is_refused() {
        assert!(load(GOOD).is_ok());
        for bad in [
            GOOD.replace("'x'", "'y'"),
            GOOD.replace("'x'", "'X x'"),
            GOOD.replace("'Do it.'", "' '"),
            GOOD.replace("'wer'", "'werr'"),
            format!("{GOOD}prompts = ['a', 'a']\n"),
            format!("{GOOD}prompts = ['a']\nheld_out_prompts = ['a']\n"),
            format!("{GOOD}held_out_prompts = ['Do it.']\n"),
            format!("{GOOD}[[labels]]\nname = 'l'\n[[labels]]\nname = 'l'\n"),
            format!("{GOOD}[[labels]]\nname = 'l'\nmeaning = 'm'\n"),
        ] {
            assert!(matches!(load(&bad), Err(TextError::Task { .. })), "{bad}");
        }
    }

    #[test]
    fn an_unknown_task_is_an_error_that_lists_the_known_ones() {
        let error = load(GOOD).unwrap().get("asr").unwrap_err().to_string();

        assert!(error.contains("`asr`") && error.contains("x"), "{error}");
    }
}
