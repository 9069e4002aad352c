//! Compares what was asked with the log of outcomes. It knows nothing of how outcomes are made.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::{Duration, Instant};

use crate::load::{AllAsked, Asked, Form};
use crate::watch::{Outcome, Seen, Watch};

/// Longest that a request may wait for its outcome, from its publication or the end of the last fault before
/// the outcome on.
pub(crate) const WAIT_MAX: Duration = Duration::from_secs(60);
/// The dead letter of what is no sound.
const NO_SOUND: &str = "not_audio";
/// The dead letters of a stream that lacks a chunk.
const BROKEN: &str = "broken_stream";
/// The dead letter of a record that a stage had in hand when it panicked.
const STAGE_FAILED: &str = "internal_error";

/// Most requests that a stage has in hand when it panics: a batch of the encoder, the slots of the decoder.
const IN_HAND_MAX: usize = 16;

/// What has to hold.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rules {
    /// No outcome may be there twice.
    pub(crate) exactly_once: bool,
    /// Stages that panicked; each had one request in hand, and no more than [`IN_HAND_MAX`].
    pub(crate) panics: usize,
    /// Stages that may have panicked besides, in processes that ended before they were through.
    pub(crate) panics_perhaps: usize,
}

/// What was found.
#[derive(Debug, Default)]
pub(crate) struct Verdict {
    pub(crate) answers: usize,
    pub(crate) dead_letters: usize,
    /// Labelled samples that are stored.
    pub(crate) stored: usize,
    /// Outcomes beyond those that a request should have.
    pub(crate) repeats: usize,
    /// Dead letters of requests that a stage had in hand when it panicked.
    pub(crate) lost_to_panics: usize,
    /// Longest wait from publication on, faults included.
    pub(crate) longest: Duration,
    /// Longest wait after the end of a fault.
    pub(crate) longest_after_fault: Duration,
    /// What must not be.
    pub(crate) faults: Vec<String>,
}

impl Verdict {
    fn fault(&mut self, what: String) {
        const SHOWN: usize = 30;
        if self.faults.len() < SHOWN {
            self.faults.push(what);
        }
    }
}

/// Judges a run. `others` are ids of labels and orders; `calm` are the times at which faults ended, in order.
pub(crate) fn judge(
    asked: &AllAsked,
    seen: &[Seen],
    others: &BTreeSet<String>,
    watch: &Watch,
    calm: &[Instant],
    rules: Rules,
) -> Verdict {
    let asked = asked.lock().unwrap();
    let mut verdict = Verdict::default();
    let mut by_id: BTreeMap<&str, Vec<&Seen>> = BTreeMap::new();
    for seen in seen {
        if asked.contains_key(&seen.id) {
            by_id.entry(&seen.id).or_default().push(seen);
        } else if !(others.contains(&seen.id) && matches!(seen.outcome, Outcome::DeadLetter(_))) {
            verdict.fault(format!("nobody asked for {seen:?}"));
        }
    }
    let mut texts: HashMap<Form, &str> = HashMap::new();
    for (id, asked) in asked.iter() {
        let Some(outcomes) = by_id.get(id.as_str()) else {
            verdict.fault(format!("{id} has no outcome: {asked:?}"));
            continue;
        };
        // The dead letters of a stream stand for all its chunks.
        let is_dead = |seen: &&Seen| matches!(seen.outcome, Outcome::DeadLetter(_));
        let dead = outcomes.iter().copied().filter(is_dead);
        let records: usize = dead.map(|seen| seen.records).sum();
        let answers = outcomes.iter().filter(|seen| !is_dead(seen)).count();
        let expected = asked.form.records();
        verdict.repeats += (answers + records.div_ceil(expected)).saturating_sub(1);
        let is_once = matches!((answers, records), (1, 0)) || (answers, records) == (0, expected);
        let is_whole = answers > 0 || records >= expected;
        if !is_whole || rules.exactly_once && !is_once {
            verdict.fault(format!(
                "{id} has {answers} answers and dead letters for {records} records of {expected}: {outcomes:?}"
            ));
        }
        let failed = Outcome::DeadLetter(STAGE_FAILED.to_owned());
        let is_failed = outcomes.iter().any(|seen| seen.outcome == failed);
        verdict.lost_to_panics += usize::from(is_failed);
        for seen in outcomes {
            if seen.key != asked.key.as_bytes() {
                verdict.fault(format!("{id} was asked under the key {:?}: {seen:?}", asked.key));
            }
            match (&seen.outcome, asked.form) {
                (Outcome::Answer(_), Form::Stream { partials: true, .. }) => {}
                (Outcome::Answer(text), Form::Whole(_) | Form::Stream { .. }) => {
                    let expected = texts.entry(asked.form).or_insert(text);
                    if expected != text {
                        verdict.fault(format!(
                            "{id}: {text:?}, elsewhere {expected:?} to the same sound"
                        ));
                    }
                }
                (Outcome::DeadLetter(reason), Form::NoSound) if reason == NO_SOUND => {}
                (Outcome::DeadLetter(reason), Form::Broken { .. }) if reason == BROKEN => {}
                // The chunks behind those that a stage had in hand.
                (Outcome::DeadLetter(reason), Form::Stream { .. }) if reason == BROKEN && is_failed => {}
                (Outcome::DeadLetter(reason), _) if reason == STAGE_FAILED => {}
                _ => verdict.fault(format!("{id} ({asked:?}) has the outcome {seen:?}")),
            }
        }
        match outcomes[0].outcome {
            Outcome::Answer(_) => verdict.answers += 1,
            Outcome::DeadLetter(_) => verdict.dead_letters += 1,
        }
        judge_wait(&mut verdict, id, asked, watch, calm);
    }
    let expected = rules.panics..=(rules.panics + rules.panics_perhaps) * IN_HAND_MAX;
    if !expected.contains(&verdict.lost_to_panics) {
        let lost = verdict.lost_to_panics;
        verdict.fault(format!(
            "{lost} dead letters say that a stage failed, not {expected:?}"
        ));
    }
    judge_order(&mut verdict, &asked, seen);
    verdict
}

