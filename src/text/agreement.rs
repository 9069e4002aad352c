//! Which words of a transcript that grows can be relied on.

/// Words of an utterance in progress: those on which two readings agree are confirmed, and stay.
///
/// Source: local agreement of two hypotheses, Liu et al., "Low-latency sequence-to-sequence speech
/// recognition and translation by partial hypothesis selection" (2020). The last word of a reading is never
/// confirmed: it may not be spoken to its end.
#[derive(Clone, Debug, Default)]
pub struct LocalAgreement {
    confirmed: Vec<String>,
    before: Vec<String>,
}

impl LocalAgreement {
    /// Nothing read yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes the next reading of the whole utterance so far. The text to show, and how much of its begin is
    /// confirmed: each text begins with what was confirmed before.
    pub fn read(&mut self, text: &str) -> (String, String) {
        let words: Vec<String> = text.split_whitespace().map(str::to_owned).collect();
        let known = self.confirmed.len();
        let whole = words.len().saturating_sub(1);
        let pairs = self.before.iter().zip(&words[..whole]).skip(known);
        let agreed = pairs.take_while(|(one, other)| one == other).count();
        self.confirmed
            .extend(words.iter().skip(known).take(agreed).cloned());
        let rest = words.get(self.confirmed.len()..).unwrap_or_default();
        let shown = [self.confirmed.as_slice(), rest].concat().join(" ");
        self.before = words;
        (shown, self.confirmed.join(" "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_readings_confirm_what_they_agree_on_but_for_the_last_word() {
        let mut agreement = LocalAgreement::new();
        for (text, shown, confirmed) in [
            ("", "", ""),
            ("turn", "turn", ""),
            ("turn on", "turn on", "turn"),
            ("turn on the kit", "turn on the kit", "turn on"),
            ("turn on the kitchen", "turn on the kitchen", "turn on the"),
            ("turn on the kitchen", "turn on the kitchen", "turn on the"),
            (
                "turn on the kitchen lights",
                "turn on the kitchen lights",
                "turn on the kitchen",
            ),
        ] {
            let found = agreement.read(text);
            assert_eq!((found.0.as_str(), found.1.as_str()), (shown, confirmed), "{text}");
        }
    }

    #[test]
    fn a_reading_that_changes_its_mind_does_not_take_confirmed_words_back() {
        let mut agreement = LocalAgreement::new();
        for text in ["i scream for", "i scream for all", "i scream for all of"] {
            agreement.read(text);
        }

        let (shown, confirmed) = agreement.read("ice cream for all of us");

        assert_eq!(confirmed, "i scream for all of");
        assert_eq!(shown, "i scream for all of us");
        assert_eq!(
            agreement.read("ice"),
            ("i scream for all of".into(), "i scream for all of".into())
        );
    }

    #[test]
    fn what_is_confirmed_never_changes() {
        use proptest::prelude::*;
        proptest!(|(readings in prop::collection::vec("[ab ]{0,12}", 0..20))| {
            let mut agreement = LocalAgreement::new();
            let mut before = String::new();
            for reading in readings {
                let (shown, confirmed) = agreement.read(&reading);
                prop_assert!(confirmed.starts_with(&before));
                prop_assert!(shown.starts_with(&confirmed));
                before = confirmed;
            }
        });
    }
}
