//! Slot labels: SLURP's SLU-F1, and F1 of the labels alone (SD-F1).
//!
//! Definition of SLU-F1 (Bastianelli et al. 2020, SpeechVerse §9.1). An utterance's entities are (type,
//! filler), both in lower case, the filler's words joined by one space, as
//! [`crate::text::AnswerFormat::parse`] reads them. Per utterance, twice, once with word distance (word error
//! rate of the answered filler against the wanted one, may exceed 1) and once with character distance (edit
//! distance over the longer length): each answered entity, in order, whose type is among the wanted ones left
//! takes the nearest of that type (the first of equally near ones), with distance d: hits + 1, wrongly
//! answered + d, missed + d for the type. An entity of another type is wrongly answered (+ 1). Wanted
//! entities left over are missed (+ 1). The tables of both runs are added; precision, recall and F1 come from
//! the totals over all types (micro). Each recording counts by itself.
//!
//! SD-F1 counts labels per utterance, values ignored (hits are the overlap of the two bags of labels), micro
//! too.
//!
//! Empty: two empty fillers have distance 0; an empty wanted filler has word distance "words answered". Where
//! nothing was wanted and nothing answered there is no score.

use std::collections::BTreeMap;
use std::ops::AddAssign;

use super::errors::{character_errors, word_errors};
use crate::text::answer::SlotLabel;

/// Hits, wrong answers and misses; fractions of entities under a distance.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct SlotCounts {
    /// Wanted entities that were answered.
    pub hits: f64,
    /// Answered entities, or distances, that were not wanted.
    pub wrong: f64,
    /// Wanted entities, or distances, that were not answered.
    pub missed: f64,
}

impl SlotCounts {
    /// `hits / (hits + wrong)`; absent where nothing was answered.
    pub fn precision(&self) -> Option<f64> {
        let answered = self.hits + self.wrong;
        (answered > 0.0).then(|| self.hits / answered)
    }

    /// `hits / (hits + missed)`; absent where nothing was wanted.
    pub fn recall(&self) -> Option<f64> {
        let wanted = self.hits + self.missed;
        (wanted > 0.0).then(|| self.hits / wanted)
    }

    /// F1, 0 to 1; absent where nothing was wanted and nothing answered.
    pub fn f1(&self) -> Option<f64> {
        super::f1(self.hits, self.hits + self.wrong, self.hits + self.missed)
    }
}

impl AddAssign for SlotCounts {
    fn add_assign(&mut self, other: Self) {
        self.hits += other.hits;
        self.wrong += other.wrong;
        self.missed += other.missed;
    }
}

/// Counts by entity type.
pub type SlotTable = BTreeMap<String, SlotCounts>;

/// All types of a table together.
pub fn total(table: &SlotTable) -> SlotCounts {
    let mut sum = SlotCounts::default();
    for counts in table.values() {
        sum += *counts;
    }
    sum
}

/// Adds a table to another, type by type.
pub fn add_table(sum: &mut SlotTable, table: &SlotTable) {
    for (label, counts) in table {
        *sum.entry(label.clone()).or_default() += *counts;
    }
}

/// One utterance's counts under word distance.
pub fn word_run(wanted: &[SlotLabel], answered: &[SlotLabel]) -> SlotTable {
    run(wanted, answered, |wanted, answered| {
        word_errors(wanted, answered).rate()
    })
}

/// One utterance's counts under character distance.
pub fn character_run(wanted: &[SlotLabel], answered: &[SlotLabel]) -> SlotTable {
    run(wanted, answered, |wanted, answered| {
        let longer = wanted.chars().count().max(answered.chars().count());
        character_errors(wanted, answered).errors() as f64 / longer.max(1) as f64
    })
}

/// One utterance's counts for SLU-F1: both runs together.
pub fn slu_counts(wanted: &[SlotLabel], answered: &[SlotLabel]) -> SlotTable {
    let mut table = word_run(wanted, answered);
    add_table(&mut table, &character_run(wanted, answered));
    table
}

/// One utterance's counts for SD-F1: labels only.
pub fn label_counts(wanted: &[SlotLabel], answered: &[SlotLabel]) -> SlotTable {
    run(wanted, answered, |_, _| 0.0)
}

fn run(wanted: &[SlotLabel], answered: &[SlotLabel], distance: impl Fn(&str, &str) -> f64) -> SlotTable {
    let mut table = SlotTable::new();
    let mut left: Vec<&SlotLabel> = wanted.iter().collect();
    for entity in answered {
        let counts = table.entry(entity.name.clone()).or_default();
        let nearest = left
            .iter()
            .enumerate()
            .filter(|(_, candidate)| candidate.name == entity.name)
            .map(|(at, candidate)| (at, distance(&candidate.value, &entity.value)))
            .min_by(|left, right| left.1.total_cmp(&right.1));
        match nearest {
            Some((at, distance)) => {
                left.remove(at);
                counts.hits += 1.0;
                counts.wrong += distance;
                counts.missed += distance;
            }
            None => counts.wrong += 1.0,
        }
    }
    for entity in left {
        table.entry(entity.name.clone()).or_default().missed += 1.0;
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entities(list: &[(&str, &str)]) -> Vec<SlotLabel> {
        list.iter()
            .map(|(name, value)| SlotLabel {
                name: (*name).into(),
                value: (*value).into(),
            })
            .collect()
    }

    #[test]
    fn an_answer_takes_the_nearest_entity_of_its_type() {
        let wanted = entities(&[("time", "five pm"), ("time", "six am"), ("date", "today")]);
        let answered = entities(&[("time", "six am"), ("person", "bob")]);

        let words = total(&word_run(&wanted, &answered));
        let labels = total(&label_counts(&wanted, &answered));

        assert_eq!((words.hits, words.wrong, words.missed), (1.0, 1.0, 2.0));
        assert_eq!(labels, words);
        assert_eq!(words.f1(), Some(0.4));
        assert_eq!((words.precision(), words.recall()), (Some(0.5), Some(1.0 / 3.0)));
    }

    #[test]
    fn distances_are_shared_by_both_sides() {
        let (wanted, answered) = (entities(&[("a", "abcd")]), entities(&[("a", "abxd ef")]));

        let table = slu_counts(&wanted, &answered);

        // Words: one substituted, one inserted, over one. Characters: four edits over seven.
        let counts = table["a"];
        assert_eq!(counts.hits, 2.0);
        assert!((counts.wrong - (2.0 + 4.0 / 7.0)).abs() < 1e-12);
        assert_eq!(counts.wrong, counts.missed);
    }

    #[test]
    fn nothing_wanted_and_nothing_answered_has_no_score() {
        assert_eq!(total(&slu_counts(&[], &[])).f1(), None);
        assert_eq!(total(&slu_counts(&[], &entities(&[("a", "")]))).f1(), Some(0.0));
        assert_eq!(
            total(&slu_counts(&entities(&[("a", "")]), &entities(&[("a", "")]))).f1(),
            Some(1.0)
        );
    }
}
