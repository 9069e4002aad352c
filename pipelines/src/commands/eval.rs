//! `speechverse eval`: manifests in, scores of the answers out.

use std::collections::BTreeMap;
use std::io::IsTerminal;

use anyhow::Context;
use indicatif::{ProgressBar, ProgressStyle};
use speechverse::config::Settings;
use speechverse::evaluation::report::{DatasetFacts, Facts};
use speechverse::evaluation::support::Support;
use speechverse::evaluation::{
    Answered, Choices, Dataset, Plan, PromptChoice, Report, markdown, read_rows, run, write_report,
};
use speechverse::inference::{DecodeOptions, EngineConfig};
use speechverse::nn::accel::{cpu_capability, threads};
use speechverse::text::TaskTable;
use speechverse::training::evaluate::EvaluateOptions;
use speechverse::training::{Control, Networks};

use super::Failure;
use crate::cli::{Eval, PromptSet};
use crate::{adapters, output};

/// Recordings taken up together, and answers generated side by side.
const BATCH_ROWS: usize = 16;

pub(super) fn eval(args: &Eval) -> Result<(), Failure> {
    let settings = Settings::load(&args.settings.config).map_err(Failure::usage)?;
    let tasks = TaskTable::load(&settings.service.tasks_dir).map_err(Failure::usage)?;
    let decoding = args.decoding.options(&settings).map_err(Failure::Usage)?;
    let datasets = Dataset::read(&args.manifests, args.limit, &tasks).context("nothing was evaluated")?;
    let others = read_rows(&args.rows).context("nothing was evaluated")?;
    if others.is_empty() && datasets.iter().all(|dataset| dataset.examples.is_empty()) {
        return Err(anyhow::anyhow!("the files have no rows: nothing was evaluated").into());
    }
    let plan = Plan::new(&datasets, &tasks, &choices(args));
    let mut facts = facts(args, &datasets)?;
    let mut answered = Answered::default();
    if !datasets.is_empty() {
        answered = answer(args, &settings, &plan, decoding, &mut facts)?;
    }
    answered.rows.extend(others);
    let mut report = Report::new(&answered, plan.left_out(), &tasks, facts);
    report.support = Support::of(&answered.rows, settings.decoder.unsupported_below);
    for problem in &report.problems {
        tracing::error!("{problem}");
    }
    if let Some(folder) = &args.report {
        let files =
            write_report(&report, &answered.rows, folder).context("the report could not be written")?;
        tracing::info!(folder = %folder.display(), files = files.len(), "the report is written");
    }
    if args.json {
        for row in &answered.rows {
            output::line(serde_json::to_string(row).context("rows are always JSON")?)?;
        }
        for score in &report.scores {
            output::line(serde_json::to_string(score).context("scores are always JSON")?)?;
        }
    } else {
        for table in report.tables() {
            output::line(format!("{}:", table.title()))?;
            output::table(&markdown::long(&report, table), &[3])?;
            output::line("")?;
        }
        if !report.support.is_empty() {
            output::line("transcripts flagged `unsupported`:")?;
            output::table(&markdown::support(&report), &[])?;
            output::line("")?;
        }
        if !report.invention.is_empty() {
            output::line("words where nothing is said:")?;
            output::table(&markdown::invention(&report), &[2])?;
            output::line("")?;
        }
        let about = |name: &str| report.facts.models.get(name).or(report.facts.machine.get(name));
        for name in ["adapter", "networks compute"] {
            if let Some(value) = about(name) {
                output::line(format!("{name}: {value}"))?;
            }
        }
        output::line(format!(
            "scores 0 to 100 with 95 % bootstrap intervals; {:.0} s of audio in {:.0} s",
            report.audio_seconds, report.seconds
        ))?;
        for left_out in &report.left_out {
            output::line(format!("left out: {left_out}"))?;
        }
    }
    match report.problems.len() {
        0 => Ok(()),
        problems => Err(anyhow::anyhow!(
            "{problems} recordings or questions could not be evaluated, see above; they are in no score"
        )
        .into()),
    }
}

fn choices(args: &Eval) -> Choices {
    Choices {
        constrained: args.constrain,
        cascade: args.cascade,
        prompts: args.prompts.map(|choice| match choice {
            PromptSet::Seen => PromptChoice::Seen,
            PromptSet::HeldOut => PromptChoice::HeldOut,
            PromptSet::All => PromptChoice::All,
        }),
        grid: args.grid,
        joint: args.joint,
    }
}

