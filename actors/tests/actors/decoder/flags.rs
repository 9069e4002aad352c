//! What a reader should know about an answer.

use speechverse::inference::{Generation, SpokenWord};
use speechverse_actors::answering::{flag_audio, flags, words_of};

use super::*;

#[test]
fn an_answer_that_is_cut_about_sound_that_is_cut_is_flagged_once() {
    let damage = Damage {
        cut_short: true,
        ..Damage::default()
    };
    let mut flags = vec![Flag::Truncated];

    flag_audio(&mut flags, &damage, true);

    assert_eq!(flags, [Flag::Truncated, Flag::LongPause]);
}

#[test]
fn a_flag_says_what_happened_and_nothing_else() {
    let of = |generation: &Generation, text: &str| flags(generation, text, &DecoderConfig::default(), false);
    let word = Generation {
        ids: vec![5],
        log_probs: vec![0.0, 0.0],
        ended: true,
        blank_share: Some(0.99), // a short word in a long clip
        ..Generation::default()
    };
    assert_eq!(of(&word, "stop"), []);
    let silence = Generation {
        ids: Vec::new(),
        log_probs: vec![0.0],
        ..word.clone()
    };
    assert_eq!(of(&silence, ""), [Flag::Empty, Flag::NoSpeech]);
    let looping = Generation {
        looping: true,
        ended: false,
        ..word.clone()
    };
    assert_eq!(of(&looping, "stop"), [Flag::Looping]);
    let cut = Generation { ended: false, ..word };
    assert_eq!(of(&cut, "stop"), [Flag::Truncated]);
}

#[test]
fn words_are_told_where_they_are_asked_for_in_whole_milliseconds() {
    let mut generation = Generation {
        words: vec![SpokenWord {
            text: "stop".to_owned(),
            begin: 0.25,
            end: 0.5,
        }],
        ..Generation::default()
    };
    generation.place_words(10.0, 3.0001);

    assert!(words_of(&generation, false).is_empty());
    let words = words_of(&generation, true);
    assert_eq!(
        (
            words[0].text.as_str(),
            words[0].begin_seconds,
            words[0].end_seconds
        ),
        ("stop", 10.75, 11.5)
    );
}
