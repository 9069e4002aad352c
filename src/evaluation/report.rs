//! Rows become scores: with intervals, comparisons and breakdowns.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::dataset::Dataset;
use super::invention::Invention;
use super::run::{Answered, Row};
use super::support::Support;
use super::variants::Table;
use crate::registry::sha256_file;
use crate::scoring::classes::by_class;
use crate::scoring::metric::slots_of;
use crate::scoring::slots::{SlotTable, add_table, slu_counts};
use crate::scoring::tally::{LEVEL, RESAMPLES};
use crate::scoring::{Comparison, Interval, Metric, Pair, Tally};
use crate::text::TaskTable;
use crate::training::TrainingError;

/// Format of `report.json`; the number goes up when a key changes its meaning or goes away.
pub const SCHEMA: &str = "speechverse.eval/1";
/// The row of always answering the most frequent class.
pub const MAJORITY: &str = "majority class";
/// Seed of the bootstrap draws.
const SEED: u64 = 20_241_122;

/// What a report says about its own circumstances; [`Report::new`] adds what was measured.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
pub struct Facts {
    /// When, RFC 3339.
    pub created: String,
    /// The program and its version.
    pub program: String,
    /// The machine: processor, threads, device and precision …
    pub machine: BTreeMap<String, String>,
    /// Encoder, language model and adapter: names, versions, digests.
    pub models: BTreeMap<String, String>,
    /// How it was asked: answer lengths, batch …
    pub settings: BTreeMap<String, String>,
    /// The manifests.
    pub data: Vec<DatasetFacts>,
}

/// A manifest that was evaluated.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct DatasetFacts {
    /// Its name in tables.
    pub name: String,
    /// The file.
    pub path: String,
    /// Hex sha256 of the file.
    pub sha256: String,
    /// Recordings in it that were asked about.
    pub recordings: usize,
    /// Their declared length, seconds.
    pub seconds: f64,
}

impl DatasetFacts {
    /// Describes a dataset and the file that it came from.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn new(dataset: &Dataset, path: &Path) -> Result<Self, TrainingError> {
        Ok(Self {
            name: dataset.name.clone(),
            path: path.display().to_string(),
            sha256: sha256_file(path).map_err(TrainingError::io("read", path))?,
            recordings: dataset.examples.len(),
            seconds: dataset.examples.iter().map(|example| example.seconds).sum(),
        })
    }
}

/// A metric of the report.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct MetricNote {
    /// In headings.
    pub title: String,
    /// How it is computed.
    pub signature: String,
    /// Whether less is better.
    pub lower_is_better: bool,
}

/// How the intervals were made.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Bootstrap {
    /// Resamples.
    pub resamples: usize,
    /// Share inside an interval.
    pub level: f64,
    /// Seed of the draws.
    pub seed: u64,
}

/// A score of part of the rows.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Serialize)]
pub struct Part {
    /// Utterances (references of a class; wanted slots of a type).
    pub count: u64,
    /// The metric's score, a class's recall, a slot type's F1: 0 to 100; absent where it is not defined.
    pub score: Option<f64>,
}

/// One cell of a table.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Score {
    /// Which table.
    #[serde(rename = "study")]
    pub table: Table,
    /// Which row.
    #[serde(rename = "system")]
    pub variant: String,
    /// Task, and the language of the answer where one is named: `translation de`.
    pub task: String,
    /// Manifest.
    #[serde(rename = "set")]
    pub dataset: String,
    /// Which metric.
    pub metric: Metric,
    /// Whether this is the task's own metric; the others are for information.
    pub main: bool,
    /// Utterances scored.
    pub utterances: usize,
    /// 0 to 100 (error rates may exceed it); absent where it is not defined.
    pub score: Option<f64>,
    /// Its bootstrap interval.
    pub interval: Option<Interval>,
    /// Against the table's first variant on the same utterances; absent for that variant itself.
    pub against_first: Option<Comparison>,
    /// The main metric by `domain`, where rows name more than one.
    pub domains: BTreeMap<String, Part>,
    /// The main metric by class or slot type.
    pub classes: BTreeMap<String, Part>,
}

