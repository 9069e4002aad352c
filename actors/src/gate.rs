//! The promotion gate: what becomes of a candidate, from its scores on held-out samples and its parent's on
//! the same.

use std::collections::BTreeMap;

use speechverse::training::trainer_config::TrainerConfig;
use speechverse::wire::event::Verdict;

/// Word error rates of one version on the held-out samples, 0 to infinity.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Scores {
    /// Over all samples.
    pub overall: f64,
    /// By task.
    pub by_task: BTreeMap<String, f64>,
    /// Samples that were answered.
    pub samples: usize,
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

/// Judges a candidate. It is promoted when it is better than its parent by more than `wer_improvement_min`
/// over all samples and worse in no task by more than `wer_regression_max`; an equal one is not. Below
/// `held_out_samples_min` samples the verdict is undecided, and a candidate that looks better is kept for a
/// person to promote.
pub fn decide(parent: &Scores, candidate: &Scores, config: &TrainerConfig) -> Decision {
    let (before, after) = (parent.overall, candidate.overall);
    let samples = candidate.samples;
    let figures =
        format!("word error rate on {samples} held-out samples {before:.4} before, {after:.4} after");
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

/// Why a candidate is not good enough, if it is not.
fn objection(parent: &Scores, candidate: &Scores, config: &TrainerConfig) -> Option<String> {
    if candidate.samples != parent.samples {
        return Some(format!(
            "the candidate answered {} of them, its parent {}",
            candidate.samples, parent.samples
        ));
    }
    let enough = config.wer_improvement_min;
    let better = parent.overall - candidate.overall;
    if better.is_nan() || better <= enough {
        return Some(match enough == 0.0 {
            true => "a candidate has to be better, an equal one is not promoted".to_owned(),
            false => {
                format!("a candidate has to be better by more than {enough} (`trainer.wer_improvement_min`)")
            }
        });
    }
    let allowed = config.wer_regression_max;
    candidate.by_task.iter().find_map(|(task, after)| {
        let before = parent.by_task.get(task).copied().unwrap_or(0.0);
        (after - before > allowed).then(|| {
            format!(
                "task `{task}` went from {before:.4} to {after:.4}, at most {allowed} worse is allowed (`trainer.wer_regression_max`)"
            )
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scores(overall: f64, samples: usize, tasks: &[(&str, f64)]) -> Scores {
        Scores {
            overall,
            by_task: tasks
                .iter()
                .map(|(task, rate)| ((*task).to_owned(), *rate))
                .collect(),
            samples,
        }
    }

    fn verdict(before: f64, after: f64, samples: usize) -> Decision {
        let (before, after) = (scores(before, samples, &[]), scores(after, samples, &[]));
        decide(&before, &after, &TrainerConfig::default())
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
        let before = scores(0.5, 40, &[("asr", 0.6), ("intent", 0.1)]);
        let after = scores(0.4, 40, &[("asr", 0.4), ("intent", 0.2)]);

        let decision = decide(&before, &after, &TrainerConfig::default());

        assert_eq!(decision.verdict, Verdict::Refused);
        assert!(decision.reason.contains("`intent`"), "{}", decision.reason);
    }

    #[test]
    fn a_candidate_that_answered_fewer_samples_is_refused() {
        let decision = decide(
            &scores(0.5, 40, &[]),
            &scores(0.1, 39, &[]),
            &TrainerConfig::default(),
        );

        assert_eq!(decision.verdict, Verdict::Refused);
        assert!(decision.reason.contains("answered 39"), "{}", decision.reason);
    }
}
