//! Constrained answers: random shapes, random vocabularies, random models.

use proptest::prelude::{ProptestConfig, any, prop_assert, prop_assert_eq, prop_assume, proptest};

use super::random_model::RandomModel;
use super::shapes::{END, compiled, example, fits, labels, source, spell, spelt, vocabulary};
use super::*;
use crate::inference::grammar::{Allowed, CompiledGrammar};
use crate::text::{GrammarPiece, OutputGrammar, TokenBytes};
use crate::util::random::SplitMix;

/// A control token that is of no use here.
const CONTROL: i64 = 1;

fn allows(allowed: &Allowed, id: i64) -> bool {
    match allowed {
        Allowed::Only(ids) => ids.contains(&id),
        Allowed::AllBut(ids) => !ids.contains(&id),
    }
}

pub(super) fn strategies() -> [Strategy; 4] {
    let beam = |width, length_penalty| {
        Strategy::Beam(BeamSettings {
            width,
            length_penalty,
            early_stopping: EarlyStopping::No,
        })
    };
    let sampling = Sampling {
        temperature: 1.5,
        top_k: 0,
        top_p: 0.95,
        seed: 3,
    };
    [
        Strategy::Greedy,
        beam(3, 1.0),
        beam(5, 0.0),
        Strategy::Sample(sampling),
    ]
}