/// `report.json`.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Report {
    /// [`SCHEMA`].
    pub schema: String,
    /// Under which circumstances.
    pub facts: Facts,
    /// The metrics that occur.
    pub metrics: BTreeMap<String, MetricNote>,
    /// How intervals were made.
    pub bootstrap: Bootstrap,
    /// All cells of all tables.
    pub scores: Vec<Score>,
    /// How the flag `unsupported` stands to the errors of transcripts; empty without a CTC head.
    #[serde(default)]
    pub support: Vec<Support>,
    /// How many clips in which nothing is said got words; empty where there is no such clip.
    #[serde(default)]
    pub invention: Vec<Invention>,
    /// Rows that a variant leaves out, and why: not a fault.
    pub left_out: Vec<String>,
    /// What could not be read or asked: in no score.
    pub problems: Vec<String>,
    /// Audio listened to, seconds.
    pub audio_seconds: f64,
    /// Time taken to answer, seconds.
    pub seconds: f64,
}

impl Report {
    /// Scores all answers. `left_out`: what was not asked, and why.
    pub fn new(answered: &Answered, left_out: Vec<String>, tasks: &TaskTable, facts: Facts) -> Self {
        let mut report = Self {
            schema: SCHEMA.to_owned(),
            facts,
            metrics: BTreeMap::new(),
            bootstrap: Bootstrap {
                resamples: RESAMPLES,
                level: LEVEL,
                seed: SEED,
            },
            scores: Vec::new(),
            support: Vec::new(),
            invention: Invention::of(&answered.rows),
            left_out,
            problems: answered.problems.clone(),
            audio_seconds: answered.audio_seconds,
            seconds: answered.seconds,
        };
        for cells in columns(answered) {
            report.column(&cells, tasks);
        }
        for score in &report.scores {
            let note = || MetricNote {
                title: score.metric.title().to_owned(),
                signature: score.metric.signature().to_owned(),
                lower_is_better: score.metric.lower_is_better(),
            };
            report
                .metrics
                .entry(score.metric.name().to_owned())
                .or_insert_with(note);
        }
        report
    }

    /// Scores one column of a table: the same task and dataset for each variant.
    fn column(&mut self, cells: &Column<'_>, tasks: &TaskTable) {
        let Some(first) = cells.first().and_then(|(_, rows)| rows.first()) else {
            return;
        };
        let task = match tasks.get(&first.task) {
            Ok(task) => task,
            Err(error) => return self.problems.push(format!("{}: {error}", first.dataset)),
        };
        let mut metrics = Metric::of_task(task.metric).to_vec();
        let english = first
            .language
            .as_deref()
            .is_none_or(|language| language.starts_with("en"));
        if !english {
            // The English normaliser would spell other languages as if they were English.
            metrics.retain(|metric| *metric != Metric::Wer);
        }
        for (at, metric) in metrics.into_iter().enumerate() {
            let mut leader: Option<(Tally, Vec<&str>)> = None;
            for (variant, rows) in cells {
                let pairs = pairs(rows);
                let tally = metric.tally(&pairs);
                let ids: Vec<&str> = rows.iter().map(|row| row.id.as_str()).collect();
                let against_first = leader
                    .as_ref()
                    .filter(|(_, others)| *others == ids)
                    .and_then(|(other, _)| tally.compare(other, RESAMPLES, SEED));
                let main = at == 0;
                let mut score = Score::new(first, variant, metric, main, &tally, rows.len());
                score.against_first = against_first;
                if main {
                    score.domains = domains(metric, rows);
                    score.classes = classes(metric, &pairs);
                }
                self.scores.push(score);
                leader.get_or_insert((tally, ids));
            }
            if let Some(score) = majority(cells, metric, at == 0) {
                self.scores.push(score);
            }
        }
    }

    /// The tables that there are.
    pub fn tables(&self) -> Vec<Table> {
        let mut tables: Vec<Table> = self.scores.iter().map(|score| score.table).collect();
        tables.sort_unstable();
        tables.dedup();
        tables
    }
}

/// The score of always answering the most frequent reference, where the answers are classes; of several
/// that are as frequent, the first by name.
fn majority(cells: &Column<'_>, metric: Metric, main: bool) -> Option<Score> {
    let (_, rows) = cells.first()?;
    let first = rows.first()?;
    let is_class = matches!(metric, Metric::Accuracy | Metric::Uar | Metric::MacroF1);
    if !is_class || first.table != Table::Variants {
        return None;
    }
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for row in rows {
        *counts.entry(&row.reference).or_default() += 1;
    }
    let most = counts.values().max()?;
    let (answer, _) = counts.iter().find(|(_, count)| *count == most)?;
    let pairs: Vec<Pair<'_>> = rows.iter().map(|row| (row.reference.as_str(), *answer)).collect();
    let tally = metric.tally(&pairs);
    Some(Score::new(first, MAJORITY, metric, main, &tally, rows.len()))
}

