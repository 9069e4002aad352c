//! Class answers: accuracy, unweighted average recall, macro F1.
//!
//! An answer is a class by its text, after trimming and lower-casing both sides (SpeechVerse §9). The classes
//! are those that occur among the references: an answer outside them is a miss for the true class and adds to
//! no other.

use std::collections::BTreeMap;

use super::is_space;

/// A class answer in the form in which it is compared.
pub fn class_of(text: &str) -> String {
    text.trim_matches(is_space).to_lowercase()
}

/// How one class fared.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ClassCounts {
    /// References of the class.
    pub wanted: u64,
    /// Answers of the class, right or wrong.
    pub answered: u64,
    /// Right ones.
    pub hits: u64,
}

impl ClassCounts {
    /// Share of the class that was recognised; absent where it was never wanted.
    pub fn recall(&self) -> Option<f64> {
        (self.wanted > 0).then(|| self.hits as f64 / self.wanted as f64)
    }

    /// F1 of the class; absent where it was never wanted.
    pub fn f1(&self) -> Option<f64> {
        super::f1(self.hits as f64, self.answered as f64, self.wanted as f64).filter(|_| self.wanted > 0)
    }
}

/// Counts by class over (reference, hypothesis) pairs; only classes that a reference has.
pub fn by_class<'a>(pairs: impl IntoIterator<Item = (&'a str, &'a str)>) -> BTreeMap<String, ClassCounts> {
    let pairs: Vec<(String, String)> = pairs
        .into_iter()
        .map(|(reference, hypothesis)| (class_of(reference), class_of(hypothesis)))
        .collect();
    let mut classes: BTreeMap<String, ClassCounts> = BTreeMap::new();
    for (reference, _) in &pairs {
        classes.entry(reference.clone()).or_default().wanted += 1;
    }
    for (reference, hypothesis) in &pairs {
        if let Some(class) = classes.get_mut(hypothesis) {
            class.answered += 1;
            class.hits += u64::from(reference == hypothesis);
        }
    }
    classes
}

/// Share of equal pairs, 0 to 1; absent for no pairs.
pub fn accuracy<'a>(pairs: impl IntoIterator<Item = (&'a str, &'a str)>) -> Option<f64> {
    let (mut right, mut all) = (0u64, 0u64);
    for (reference, hypothesis) in pairs {
        all += 1;
        right += u64::from(class_of(reference) == class_of(hypothesis));
    }
    (all > 0).then(|| right as f64 / all as f64)
}

/// Unweighted average recall: the mean recall of the reference classes, 0 to 1; absent for no pairs.
pub fn uar<'a>(pairs: impl IntoIterator<Item = (&'a str, &'a str)>) -> Option<f64> {
    mean(by_class(pairs).values().filter_map(ClassCounts::recall))
}

/// Mean F1 of the reference classes, 0 to 1; absent for no pairs.
pub fn macro_f1<'a>(pairs: impl IntoIterator<Item = (&'a str, &'a str)>) -> Option<f64> {
    mean(by_class(pairs).values().filter_map(ClassCounts::f1))
}

pub(super) fn mean(values: impl Iterator<Item = f64>) -> Option<f64> {
    let (mut sum, mut count) = (0.0, 0u64);
    for value in values {
        sum += value;
        count += 1;
    }
    (count > 0).then(|| sum / count as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_outside_the_classes_is_a_miss_and_no_class() {
        let pairs = [
            ("happy", " Happy "),
            ("sad", "gloomy"),
            ("sad", "sad"),
            ("sad", ""),
        ];

        assert_eq!(accuracy(pairs), Some(0.5));
        assert_eq!(uar(pairs), Some(f64::midpoint(1.0, 1.0 / 3.0)));
        assert_eq!(macro_f1(pairs), Some(f64::midpoint(1.0, 0.5)));
        assert_eq!(by_class(pairs).len(), 2);
    }

    #[test]
    fn nothing_has_no_score() {
        assert_eq!((accuracy([]), uar([]), macro_f1([])), (None, None, None));
    }
}