pub(super) fn answer(
    model: &RandomModel,
    grammar: Option<&Arc<CompiledGrammar>>,
    strategy: Strategy,
    tokens_max: usize,
) -> Generation {
    let prompt = Prompt {
        grammar: grammar.cloned(),
        ..prompt(
            model,
            &[5],
            DecodeOptions {
                strategy,
                stop_loops: false,
                ..DecodeOptions::greedy(tokens_max)
            },
        )
    };
    let vocabulary = model.info().vocab;
    generate_all(model, vec![prompt], 8, &[END], vocabulary, &[])
        .unwrap()
        .remove(0)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn whoever_follows_allowed_tokens_writes_what_fits_and_is_never_stuck(
        source in source(), seed in any::<u64>(), every_byte in any::<bool>()
    ) {
        let token_bytes = vocabulary(seed, every_byte);
        let grammar = compiled(&source, &token_bytes);
        let mut random = SplitMix::new(&[seed]);
        let (mut progress, mut ids) = (grammar.begin(), Vec::new());
        loop {
            let allowed = grammar.allowed(&progress, usize::MAX);
            let all: Vec<i64> = (0..token_bytes.vocabulary()).filter(|id| allows(&allowed, *id)).collect();
            prop_assert!(!all.is_empty(), "stuck after {:?}", spelt(&token_bytes, &ids));
            prop_assert!(!all.contains(&CONTROL));
            for id in (0..token_bytes.vocabulary()).filter(|_| ids.len() < 4) {
                prop_assert_eq!(all.contains(&id), grammar.advance(&progress, id).is_some());
            }
            let ends = all.contains(&END);
            if ends {
                let text = spelt(&token_bytes, &ids);
                prop_assert!(fits(&source.pieces, text.trim()), "{:?} is no {:?}", text, source);
            }
            // Bytes that begin a character only now and then, or the text gets broken.
            let whole = |id: &i64| token_bytes.bytes(*id).is_some_and(|bytes| bytes.is_ascii());
            let likely: Vec<i64> = all.iter().copied().filter(whole).collect();
            let pool = if likely.is_empty() || random.chance(0.05) && !every_byte { &all } else { &likely };
            let id = pool[random.below(pool.len())];
            if ends && (random.chance(0.5) || ids.len() > 60) || id == END {
                break;
            }
            if ids.len() > 400 {
                // Free text may go on for ever.
                break;
            }
            progress = grammar.advance(&progress, id).unwrap();
            ids.push(id);
        }
    }

    #[test]
    fn what_fits_is_allowed_however_it_is_tokenised(
        source in source(), seed in any::<u64>(), every_byte in any::<bool>(), blanks in 0usize..3
    ) {
        let token_bytes = vocabulary(seed, every_byte);
        let grammar = compiled(&source, &token_bytes);
        let mut random = SplitMix::new(&[seed, 5]);
        let text = example(&source.pieces, &mut random);
        prop_assert!(fits(&source.pieces, &text), "{:?}", text);
        let around = [("", ""), (" ", "\n"), ("\n\n", " ")][blanks];
        let text = format!("{}{}{}", around.0, text, around.1);
        let mut progress = grammar.begin();
        for id in spell(&token_bytes, &text, &mut random) {
            let next = grammar.advance(&progress, id);
            prop_assert!(next.is_some(), "{:?} in {:?} for {:?}", token_bytes.bytes(id), text, source);
            progress = next.unwrap();
        }
        prop_assert!(grammar.may_end(&progress));
    }

    #[test]
    fn a_free_greedy_answer_that_fits_comes_out_the_same_when_constrained(
        source in source(), seed in any::<u64>(), every_byte in any::<bool>()
    ) {
        let token_bytes = vocabulary(seed, every_byte);
        let grammar = compiled(&source, &token_bytes);
        let mut random = SplitMix::new(&[seed, 6]);
        let text = example(&source.pieces, &mut random);
        let mut model = RandomModel::new(token_bytes.vocabulary(), seed);
        model.forced = spell(&token_bytes, &text, &mut random);
        model.forced.push(END);

        let free = answer(&model, None, Strategy::Greedy, 200);
        let constrained = answer(&model, Some(&grammar), Strategy::Greedy, 200);

        prop_assert_eq!(spelt(&token_bytes, &free.ids), text);
        prop_assert_eq!(&free.ids, &constrained.ids);
        prop_assert_eq!(free.log_probs, constrained.log_probs);
        prop_assert!(constrained.ended);
    }

    #[test]
    fn whatever_a_model_likes_a_choice_is_one_of_the_labels_and_known_as_such(
        labels in labels(), seed in any::<u64>(), every_byte in any::<bool>()
    ) {
        let token_bytes = vocabulary(seed, every_byte);
        let source = OutputGrammar::one_of(labels.iter().cloned());
        let grammar = compiled(&source, &token_bytes);
        let mut model = RandomModel::new(token_bytes.vocabulary(), seed);
        // It would rather write control tokens than anything else.
        model.biases = vec![(CONTROL, 30.0)];
        for strategy in strategies() {
            let found = answer(&model, Some(&grammar), strategy, 60);
            let text = spelt(&token_bytes, &found.ids);
            prop_assert!(found.ended, "{:?} {:?}", strategy, text);
            prop_assert_eq!(found.label.map(|label| labels[label].as_str()), Some(text.trim()));
            prop_assert!(found.log_probs.iter().all(|log_prob| log_prob.is_finite() && *log_prob <= 0.0));
        }
    }

    #[test]
    fn a_free_greedy_answer_of_any_model_is_chosen_again_from_a_list_that_holds_it(
        labels in labels(), seed in any::<u64>()
    ) {
        let token_bytes = vocabulary(seed, false);
        let mut model = RandomModel::new(token_bytes.vocabulary(), seed);
        model.biases = vec![(END, 4.0), (CONTROL, -30.0)];
        let free = answer(&model, None, Strategy::Greedy, 40);
        let whole = spelt(&token_bytes, &free.ids);
        let text = whole.trim().to_owned();
        let blanks = [whole.trim_end().len(), whole.trim_start().len()].map(|length| length - text.len());
        // More white space than that around an answer is not allowed.
        prop_assume!(blanks.iter().all(|count| *count <= crate::inference::grammar::BLANKS_MAX));
        prop_assume!(free.ended && !text.is_empty());
        let all: Vec<String> = labels.iter().cloned().chain([text.clone()]).collect();
        let grammar = compiled(&OutputGrammar::one_of(all.iter().cloned()), &token_bytes);

        let constrained = answer(&model, Some(&grammar), Strategy::Greedy, 40);

        prop_assert_eq!(&constrained.ids, &free.ids);
        prop_assert_eq!(constrained.label.map(|label| all[label].as_str()), Some(text.as_str()));
    }

    #[test]
    fn an_answer_never_ends_outside_its_list_while_one_of_the_list_fits(
        labels in labels(), seed in any::<u64>(), every_byte in any::<bool>(), spare in 0usize..8, love in 0usize..4
    ) {
        let token_bytes = vocabulary(seed, every_byte);
        let grammar = compiled(&OutputGrammar::one_of(labels.iter().cloned()), &token_bytes);
        // One token may spell a label and blanks around it.
        let padded = |label: &String| -> Vec<String> {
            (0..25).map(|blanks| format!("{}{label}{}", " ".repeat(blanks / 5), " ".repeat(blanks % 5))).collect()
        };
        let shortest = labels.iter().flat_map(padded).map(|text| fewest(&token_bytes, &text)).min().unwrap() + 1;
        prop_assert_eq!(grammar.tokens_min(), shortest);
        prop_assert!(grammar.check_tokens(shortest - 1).is_err());
        let mut model = RandomModel::new(token_bytes.vocabulary(), seed);
        // It likes blanks, or to write on, better than to come to an end.
        let blank = |bytes: &[u8]| bytes.trim_ascii().is_empty();
        let blanks = token_bytes.tokens().iter().filter(|(bytes, _)| blank(bytes)).map(|(_, id)| (*id, 20.0));
        model.biases = match love {
            0 => blanks.collect(),
            1 => vec![(END, -20.0)],
            2 => blanks.chain([(END, -20.0)]).collect(),
            _ => Vec::new(),
        };
        for strategy in strategies() {
            let found = answer(&model, Some(&grammar), strategy, shortest + spare);
            let text = spelt(&token_bytes, &found.ids);
            prop_assert!(found.ended && found.log_probs.len() <= shortest + spare, "{:?} {:?}", strategy, text);
            prop_assert_eq!(found.label.map(|label| labels[label].as_str()), Some(text.trim()));
        }
    }

    #[test]
    fn an_answer_of_any_shape_comes_to_its_end_within_the_fewest_tokens_and_more(
        source in source(), seed in any::<u64>(), every_byte in any::<bool>(), spare in 0usize..6
    ) {
        let token_bytes = vocabulary(seed, every_byte);
        let grammar = compiled(&source, &token_bytes);
        let tokens_max = grammar.tokens_min() + spare;
        let mut model = RandomModel::new(token_bytes.vocabulary(), seed);
        model.biases = vec![(END, -20.0)];
        for strategy in strategies() {
            let found = answer(&model, Some(&grammar), strategy, tokens_max);
            let text = spelt(&token_bytes, &found.ids);
            prop_assert!(found.ended && found.log_probs.len() <= tokens_max, "{:?} {:?}", strategy, text);
            // Half a character is a matter of free text.
            let whole = !text.contains(char::REPLACEMENT_CHARACTER);
            prop_assert!(!whole || fits(&source.pieces, text.trim()), "{:?} is no {:?}", text, source);
        }
    }

    #[test]
    fn several_labels_come_each_at_most_once_by_greedy_and_by_beams(
        labels in labels(), seed in any::<u64>(), every_byte in any::<bool>()
    ) {
        let token_bytes = vocabulary(seed, every_byte);
        let source = OutputGrammar::of(GrammarPiece::Choices(Arc::clone(&labels)));
        let grammar = compiled(&source, &token_bytes);
        let model = RandomModel::new(token_bytes.vocabulary(), seed);
        for strategy in strategies() {
            let found = answer(&model, Some(&grammar), strategy, 150);
            let text = spelt(&token_bytes, &found.ids);
            prop_assert!(found.ended, "{:?} {:?}", strategy, text);
            prop_assert!(fits(&source.pieces, text.trim()), "{:?} is no {:?}", text, source);
        }
    }
}