impl Score {
    /// The score of a variant in the column of the row `first`, compared with nothing and not taken apart.
    fn new(first: &Row, variant: &str, metric: Metric, main: bool, tally: &Tally, utterances: usize) -> Self {
        Self {
            table: first.table,
            variant: variant.to_owned(),
            task: task_title(first),
            dataset: first.dataset.clone(),
            metric,
            main,
            utterances,
            score: tally.score(),
            interval: tally.interval(RESAMPLES, SEED),
            against_first: None,
            domains: BTreeMap::new(),
            classes: BTreeMap::new(),
        }
    }
}

/// A row's task in headings, with the language of the answer where one is named.
fn task_title(row: &Row) -> String {
    match &row.language {
        Some(language) => format!("{} {language}", row.task),
        None => row.task.clone(),
    }
}

/// One column of a table: the rows of each variant.
type Column<'r> = Vec<(&'r str, Vec<&'r Row>)>;

/// The rows by table and column, and within a column by variant; all in the order in which they come.
fn columns(answered: &Answered) -> Vec<Column<'_>> {
    let mut places: BTreeMap<(Table, String, &str), usize> = BTreeMap::new();
    let mut columns: Vec<(Table, Column<'_>)> = Vec::new();
    for row in &answered.rows {
        let key = (row.table, task_title(row), row.dataset.as_str());
        let place = *places.entry(key).or_insert_with(|| {
            columns.push((row.table, Vec::new()));
            columns.len() - 1
        });
        let column = &mut columns[place].1;
        match column.iter_mut().find(|(variant, _)| *variant == row.variant) {
            Some((_, rows)) => rows.push(row),
            None => column.push((&row.variant, vec![row])),
        }
    }
    columns.sort_by_key(|(table, _)| *table);
    columns.into_iter().map(|(_, column)| column).collect()
}

fn pairs<'r>(rows: &[&'r Row]) -> Vec<Pair<'r>> {
    rows.iter()
        .map(|row| (row.reference.as_str(), row.hypothesis.as_str()))
        .collect()
}

fn domains(metric: Metric, rows: &[&Row]) -> BTreeMap<String, Part> {
    let mut groups: BTreeMap<&str, Vec<&Row>> = BTreeMap::new();
    for row in rows {
        if let Some(domain) = &row.domain {
            groups.entry(domain).or_default().push(row);
        }
    }
    if groups.len() < 2 {
        return BTreeMap::new();
    }
    let part = |rows: Vec<&Row>| Part {
        count: rows.len() as u64,
        score: metric.tally(&pairs(&rows)).score(),
    };
    groups
        .into_iter()
        .map(|(domain, rows)| (domain.to_owned(), part(rows)))
        .collect()
}

fn classes(metric: Metric, pairs: &[Pair<'_>]) -> BTreeMap<String, Part> {
    match metric {
        Metric::Accuracy | Metric::Uar | Metric::MacroF1 => by_class(pairs.iter().copied())
            .into_iter()
            .map(|(class, counts)| {
                let score = if metric == Metric::MacroF1 {
                    counts.f1()
                } else {
                    counts.recall()
                };
                let part = Part {
                    count: counts.wanted,
                    score: score.map(|share| 100.0 * share),
                };
                (class, part)
            })
            .collect(),
        Metric::SluF1 | Metric::SdF1 => {
            let (mut table, mut wanted) = (SlotTable::new(), BTreeMap::<String, u64>::new());
            for (reference, hypothesis) in pairs {
                let (expected, answered) = (slots_of(reference), slots_of(hypothesis));
                for slot in &expected {
                    *wanted.entry(slot.name.clone()).or_default() += 1;
                }
                add_table(&mut table, &slu_counts(&expected, &answered));
            }
            table
                .into_iter()
                .map(|(name, counts)| {
                    let part = Part {
                        count: wanted.get(&name).copied().unwrap_or(0),
                        score: counts.f1().map(|share| 100.0 * share),
                    };
                    (name, part)
                })
                .collect()
        }
        _ => BTreeMap::new(),
    }
}
