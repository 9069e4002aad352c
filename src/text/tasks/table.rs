//! `TaskTable`: all tasks by name, and what is asked when one or several of them are named.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

use super::{Spoken, TASK_SEPARATOR, Task, TemplateVariables};
use crate::text::TextError;
use crate::text::answer::OutputGrammar;
use crate::text::error::{read_text, shown};
use crate::text::joint::{JointLayout, share_out};

/// A task file is written by hand.
const TASK_BYTES_MAX: u64 = 1 << 20; // 1 MiB
/// Most tasks that one request may name.
const TASKS_AT_ONCE_MAX: usize = 16;

/// All tasks, by name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TaskTable {
    tasks: BTreeMap<String, Task>,
}

/// What naming one or several tasks asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResolvedPrompt {
    /// The default instruction, its placeholders filled; the compound one for several tasks.
    pub instruction: String,
    /// What the answer may look like when it is constrained to the labels in force.
    pub grammar: OutputGrammar,
    /// Whether it is constrained where the request does not say: an instruction in the asker's own words that
    /// lists no answers may ask for anything.
    pub constrained: bool,
    /// What has to be said for the labels in force; absent where the task does not say so. Of several tasks
    /// the layout has it.
    pub spoken: Option<Spoken>,
    /// How the answers of several tasks are laid out; absent for one task.
    pub joint: Option<Arc<JointLayout>>,
}

impl ResolvedPrompt {
    /// An instruction without a task; `labels` are the answers to choose from.
    pub fn plain(instruction: String, labels: Option<&[String]>) -> Self {
        Self {
            instruction,
            grammar: labels.map_or_else(OutputGrammar::free, OutputGrammar::one_of),
            constrained: labels.is_some(),
            spoken: None,
            joint: None,
        }
    }

    /// What the answer is constrained to; absent: free text. `constrain` is what the request says about it.
    pub fn form(&self, constrain: Option<bool>) -> Option<OutputGrammar> {
        let constrained = constrain.unwrap_or(self.constrained);
        Some(self.grammar.clone()).filter(|grammar| constrained && !grammar.is_free())
    }

    /// Checks that a target is one of the answers that may be given, as labels are compared: trimmed, in
    /// lower case. A target of several tasks has a part for each.
    ///
    /// # Errors
    /// What is wrong with it, and the allowed answers.
    pub fn check_target(&self, target: &str) -> Result<(), String> {
        let Some(joint) = &self.joint else {
            return self
                .grammar
                .check(target)
                .map_err(|reason| format!("`ce_target`: {reason}"));
        };
        for (field, value) in joint.fields().iter().zip(joint.read(target)) {
            let value = value.ok_or_else(|| {
                format!(
                    "`ce_target`: it has no part `{}: … |` for task `{}`",
                    field.heading, field.task
                )
            })?;
            (field.format.grammar(&field.labels).check(&value))
                .map_err(|reason| format!("`ce_target`, task `{}`: {reason}", field.task))?;
        }
        Ok(())
    }

    /// An answer's values by task, where several tasks were asked; empty otherwise.
    pub fn fields(&self, text: &str) -> BTreeMap<String, String> {
        (self.joint.as_ref()).map_or_else(BTreeMap::new, |joint| joint.by_task(text))
    }
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
            if path.file_stem().is_none_or(|stem| stem != task.name.as_str()) {
                return Err(task_error(format!(
                    "the file must be called `{}.toml`, like its task",
                    task.name
                )));
            }
            table.insert(task).map_err(task_error)?;
        }
        Ok(table)
    }

    /// A table of tasks made in code.
    ///
    /// # Errors
    /// [`TextError::Task`] when a task does not hold together, or a name or a heading is there twice.
    pub fn from_tasks(tasks: impl IntoIterator<Item = Task>) -> Result<Self, TextError> {
        let mut table = Self::default();
        for task in tasks {
            let path = format!("{}.toml", task.name).into();
            table
                .insert(task)
                .map_err(|reason| TextError::Task { path, reason })?;
        }
        Ok(table)
    }

    fn insert(&mut self, task: Task) -> Result<(), String> {
        task.validate()?;
        for other in self.tasks.values() {
            if other.name == task.name {
                return Err("there is another task of that name".to_owned());
            }
            if other.heading().eq_ignore_ascii_case(task.heading()) {
                return Err(format!(
                    "`answer.heading` `{}` is that of task `{}` too: their answers could not be distinguished",
                    task.heading(),
                    other.name
                ));
            }
        }
        self.tasks.insert(task.name.clone(), task);
        Ok(())
    }

    /// The task of that name.
    ///
    /// # Errors
    /// [`TextError::UnknownTask`] with the names there are.
    pub fn get(&self, name: &str) -> Result<&Task, TextError> {
        self.tasks.get(name).ok_or_else(|| TextError::UnknownTask {
            name: shown(name),
            known: self.names().collect::<Vec<_>>().join(", "),
        })
    }

    /// The tasks of a list such as `asr,intent`, in its order.
    ///
    /// # Errors
    /// [`TextError::UnknownTask`]; [`TextError::TaskList`] for a task that is named twice, or too many of
    /// them.
    pub fn list(&self, names: &str) -> Result<Vec<&Task>, TextError> {
        let wrong = |reason: String| TextError::TaskList {
            list: shown(names),
            reason,
        };
        let mut tasks = Vec::new();
        let mut seen = BTreeSet::new();
        for name in names.split(TASK_SEPARATOR).map(str::trim) {
            if tasks.len() == TASKS_AT_ONCE_MAX {
                return Err(wrong(format!(
                    "at most {TASKS_AT_ONCE_MAX} tasks can be asked at once"
                )));
            }
            let task = self.get(name)?;
            if !seen.insert(name) {
                return Err(wrong(format!("task `{name}` is there twice")));
            }
            tasks.push(task);
        }
        Ok(tasks)
    }

    /// What a request that names `names` (one task, or several: `asr,intent`) asks for. `own` is its
    /// instruction instead of the tasks' default ones, word for word.
    ///
    /// # Errors
    /// As [`TaskTable::list`], [`Task::fill`] and [`JointLayout::new`].
    pub fn ask(
        &self,
        names: &str,
        variables: &TemplateVariables,
        own: Option<&str>,
    ) -> Result<ResolvedPrompt, TextError> {
        let tasks = self.list(names)?;
        let constrained = own.is_none() || variables.labels.is_some();
        let shares = share_out(&tasks, variables)?;
        let instructions = || -> Result<Vec<String>, TextError> {
            (tasks.iter().zip(&shares))
                .map(|(task, variables)| task.fill(&task.instruction, variables))
                .collect()
        };
        if let [task] = tasks.as_slice() {
            return Ok(ResolvedPrompt {
                instruction: own.map_or_else(
                    || task.fill(&task.instruction, variables),
                    |own| Ok(own.to_owned()),
                )?,
                grammar: task.grammar(variables)?,
                constrained,
                spoken: task.spoken(variables)?,
                joint: None,
            });
        }
        let layout = JointLayout::new(&tasks, variables)?;
        Ok(ResolvedPrompt {
            instruction: match own {
                Some(own) => own.to_owned(),
                None => layout.instruction(&instructions()?, 0),
            },
            grammar: layout.grammar(),
            constrained,
            spoken: None,
            joint: Some(Arc::new(layout)),
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