/// Loads the networks and answers everything that the plan asks; notes in `facts` with what.
fn answer(
    args: &Eval,
    settings: &Settings,
    plan: &Plan<'_>,
    decoding: DecodeOptions,
    facts: &mut Facts,
) -> anyhow::Result<Answered> {
    let identities = adapters::identities(settings)?;
    let (_, loaded) = adapters::open(settings, args.adapter.as_deref(), &identities)?;
    let networks = Networks::load(&settings.model).context("cannot load the networks")?;
    let options = EvaluateOptions {
        engine: EngineConfig {
            slots: BATCH_ROWS.max(decoding.slots()),
            answer_positions: decoding.tokens_max,
            options: decoding,
            ..settings.engine()
        },
        by_ctc: args.by_ctc,
    };
    let bar = progress();
    let answered = run(
        plan,
        &networks,
        &loaded.adapter,
        &options,
        &Control::new(),
        &mut |done, total| {
            bar.set_length(total as u64);
            bar.set_position(done as u64);
        },
    )
    .context("the evaluation failed")?;
    bar.finish_and_clear();

    let (encoder, llm, adapter) = (
        &networks.encoder_identity,
        &networks.llm_identity,
        &loaded.manifest,
    );
    facts.models.extend(named([
        ("encoder", format!("{} sha256 {}", encoder.name, encoder.digest)),
        ("language model", format!("{} sha256 {}", llm.name, llm.digest)),
        ("adapter", adapter.version.clone()),
        ("adapter created", adapter.created.clone()),
        (
            "adapter trained on",
            format!("data sha256 {}", adapter.data_digest),
        ),
    ]));
    facts.machine.extend(named([
        ("networks compute", networks.placement.to_string()),
        ("threads of one operation", threads().to_string()),
    ]));
    let how = match args.by_ctc {
        true => "CTC head, best path".to_owned(),
        false => format!("{:?}", decoding.strategy),
    };
    facts.settings.extend(named([
        ("decoding", how),
        (
            "constrained",
            args.constrain
                .map_or("as served".to_owned(), |constrain| constrain.to_string()),
        ),
        ("answer tokens at most", decoding.tokens_max.to_string()),
        ("batch", options.engine.slots.to_string()),
    ]));
    Ok(answered)
}

/// How far the answers are, on a terminal.
fn progress() -> ProgressBar {
    let bar = if std::io::stderr().is_terminal() {
        ProgressBar::no_length()
    } else {
        ProgressBar::hidden()
    };
    let template = "{elapsed_precise} {wide_bar} {pos}/{len} answers";
    bar.set_style(ProgressStyle::with_template(template).expect("a constant template"));
    bar
}

/// The report's circumstances, as far as they do not depend on networks.
fn facts(args: &Eval, datasets: &[Dataset]) -> anyhow::Result<Facts> {
    let data: Result<Vec<DatasetFacts>, _> = datasets
        .iter()
        .zip(&args.manifests)
        .map(|(dataset, path)| DatasetFacts::new(dataset, path))
        .collect();
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let limit = args
        .limit
        .map_or("all".to_owned(), |limit| format!("the first {limit}"));
    let mut settings = named([("rows of each manifest", limit)]);
    let others: Vec<String> = args.rows.iter().map(|path| path.display().to_string()).collect();
    if !others.is_empty() {
        settings.extend(named([("answers read from", others.join(", "))]));
    }
    Ok(Facts {
        created: jiff::Timestamp::now().to_string(),
        program: format!("speechverse {}", env!("CARGO_PKG_VERSION")),
        machine: named([
            ("processor", processor()),
            ("vector instructions", cpu_capability()),
            ("cores", cores.to_string()),
            (
                "system",
                format!("{} {}", std::env::consts::OS, std::env::consts::ARCH),
            ),
        ]),
        models: BTreeMap::new(),
        settings,
        data: data?,
    })
}

fn named<const N: usize>(pairs: [(&str, String); N]) -> BTreeMap<String, String> {
    pairs.map(|(name, value)| (name.to_owned(), value)).into()
}

/// What the processor calls itself.
fn processor() -> String {
    std::fs::read_to_string("/proc/cpuinfo")
        .ok()
        .and_then(|text| {
            let line = text.lines().find(|line| line.starts_with("model name"))?;
            Some(line.split_once(':')?.1.trim().to_owned())
        })
        .unwrap_or_else(|| std::env::consts::ARCH.to_owned())
}
