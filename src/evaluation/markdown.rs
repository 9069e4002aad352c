//! `report.md`: the paper's tables first, then everything that was measured, then under which circumstances.

use std::fmt::Write;

use super::report::{Report, Score};
use super::support::Share;
use super::variants::Table;

/// A report as Markdown.
pub fn markdown(report: &Report) -> String {
    let mut out = String::from("# Evaluation\n\n");
    let bootstrap = &report.bootstrap;
    let _ = writeln!(
        out,
        "Scores are on the scale 0 to 100, ↓ where less is better. In brackets: the middle {:.0} % of {} bootstrap \
         resamples of the utterances. Beside it the difference to the table's first system on the same utterances, with a \
         star where its interval leaves out zero.\n",
        100.0 * bootstrap.level,
        bootstrap.resamples
    );
    for table in report.tables() {
        let _ = writeln!(out, "## {}\n", table.title());
        write_table(&mut out, &wide(report, table));
        write_table(&mut out, &long(report, table));
    }
    let mut parts = vec![row(["table", "system", "task", "set", "part", "count", "score"])];
    for score in report.scores.iter().filter(|score| score.main) {
        for (name, part) in score.domains.iter().chain(&score.classes) {
            parts.push(row([
                score.table.title(),
                &score.variant,
                &score.task,
                &score.dataset,
                name,
                &part.count.to_string(),
                &number(part.score),
            ]));
        }
    }
    if parts.len() > 1 {
        out.push_str("## By domain, class (recall; F1 for macro F1) and slot type (SLU-F1)\n\n");
        write_table(&mut out, &parts);
    }
    if !report.support.is_empty() {
        out.push_str("## Transcripts flagged `unsupported`\n\n");
        write_table(&mut out, &support(report));
    }
    if !report.invention.is_empty() {
        out.push_str("## Words where nothing is said\n\n");
        write_table(&mut out, &invention(report));
    }
    out.push_str("## Metrics\n\n");
    let mut metrics = vec![row(["metric", "signature"])];
    for note in report.metrics.values() {
        // A bar would end the cell.
        metrics.push(row([&note.title, &note.signature.replace('|', " · ")]));
    }
    write_table(&mut out, &metrics);
    out.push_str("## Data\n\n");
    let mut data = vec![row(["set", "recordings", "minutes", "manifest", "sha256"])];
    for dataset in &report.facts.data {
        data.push(row([
            &dataset.name,
            &dataset.recordings.to_string(),
            &format!("{:.1}", dataset.seconds / 60.0),
            &dataset.path,
            &dataset.sha256,
        ]));
    }
    write_table(&mut out, &data);
    out.push_str("## Circumstances\n\n");
    let facts = &report.facts;
    let mut rows = vec![row(["", ""])];
    rows.push(row(["program", &facts.program]));
    rows.push(row(["created", &facts.created]));
    for (name, value) in facts.models.iter().chain(&facts.machine).chain(&facts.settings) {
        rows.push(row([name, value]));
    }
    rows.push(row([
        "audio",
        &format!(
            "{:.1} s, everything answered in {:.1} s",
            report.audio_seconds, report.seconds
        ),
    ]));
    write_table(&mut out, &rows);
    for (title, list) in [
        ("Left out", &report.left_out),
        ("Not scored: problems", &report.problems),
    ] {
        if !list.is_empty() {
            let _ = writeln!(out, "## {title}\n");
            for line in list {
                let _ = writeln!(out, "- {}", cell(line));
            }
            out.push('\n');
        }
    }
    out
}