/// Each labelled sample is stored or a dead letter.
pub(crate) fn judge_labels(
    verdict: &mut Verdict,
    others: &BTreeSet<String>,
    seen: &[Seen],
    stored: &BTreeSet<String>,
) {
    let dead: BTreeSet<&str> = seen.iter().map(|seen| seen.id.as_str()).collect();
    for id in others {
        if !stored.contains(id) && !dead.contains(id.as_str()) {
            verdict.fault(format!("{id} is in no store and no dead letter"));
        }
    }
    verdict.stored = stored.len();
}

fn judge_wait(verdict: &mut Verdict, id: &str, asked: &Asked, watch: &Watch, calm: &[Instant]) {
    let Some(arrival) = watch.arrival(id) else {
        return verdict.fault(format!("{id} is in the log, and who read along did not see it"));
    };
    let last_calm = calm.iter().rev().find(|end| **end <= arrival);
    let since = last_calm
        .copied()
        .map_or(asked.published, |end| end.max(asked.published));
    verdict.longest = verdict.longest.max(arrival - asked.published);
    let wait = arrival - since;
    verdict.longest_after_fault = verdict.longest_after_fault.max(wait);
    if wait > WAIT_MAX {
        verdict.fault(format!(
            "{id} waited {wait:?} although nothing was wrong any more"
        ));
    }
}

/// One key is in one partition, and who waits for an answer before asking again reads answers in that order.
fn judge_order(verdict: &mut Verdict, asked: &BTreeMap<String, Asked>, seen: &[Seen]) {
    let mut partitions: HashMap<&[u8], i32> = HashMap::new();
    let mut last_turns: HashMap<&[u8], (usize, i64)> = HashMap::new();
    let mut known: BTreeSet<&str> = BTreeSet::new();
    for seen in seen
        .iter()
        .filter(|seen| matches!(seen.outcome, Outcome::Answer(_)))
    {
        let partition = *partitions.entry(&seen.key).or_insert(seen.partition);
        if partition != seen.partition {
            verdict.fault(format!(
                "the answers of one key are in two partitions: {partition} and {seen:?}"
            ));
        }
        let turn = asked.get(&seen.id).and_then(|asked| asked.turn);
        let is_first = known.insert(&seen.id); // a repeat may come at any time
        if let (Some(turn), true) = (turn, is_first) {
            let (last, offset) = last_turns
                .insert(&seen.key, (turn, seen.offset))
                .unwrap_or((0, -1));
            if last >= turn || offset >= seen.offset {
                verdict.fault(format!(
                    "turn {turn} of a conversation is read after turn {last}: {seen:?}"
                ));
            }
        }
    }
}

mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    const STREAM: Form = Form::Stream {
        clip: 1,
        chunks: 2,
        partials: false,
    };
    const RULES: Rules = Rules {
        exactly_once: true,
        panics: 0,
        panics_perhaps: 0,
    };

    fn asked(entries: &[(&str, Form, Option<usize>)]) -> AllAsked {
        let asked = entries.iter().map(|(id, form, turn)| {
            let asked = Asked {
                key: "k".to_owned(),
                form: *form,
                turn: *turn,
                published: Instant::now(),
            };
            ((*id).to_owned(), asked)
        });
        Arc::new(Mutex::new(asked.collect()))
    }

    fn answer(id: &str, text: &str, offset: i64) -> Seen {
        Seen {
            id: id.to_owned(),
            key: b"k".to_vec(),
            partition: 1,
            offset,
            outcome: Outcome::Answer(text.to_owned()),
            records: 1,
            chunk: None,
        }
    }

    fn letter(id: &str, reason: &str) -> Seen {
        Seen {
            outcome: Outcome::DeadLetter(reason.to_owned()),
            ..answer(id, "", 0)
        }
    }

    fn faults(asked: &AllAsked, seen: &[Seen], rules: Rules) -> Vec<String> {
        let watch = Watch::of(seen.iter().map(|seen| seen.id.clone()));
        judge(asked, seen, &BTreeSet::new(), &watch, &[], rules).faults
    }

    #[test]
    fn one_outcome_for_each_request_is_right() {
        let asked = asked(&[
            ("a", Form::Whole(1), Some(1)),
            ("b", Form::Whole(1), Some(2)),
            ("c", Form::NoSound, None),
            ("d", STREAM, None),
            ("e", Form::Broken { chunks: 2 }, None),
        ]);
        let seen = [
            answer("a", "x", 0),
            answer("b", "x", 1),
            letter("c", NO_SOUND),
            answer("d", "y", 2),
            letter("e", BROKEN),
            letter("e", BROKEN),
        ];

        assert_eq!(faults(&asked, &seen, RULES), Vec::<String>::new());
    }

    #[test]
    fn whatever_is_wrong_is_found() {
        let asked = asked(&[("a", Form::Whole(1), Some(1)), ("b", Form::Whole(1), Some(2))]);
        let (a, b) = (answer("a", "x", 0), answer("b", "x", 1));
        for (what, seen, fault) in [
            ("lost", vec![a.clone()], "b has no outcome"),
            (
                "doubled",
                vec![a.clone(), b.clone(), answer("a", "x", 2)],
                "a has 2 answers",
            ),
            (
                "invented",
                vec![a.clone(), b.clone(), answer("z", "x", 2)],
                "nobody asked",
            ),
            (
                "another text",
                vec![a.clone(), answer("b", "y", 1)],
                "the same sound",
            ),
            ("dead", vec![a.clone(), letter("b", NO_SOUND)], "has the outcome"),
            (
                "failed",
                vec![a.clone(), letter("b", STAGE_FAILED)],
                "a stage failed",
            ),
            ("out of order", vec![b.clone(), answer("a", "x", 2)], "turn 1"),
        ] {
            let found = faults(&asked, &seen, RULES);

            assert!(
                found.iter().any(|found| found.contains(fault)),
                "{what}: {found:?}"
            );
        }
    }

    #[test]
    fn a_stream_is_answered_or_each_of_its_chunks_is_a_dead_letter() {
        let asked = asked(&[("a", STREAM, None), ("b", STREAM, None)]);
        let rules = Rules { panics: 1, ..RULES };
        let failed = letter("a", STAGE_FAILED);
        let b = answer("b", "x", 0);

        assert!(faults(&asked, &[failed.clone(), letter("a", BROKEN), b.clone()], rules).is_empty());
        let whole = Seen {
            records: 2,
            ..failed.clone()
        };
        assert!(faults(&asked, &[whole, b.clone()], rules).is_empty());
        assert!(
            !faults(
                &asked,
                &[letter("a", BROKEN), letter("a", BROKEN), b.clone()],
                RULES
            )
            .is_empty()
        );
        assert!(
            !faults(&asked, &[failed.clone(), b.clone()], rules).is_empty(),
            "a chunk is lost"
        );
        let other = answer("a", "y", 1);
        assert!(
            !faults(&asked, &[other, b], RULES).is_empty(),
            "another text for the same sound"
        );
    }

    #[test]
    fn at_least_once_takes_repeats_of_the_same_text() {
        let asked = asked(&[("a", Form::Whole(1), None)]);
        let rules = Rules {
            exactly_once: false,
            ..RULES
        };

        assert!(faults(&asked, &[answer("a", "x", 0), answer("a", "x", 1)], rules).is_empty());
        assert!(!faults(&asked, &[answer("a", "x", 0), answer("a", "y", 1)], rules).is_empty());
    }

    #[test]
    fn a_wait_counts_from_the_end_of_a_fault() {
        let asked = asked(&[("a", Form::Whole(1), None)]);
        let published = asked.lock().unwrap()["a"].published;
        let seen = [answer("a", "x", 0)];
        let watch = Watch::at("a", published + WAIT_MAX * 2);
        let judged = |calm: &[Instant]| {
            judge(&asked, &seen, &BTreeSet::new(), &watch, calm, RULES)
                .faults
                .len()
        };

        assert_eq!(judged(&[]), 1);
        assert_eq!(judged(&[published + WAIT_MAX * 3 / 2]), 0);
        assert_eq!(
            judged(&[published + WAIT_MAX * 3]),
            1,
            "a fault that came after it"
        );
    }
}
