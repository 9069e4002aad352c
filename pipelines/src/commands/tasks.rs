//! `speechverse tasks`: a look into the configured tasks.

use anyhow::Context;
use speechverse::config::Settings;
use speechverse::text::{GrammarPiece, OutputGrammar, ResolvedPrompt, Task, TaskTable, TemplateVariables};

use super::Failure;
use crate::cli::{Given, OptionalSettings, Tasks};
use crate::output::{self, OutputError};

impl Given {
    /// What fills a task's prompts.
    pub(super) fn variables(&self) -> TemplateVariables {
        let variables = TemplateVariables {
            fields: self.fields.iter().cloned().collect(),
            ..TemplateVariables::default()
        };
        match self.labels.is_empty() {
            true => variables,
            false => variables.with_labels(&self.labels),
        }
    }
}

pub(super) fn tasks(command: Tasks) -> Result<(), Failure> {
    match command {
        Tasks::List { settings, json } => list(&load(&settings)?, json),
        Tasks::Show {
            settings,
            given,
            prompts,
            bare_labels,
            task,
        } => {
            let variables = TemplateVariables {
                bare_labels,
                ..given.variables()
            };
            show(&load(&settings)?, &task, variables, prompts)
        }
    }
}

fn load(settings: &OptionalSettings) -> Result<TaskTable, Failure> {
    let settings = Settings::load(&settings.config).map_err(Failure::usage)?;
    TaskTable::load(&settings.service.tasks_dir).map_err(Failure::usage)
}

fn metric(task: &Task) -> Result<String, Failure> {
    let name = serde_json::to_value(task.metric).context("a metric is always JSON")?;
    Ok(name.as_str().unwrap_or_default().to_owned())
}

fn list(table: &TaskTable, json: bool) -> Result<(), Failure> {
    let mut rows = vec![
        [
            "task",
            "answer",
            "metric",
            "prompts",
            "held out",
            "labels",
            "fields",
            "description",
        ]
        .map(str::to_owned)
        .to_vec(),
    ];
    for task in table.iter() {
        let prompts = task.training_prompts().count();
        let fields: Vec<&str> = task.fields.keys().map(String::as_str).collect();
        if json {
            output::line(serde_json::to_string(task).context("a task is always JSON")?)?;
            continue;
        }
        rows.push(vec![
            task.name.clone(),
            task.answer.format.as_str().to_owned(),
            metric(task)?,
            prompts.to_string(),
            task.held_out_prompts.len().to_string(),
            task.labels.len().to_string(),
            fields.join(" "),
            task.description.clone(),
        ]);
    }
    if !json {
        output::table(&rows, &[3, 4, 5])?;
    }
    Ok(())
}

fn show(
    table: &TaskTable,
    names: &str,
    mut variables: TemplateVariables,
    prompts: bool,
) -> Result<(), Failure> {
    let tasks = table.list(names).map_err(Failure::usage)?;
    for task in &tasks {
        for (name, field) in &task.fields {
            if !variables.fields.contains_key(name) && !variables.fields.contains_key(&field.key) {
                variables.fields.insert(name.clone(), field.example.clone());
            }
        }
    }
    let ResolvedPrompt {
        instruction,
        grammar,
        constrained: _,
        spoken: _,
        joint,
    } = table.ask(names, &variables, None).map_err(Failure::usage)?;
    for task in &tasks {
        output::line(format!("{}: {}", task.name, task.description))?;
        output::line(format!(
            "  answer {}, heading `{}`, metric {}",
            task.answer.format.as_str(),
            task.heading(),
            metric(task)?
        ))?;
        for (name, field) in &task.fields {
            output::line(format!("  field `{name}`: {}", field.description))?;
        }
    }
    heading("default prompt")?;
    output::line(&instruction)?;
    heading("answer")?;
    output::line(example_of(&grammar))?;
    if let Some(layout) = joint {
        let names: Vec<&str> = layout.fields().iter().map(|field| field.task.as_str()).collect();
        output::line(format!("(read back into: {})", names.join(", ")))?;
    }
    if prompts {
        for task in &tasks {
            let held_out = task.held_out_prompts.iter().map(String::as_str);
            for (kind, variants) in [
                ("trained on", task.training_prompts().collect::<Vec<_>>()),
                ("held out", held_out.collect()),
            ] {
                for (number, variant) in variants.into_iter().enumerate() {
                    heading(&format!("{}, {kind}, {}", task.name, number + 1))?;
                    output::line(task.fill(variant, &variables).map_err(Failure::usage)?)?;
                }
            }
        }
    }
    Ok(())
}

fn heading(text: &str) -> Result<(), OutputError> {
    output::line(format!("\n--- {text} ---"))
}

/// A grammar for people: `…` is free text, `<a/b>` a choice.
fn example_of(grammar: &OutputGrammar) -> String {
    let names = |labels: &[String]| labels.join("/");
    let piece = |piece: &GrammarPiece| match piece {
        GrammarPiece::Literal(text) => text.to_string(),
        GrammarPiece::Free { stop: Some(_) } => " … ".to_owned(),
        GrammarPiece::Free { stop: None } => "…".to_owned(),
        GrammarPiece::Choice(labels) => format!("<{}>", names(labels)),
        GrammarPiece::Choices(labels) => format!("<{}>, …", names(labels)),
        GrammarPiece::Slots(labels) => format!("<{}> = …; …", names(labels)),
        GrammarPiece::Structure(structure) => format!("<{}>", structure.kind().name()),
    };
    grammar.pieces.iter().map(piece).collect()
}