/// A table in the shape of the paper's tables: variants as rows, tasks and datasets as columns, main metrics
/// only.
pub fn wide(report: &Report, table: Table) -> Vec<Vec<String>> {
    let scores: Vec<&Score> = report
        .scores
        .iter()
        .filter(|score| score.table == table && score.main)
        .collect();
    let (mut variants, mut columns) = (Vec::new(), Vec::new());
    for score in &scores {
        let column = (&score.task, &score.dataset, score.metric);
        if !columns.contains(&column) {
            columns.push(column);
        }
        if !variants.contains(&&score.variant) {
            variants.push(&score.variant);
        }
    }
    let mut rows = vec![vec!["system".to_owned()]];
    for (task, dataset, metric) in &columns {
        let arrow = if metric.lower_is_better() { " ↓" } else { "" };
        rows[0].push(format!("{task}, {dataset}: {metric}{arrow}"));
    }
    for variant in variants {
        let mut line = vec![variant.clone()];
        for column in &columns {
            let found = scores.iter().find(|score| {
                (&score.task, &score.dataset, score.metric) == *column && &score.variant == variant
            });
            line.push(found.map_or_else(|| "–".to_owned(), |score| with_interval(score)));
        }
        rows.push(line);
    }
    rows
}

/// Every score of a table as a row.
pub fn long(report: &Report, table: Table) -> Vec<Vec<String>> {
    let mut rows = vec![row([
        "task",
        "set",
        "system",
        "utterances",
        "metric",
        "score",
        "difference",
    ])];
    for score in report.scores.iter().filter(|score| score.table == table) {
        rows.push(row([
            &score.task,
            &score.dataset,
            &score.variant,
            &score.utterances.to_string(),
            score.metric.title(),
            &with_interval(score),
            &difference(score),
        ]));
    }
    rows
}

/// How many wrong and how many right transcripts are flagged `unsupported`.
pub fn support(report: &Report) -> Vec<Vec<String>> {
    let share = |share: &Share| match share.percent() {
        Some(percent) => format!("{} of {} ({percent:.1} %)", share.flagged, share.answers),
        None => "–".to_owned(),
    };
    let mut rows = vec![row([
        "system",
        "set",
        "flagged, WER above 50 %",
        "flagged, WER below 10 %",
    ])];
    rows.extend(report.support.iter().map(|support| {
        row([
            &support.variant,
            support.dataset.as_deref().unwrap_or("all"),
            &share(&support.wrong),
            &share(&support.right),
        ])
    }));
    rows
}

/// How many clips in which nothing is said got words.
pub fn invention(report: &Report) -> Vec<Vec<String>> {
    let mut rows = vec![row([
        "system",
        "set",
        "clips without words",
        "answered with words",
    ])];
    rows.extend(report.invention.iter().map(|found| {
        row([
            &found.variant,
            &found.dataset,
            &found.clips.to_string(),
            &format!("{} ({:.1} %)", found.with_words, found.percent()),
        ])
    }));
    rows
}

/// A score with its interval: `12.3 [10.1, 14.6]`.
pub fn with_interval(score: &Score) -> String {
    match score.interval {
        Some(interval) => format!(
            "{} [{:.1}, {:.1}]",
            number(score.score),
            interval.low,
            interval.high
        ),
        None => number(score.score),
    }
}

fn difference(score: &Score) -> String {
    score.against_first.map_or_else(String::new, |against| {
        let sure = against.interval.low > 0.0 || against.interval.high < 0.0;
        // No finer than the resamples allow.
        let p = if against.p < 0.01 {
            "p < 0.01".to_owned()
        } else {
            format!("p {:.2}", against.p)
        };
        format!("{:+.1} ({p}){}", against.difference, if sure { " *" } else { "" })
    })
}

fn number(score: Option<f64>) -> String {
    score.map_or_else(|| "–".to_owned(), |score| format!("{score:.1}"))
}

fn row<const N: usize>(cells: [&str; N]) -> Vec<String> {
    cells.map(str::to_owned).to_vec()
}

/// Text that cannot break out of a cell.
fn cell(text: &str) -> String {
    text.replace('|', "\\|").replace(['\n', '\r'], " ")
}

fn write_table(out: &mut String, rows: &[Vec<String>]) {
    for (at, row) in rows.iter().enumerate() {
        let cells: Vec<String> = row.iter().map(|text| cell(text)).collect();
        let _ = writeln!(out, "| {} |", cells.join(" | "));
        if at == 0 {
            let _ = writeln!(out, "|{}", " --- |".repeat(row.len()));
        }
    }
    out.push('\n');
}
