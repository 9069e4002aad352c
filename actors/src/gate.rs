//! The promotion gate: what becomes of a candidate, from its scores on held-out samples and its parent's on
//! the same.

use std::collections::BTreeMap;

use speechverse::training::evaluate::TaskScore;
use speechverse::training::trainer_config::TrainerConfig;
use speechverse::wire::event::Verdict;

/// What one version's answers to the held-out samples are worth.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Scores {
    /// Mean over all answers of their tasks' errors ([`TaskScore::error`]): 0 is perfect, lower is better.
    pub overall: f64,
    /// By task, each by its own metric.
    pub by_task: BTreeMap<String, TaskScore>,
    /// Samples that were answered.
    pub samples: usize,
}

impl Scores {
    /// Puts the scores of all tasks together.
    pub fn of(scores: Vec<TaskScore>) -> Self {
        let samples: usize = scores.iter().map(|score| score.answers).sum();
        let errors: f64 = scores
            .iter()
            .map(|score| score.error() * score.answers as f64)
            .sum();
        Self {
            overall: if samples == 0 {
                0.0
            } else {
                errors / samples as f64
            },
            by_task: scores
                .into_iter()
                .map(|score| (score.task.clone(), score))
                .collect(),
            samples,
        }
    }
}

/// What becomes of a candidate.
#[derive(Clone, Debug, PartialEq)]
pub struct Decision {
    /// Promoted, refused, or undecided.
    pub verdict: Verdict,
    /// Whether it is worth a version of its own.
    pub keep: bool,
    /// The figures and the rule, for people.
    pub reason: String,
}

/// Judges a candidate. It is promoted when its error over all samples is lower than its parent's by more than
/// `improvement_min`, and in no task higher by more than `regression_max`; an equal one is not. Below
/// `held_out_samples_min` samples the verdict is undecided, and a candidate that looks better is kept for a
/// person to promote.
pub fn decide(parent: &Scores, candidate: &Scores, config: &TrainerConfig) -> Decision {
    let samples = candidate.samples;
    let figures = figures(parent, candidate);
    let objection = objection(parent, candidate, config);
    if samples < config.held_out_samples_min {
        let objection = objection.map(|objection| format!("; {objection}"));
        return Decision {
            verdict: Verdict::Undecided,
            keep: objection.is_none(),
            reason: format!(
                "{figures}; {samples} samples are too few for a verdict, `trainer.held_out_samples_min` is {}{}",
                config.held_out_samples_min,
                objection.unwrap_or_default()
            ),
        };
    }
    match objection {
        None => Decision {
            verdict: Verdict::Promoted,
            keep: true,
            reason: figures,
        },
        Some(objection) => Decision {
            verdict: Verdict::Refused,
            keep: false,
            reason: format!("{figures}; {objection}"),
        },
    }
}

/// The scores of both, for people.
fn figures(parent: &Scores, candidate: &Scores) -> String {
    let tasks: Vec<String> = parent
        .by_task
        .values()
        .map(|before| {
            let after = candidate.by_task.get(&before.task);
            let after = after.map_or_else(|| "nothing".to_owned(), |after| format!("{:.2}", after.score));
            format!(
                "{} {} {:.2} before, {after} after",
                before.task, before.metric, before.score
            )
        })
        .collect();
    format!("on {} held-out samples {}", candidate.samples, tasks.join(", "))
}

/// Why a candidate is not good enough, if it is not.
fn objection(parent: &Scores, candidate: &Scores, config: &TrainerConfig) -> Option<String> {
    if candidate.samples != parent.samples {
        return Some(format!(
            "the candidate answered {} of them, its parent {}",
            candidate.samples, parent.samples
        ));
    }
    let enough = config.improvement_min;
    let better = parent.overall - candidate.overall;
    if better.is_nan() || better <= enough {
        return Some(match enough == 0.0 {
            true => "a candidate has to be better, an equal one is not promoted".to_owned(),
            false => {
                format!("a candidate has to be better by more than {enough} (`trainer.improvement_min`)")
            }
        });
    }
    let allowed = config.regression_max;
    parent.by_task.values().find_map(|before| {
        let task = &before.task;
        let Some(after) = candidate.by_task.get(task) else {
            return Some(format!("task `{task}` has no answers any more"));
        };
        (after.error() - before.error() > allowed).then(|| {
            format!(
                "task `{task}` went from {} {:.2} to {:.2}, at most {allowed} worse is allowed (`trainer.regression_max`)",
                before.metric, before.score, after.score
            )
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    use speechverse::scoring::Metric;

    fn task(name: &str, metric: Metric, score: f64, answers: usize) -> TaskScore {
        TaskScore {
            task: name.to_owned(),
            metric,
            score,
            answers,
        }
    }

    fn verdict(before: f64, after: f64, samples: usize) -> Decision {
        let scores = |error: f64| Scores::of(vec![task("asr", Metric::Wer, error * 100.0, samples)]);
        decide(&scores(before), &scores(after), &TrainerConfig::default())
    }

    #[test]
    fn a_better_candidate_is_promoted_and_the_verdict_names_its_samples() {
        let decision = verdict(0.5, 0.49, 30);

        assert_eq!((decision.verdict, decision.keep), (Verdict::Promoted, true));
        assert!(
            decision.reason.contains("30 held-out samples"),
            "{}",
            decision.reason
        );
    }

    #[test]
    fn an_equal_or_a_worse_candidate_is_refused() {
        for after in [0.5, 0.51, f64::NAN] {
            let decision = verdict(0.5, after, 30);

            assert_eq!(
                (decision.verdict, decision.keep),
                (Verdict::Refused, false),
                "{after}"
            );
        }
    }

    #[test]
    fn too_few_samples_decide_nothing_and_only_a_better_candidate_is_kept() {
        for (after, keep) in [(0.4, true), (0.5, false), (0.6, false)] {
            let decision = verdict(0.5, after, 29);

            assert_eq!((decision.verdict, decision.keep), (Verdict::Undecided, keep));
            let reason = decision.reason;
            assert!(
                reason.contains("29 held-out samples") && reason.contains("is 30"),
                "{reason}"
            );
        }
    }

    #[test]
    fn a_task_may_not_pay_for_the_others() {
        // An accuracy is better where it is higher, a word error rate where it is lower.
        let scores = |wer: f64, accuracy: f64| {
            Scores::of(vec![
                task("asr", Metric::Wer, wer, 30),
                task("intent", Metric::Accuracy, accuracy, 10),
            ])
        };
        let (before, after) = (scores(60.0, 90.0), scores(40.0, 80.0));

        let decision = decide(&before, &after, &TrainerConfig::default());

        assert_eq!(decision.verdict, Verdict::Refused);
        assert!(decision.reason.contains("`intent`"), "{}", decision.reason);
    }

    #[test]
    fn a_candidate_that_answered_fewer_samples_is_refused() {
        let decision = decide(
            &Scores::of(vec![task("asr", Metric::Wer, 50.0, 40)]),
            &Scores::of(vec![task("asr", Metric::Wer, 10.0, 39)]),
            &TrainerConfig::default(),
        );

        assert_eq!(decision.verdict, Verdict::Refused);
        assert!(decision.reason.contains("answered 39"), "{}", decision.reason);
    }
}
