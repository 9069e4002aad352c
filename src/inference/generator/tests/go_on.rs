//! Answers whose first tokens are known.

use super::*;

/// The answer to a request, when it is there.
fn finished(bench: &mut Bench, wanted: RequestId) -> Generation {
    loop {
        for event in bench.generator.step() {
            match event {
                Event::Finished { id, generation, .. } if id == wanted => return generation,
                Event::Failed { error, .. } => panic!("{error}"),
                _ => {}
            }
        }
    }
}

#[test]
fn an_answer_whose_first_words_are_known_begins_another_and_goes_on_as_if_it_had_made_them() {
    let folder = tempfile::tempdir().unwrap();
    let options = DecodeOptions {
        stop_loops: false,
        ..DecodeOptions::greedy(16)
    };
    let mut bench = bench(folder.path(), 2, options);
    let version = bench.versions[1].clone();
    let whole = ask(&mut bench, &[(3, version.clone())]).remove(&3).unwrap();
    assert!(bench.generator.can_go_on() && whole.ids.len() >= 8, "{whole:?}");
    let token_bytes = bench.generator.model().tokenizer().token_bytes().unwrap();
    let begins_word = |id| token_bytes.begins_word(id);
    let mut go_on = |ids: &[i64]| {
        let begun = Generation {
            ids: ids.to_vec(),
            log_probs: whole.log_probs[..ids.len()].to_vec(),
            ..Generation::default()
        };
        let id = bench.generator.go_on(request(3, &version), begun);
        finished(&mut bench, id)
    };

    assert_eq!(go_on(&[]).ids, whole.ids);
    // A random model begins few words of its own.
    let made = go_on(&whole.ids[..1]);
    let begins: Vec<usize> = (1..made.ids.len())
        .filter(|at| begins_word(made.ids[*at]))
        .collect();
    assert_eq!(
        begins.first(),
        Some(&1),
        "the known words end before it: {made:?}"
    );
    assert!(
        !begins_word(whole.ids[1]),
        "by itself it would have gone on otherwise"
    );
    for count in begins {
        let found = go_on(&made.ids[..count]);
        assert_eq!((&found.ids, found.ended), (&made.ids, made.ended), "{count}");
        for (one, other) in found.log_probs.iter().zip(&made.log_probs).skip(count) {
            assert!((one - other).abs() < 1e-4, "{count}: {one} {other}");
        }
    }
    let other = [whole.ids[0] + 1, whole.ids[1] + 1];
    assert_eq!(go_on(&other).ids[..2], other);
}

#[test]
fn what_cannot_go_on_from_given_tokens_begins_with_none() {
    let folder = tempfile::tempdir().unwrap();
    let beams = Strategy::Beam(BeamSettings {
        width: 2,
        length_penalty: 1.0,
        early_stopping: EarlyStopping::No,
    });
    let options = DecodeOptions {
        strategy: beams,
        ..DecodeOptions::greedy(8)
    };
    let mut bench = bench(folder.path(), 2, options);
    let version = bench.versions[0].clone();
    let alone = ask(&mut bench, &[(1, version.clone())]).remove(&1).unwrap();
    let begun = Generation {
        ids: vec![alone.ids[0] + 1],
        log_probs: vec![-1.0],
        ..Generation::default()
    };

    assert!(!bench.generator.can_go_on());
    let id = bench.generator.go_on(request(1, &version), begun);
    let found = finished(&mut bench, id);

    assert_eq!(found.ids, alone.ids);
}