#[test]
fn a_text_that_the_vocabulary_cannot_spell_is_refused_by_name() {
    let token_bytes = vocabulary(1, false);

    let refused = CompiledGrammar::new(
        &OutputGrammar::one_of(["ab", "xyz"]),
        Arc::clone(&token_bytes),
        &[END],
    );

    assert!(refused.unwrap_err().to_string().contains("xyz"));
    for source in [OutputGrammar { pieces: vec![] }, OutputGrammar::one_of([" "])] {
        assert!(CompiledGrammar::new(&source, Arc::clone(&token_bytes), &[END]).is_err());
    }
}

#[test]
fn half_a_word_without_the_other_half_in_the_vocabulary_is_no_way_to_begin() {
    let tokens = [&b"ab"[..], b"a", b"cd", b"abc", b"abcd"];
    let tokens = tokens.iter().map(|bytes| (*bytes).into()).zip(2..).collect();
    let token_bytes = Arc::new(TokenBytes::new(tokens, 7));

    let grammar = compiled(&OutputGrammar::one_of(["abcd"]), &token_bytes);

    // `a` and `abc` fit, but nothing leads on from them.
    assert_eq!(
        *grammar.allowed(&grammar.begin(), usize::MAX),
        Allowed::Only(vec![2, 6])
    );
}

#[test]
fn a_list_without_an_answer_of_so_few_tokens_is_refused_with_the_shortest_one() {
    let tokens = [&b"ab"[..], b"a", b"b", b"c"];
    let tokens = tokens.iter().map(|bytes| (*bytes).into()).zip(2..).collect();
    let token_bytes = Arc::new(TokenBytes::new(tokens, 6));
    let grammar = compiled(&OutputGrammar::one_of(["ccc", "abc", "abcab"]), &token_bytes);

    let refused = grammar.check_tokens(2).unwrap_err().to_string();

    assert!(refused.contains("`abc`, takes 3 tokens"), "{refused}");
    assert!(grammar.check_tokens(3).is_ok());
    let model = RandomModel::new(6, 1);
    let asked = Prompt {
        grammar: Some(grammar),
        ..prompt(&model, &[5], DecodeOptions::greedy(2))
    };
    assert!(generate_all(&model, vec![asked], 1, &[END], 6, &[]).is_err());
}

/// Fewest tokens that spell a text, said in another way than the automaton does.
fn fewest(token_bytes: &TokenBytes, text: &str) -> usize {
    let mut fewest = vec![usize::MAX; text.len() + 1];
    fewest[0] = 0;
    for at in 0..text.len() {
        for (bytes, _) in token_bytes.tokens() {
            if fewest[at] < usize::MAX && text.as_bytes()[at..].starts_with(bytes) {
                let end = at + bytes.len();
                fewest[end] = fewest[end].min(fewest[at] + 1);
            }
        }
    }
    fewest[text.len()]
}
