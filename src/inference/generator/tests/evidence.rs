//! Labels that are decided by what is said, and transcripts of sound in which nothing is.

use std::collections::BTreeSet;

use super::*;
use crate::inference::evidence::{no_speech, speech_labels};
use crate::text::tasks::TRANSCRIPT;
use crate::text::{JointLayout, Spoken, TaskTable, TemplateVariables};

const LABELS: [&str; 2] = ["yes", "no"];

/// A version with a trained CTC head over the tokens of these words, and its networks.
fn with_head(bench: &Bench, words: &[&str], change: impl FnOnce(&mut AdapterConfig)) -> SpeechAdapter {
    let model = bench.generator.model();
    let mut classes: Vec<i64> = words
        .iter()
        .flat_map(|word| model.spoken_ids(word).unwrap())
        .collect();
    classes.sort_unstable();
    classes.dedup();
    let mut config = bench.versions[0].config().clone();
    change(&mut config);
    let mut adapter = SpeechAdapter::new(config, 1.0, 3, Device::Cpu).unwrap();
    adapter.set_ctc_classes(classes, 5).unwrap();
    adapter.set_ctc_trained(true);
    adapter.bind(&model.llm().embedding_table()).unwrap();
    adapter
}

fn scorer(adapter: &SpeechAdapter, number: usize) -> PrefixScorer {
    let frames = features(number).frames.unsqueeze(0);
    let adapted = adapter.forward(&frames, &[20]).unwrap();
    PrefixScorer::new(adapter.ctc_head().unwrap(), &adapted)
        .unwrap()
        .swap_remove(0)
}

/// The answers to requests about eight clips, one after the other.
fn answers(
    bench: &mut Bench,
    version: &AdapterSnapshot,
    change: impl Fn(&mut GenerateRequest),
) -> Vec<(Generation, String)> {
    let mut answers = Vec::new();
    for number in 0..8 {
        let mut asked = request(number, version);
        change(&mut asked);
        bench.generator.add_request(asked);
        while bench.generator.has_unfinished() {
            for event in bench.generator.step() {
                match event {
                    Event::Finished { generation, text, .. } => answers.push((generation, text)),
                    Event::Failed { error, .. } => panic!("{error}"),
                    Event::Token { .. } => {}
                }
            }
        }
    }
    answers
}

fn texts(
    folder: &Path,
    options: DecodeOptions,
    trained: bool,
    labels: &[&str],
    spoken: Option<&Spoken>,
) -> Vec<String> {
    let mut bench = bench(folder, 2, options);
    let mut adapter = with_head(&bench, &["red", "yes", "no", "a", "b"], |_| {});
    adapter.set_ctc_trained(trained);
    let version = adapter.snapshot("with head").unwrap();
    let found = answers(&mut bench, &version, |request| {
        request.grammar = Some(OutputGrammar::one_of(labels.iter().copied()));
        request.task = Some("any".to_owned());
        request.spoken = spoken.cloned();
    });
    found.into_iter().map(|(_, text)| text).collect()
}

#[test]
fn the_ctc_head_has_a_say_in_labels_that_are_decided_by_words_that_are_said() {
    let folder = tempfile::tempdir().unwrap();
    let options = |weight, above| DecodeOptions {
        spoken_weight: weight,
        spoken_above: above,
        ..DecodeOptions::greedy(15)
    };
    let words = Spoken::Words {
        words: " Red! ".to_owned(),
        said: "yes".to_owned(),
        unsaid: "no".to_owned(),
    };
    let bench = bench(folder.path(), 2, options(0.0, 0.0));
    let adapter = with_head(&bench, &["red", "yes", "no", "a", "b"], |_| {});
    let model = bench.generator.model();
    let tokens = model.spoken_ids("red").unwrap();
    let spelt = model.tokenizer().token_bytes().unwrap();
    let begins = |token| spelt.bytes(token).is_some_and(|bytes| bytes.starts_with(b" "));
    let odds: Vec<f64> = (0..8)
        .map(|number| {
            scorer(&adapter, number).log_odds_within(&tokens, begins).unwrap() / tokens.len() as f64
        })
        .collect();
    let mut sorted = odds.clone();
    sorted.sort_by(f64::total_cmp);
    let above = (sorted[3] + sorted[4]) / 2.0; // half of the clips on each side
    let expected: Vec<&str> = (odds.iter())
        .map(|odds| LABELS[usize::from(*odds <= above)])
        .collect();

    let given = |weight, trained, spoken: Option<&Spoken>| {
        texts(folder.path(), options(weight, above), trained, &LABELS, spoken)
    };
    assert_eq!(given(0.9999, true, Some(&words)), expected);
    let by_model = given(0.0, true, Some(&words));
    assert_ne!(by_model, expected);
    assert_eq!(given(0.9999, true, None), by_model, "not decided by what is said");
    assert_eq!(
        given(0.9999, false, Some(&words)),
        by_model,
        "the head no longer fits"
    );
    let unknown = Spoken::Words {
        words: "Ωmega".to_owned(),
        said: "yes".to_owned(),
        unsaid: "no".to_owned(),
    };
    assert_eq!(
        given(0.9999, true, Some(&unknown)),
        by_model,
        "no classes of the head"
    );
}

#[test]
fn labels_that_are_said_themselves_are_scored_by_their_words() {
    let folder = tempfile::tempdir().unwrap();
    let options = DecodeOptions {
        spoken_weight: 0.9999,
        ..DecodeOptions::greedy(15)
    };
    let bench = bench(folder.path(), 2, options);
    let adapter = with_head(&bench, &["red", "yes", "no", "a", "b"], |_| {});
    let model = bench.generator.model();
    let best = |labels: &[&str]| -> Vec<String> {
        let score = |number: usize, label: &str| match label {
            "none" => -5.0,
            label => scorer(&adapter, number)
                .exactly(&model.spoken_ids(label).unwrap())
                .unwrap(),
        };
        (0..8)
            .map(|number| {
                let by_score =
                    |one: &&&str, other: &&&str| score(number, one).total_cmp(&score(number, other));
                (*labels.iter().max_by(by_score).unwrap()).to_owned()
            })
            .collect()
    };

    for labels in [&["a", "b", "red"][..], &["red", "none"]] {
        let given = texts(folder.path(), options, true, labels, Some(&Spoken::Labels));
        assert_eq!(given, best(labels), "{labels:?}");
    }
}

#[test]
fn the_parts_of_a_joint_answer_are_scored_like_answers_of_their_own() {
    let folder = tempfile::tempdir().unwrap();
    let words = ["red", "yes", "no", "a", "b"];
    let plain = bench(folder.path(), 2, DecodeOptions::greedy(5));
    let version = with_head(&plain, &words, |_| {}).snapshot("with head").unwrap();
    let tasks = Path::new(env!("CARGO_MANIFEST_DIR")).join("configs/tasks");
    let tasks = TaskTable::load(&tasks).unwrap();
    let fields = [("keyword".to_owned(), "red".to_owned())].into();
    let variables = TemplateVariables {
        fields,
        ..TemplateVariables::default()
    };
    let search = tasks.get("keyword_search").unwrap();
    let layout = JointLayout::new(&[tasks.get(TRANSCRIPT).unwrap(), search], &variables).unwrap();
    let layout = Arc::new(layout);
    let adapter = with_head(&plain, &words, |_| {});
    let tokens = plain.generator.model().spoken_ids("red").unwrap();
    let spelt = plain.generator.model().tokenizer().token_bytes().unwrap();
    let begins = |token| spelt.bytes(token).is_some_and(|bytes| bytes.starts_with(b" "));
    let mut odds: Vec<f64> = (0..8)
        .map(|number| {
            scorer(&adapter, number).log_odds_within(&tokens, begins).unwrap() / tokens.len() as f64
        })
        .collect();
    odds.sort_by(f64::total_cmp);
    let options = |weight| DecodeOptions {
        ctc_weight: weight,
        spoken_weight: weight,
        spoken_above: (odds[3] + odds[4]) / 2.0, // half of the clips on each side
        ..DecodeOptions::greedy(60)
    };
    let joint = |options: DecodeOptions, draft_tokens_max: usize| {
        let mut bench = bench_drafting(folder.path(), 2, options, draft_tokens_max);
        answers(&mut bench, &version, |request| {
            request.grammar = Some(layout.grammar());
            request.task = Some("asr,keyword_search".to_owned());
            request.joint = Some(Arc::clone(&layout));
        })
    };
    let transcripts = answers(
        &mut bench(folder.path(), 2, options(0.9999)),
        &version,
        |request| {
            request.task = Some(TRANSCRIPT.to_owned());
        },
    );
    let searched = answers(
        &mut bench(folder.path(), 2, options(0.9999)),
        &version,
        |request| {
            request.task = Some(search.name.clone());
            request.grammar = Some(search.grammar(&variables).unwrap());
            request.spoken = search.spoken(&variables).unwrap();
        },
    );

    let mut parts = Vec::new();
    let found = joint(options(0.9999), 0);
    for (number, (generation, text)) in found.iter().enumerate() {
        let found = layout.by_task(text);
        let (alone, transcript) = &transcripts[number];
        assert_eq!(found[TRANSCRIPT], *transcript, "{text}");
        assert_eq!(found["keyword_search"], searched[number].1, "{text}");
        assert_eq!(generation.agreement, alone.agreement, "{text}");
        assert_eq!(generation.words, alone.words, "{text}");
        assert!(generation.ended && generation.support().is_some());
        parts.push(found);
    }
    let searches: BTreeSet<&String> = parts.iter().map(|found| &found["keyword_search"]).collect();
    assert_eq!(searches.len(), 2, "{parts:?}");
    assert!(
        parts.iter().any(|found| !found[TRANSCRIPT].is_empty()),
        "{parts:?}"
    );
    let by_model: Vec<_> = (joint(options(0.0), 0).iter())
        .map(|(_, text)| layout.by_task(text))
        .collect();
    assert_ne!(by_model, parts);
    for ((drafted, text), (generation, plain)) in joint(options(0.9999), 16).iter().zip(&found) {
        assert_eq!(
            (text, &drafted.ids),
            (plain, &generation.ids),
            "drafts change nothing"
        );
        assert_eq!(drafted.transcript, generation.transcript);
    }
    let beams = DecodeOptions {
        strategy: Strategy::Beam(BeamSettings {
            width: 2,
            length_penalty: 1.0,
            early_stopping: EarlyStopping::No,
        }),
        ..options(0.9999)
    };
    // The length penalty makes beams prefer labels of more tokens.
    for (generation, text) in joint(beams, 0) {
        assert!(
            LABELS.contains(&layout.by_task(&text)["keyword_search"].as_str()),
            "{text}"
        );
        assert!(generation.ended && generation.transcript.is_some(), "{text}");
    }
}

#[test]
fn a_transcript_is_empty_where_speech_detection_says_no_speech() {
    let folder = tempfile::tempdir().unwrap();
    let plain = bench(folder.path(), 2, DecodeOptions::greedy(5));
    let with_summary = |tasks: &[&str]| {
        with_head(&plain, &["red", "a", "b"], |config| {
            config.summary = true;
            config.summary_tasks = tasks.iter().map(|task| (*task).to_owned()).collect();
        })
    };
    let adapter = with_summary(&["speech_detection"]);
    let statistics = features(0).statistics.unsqueeze(0);
    let summary = adapter.summary(&statistics).unwrap().unwrap().view([-1]);
    let labels = speech_labels(plain.generator.model()).unwrap();
    // The setting under which each would just be no speech.
    let silent: Vec<f64> = (0..8)
        .map(|number| 2.0 * no_speech(&labels, &scorer(&adapter, number), &summary, 0.0).unwrap())
        .collect();
    let mut sorted = silent.clone();
    sorted.sort_by(f64::total_cmp);
    let limit = (sorted[3] + sorted[4]) / 2.0;
    assert!(limit < 0.0 && limit > -100.0, "{silent:?}");

    let given = |limit: f64, tasks: &[&str], task: Option<&str>| {
        let options = DecodeOptions {
            nothing_said_above: limit,
            summary_weight: 0.9999,
            ..DecodeOptions::greedy(15)
        };
        let mut bench = bench(folder.path(), 2, options);
        let version = with_summary(tasks).snapshot("with summary").unwrap();
        answers(&mut bench, &version, |request| {
            request.task = task.map(str::to_owned);
            let (name, labels) = SPEECH_DETECTION;
            request.grammar = (task == Some(name)).then(|| OutputGrammar::one_of(labels));
        })
    };
    let written = given(0.0, &["speech_detection"], Some(TRANSCRIPT));
    assert!(
        written
            .iter()
            .all(|(found, _)| !found.nothing_said && !found.ids.is_empty())
    );

    let found = given(limit, &["speech_detection"], Some(TRANSCRIPT));

    for (number, (generation, text)) in found.iter().enumerate() {
        let empty = silent[number] > limit;
        assert_eq!(generation.nothing_said, empty, "{number}");
        match empty {
            true => {
                assert_eq!((text.as_str(), generation.ids.len()), ("", 0));
                assert!(generation.ended && generation.blank_share.is_some());
            }
            false => assert_eq!(*text, written[number].1),
        }
    }
    let detected = given(limit, &["speech_detection"], Some("speech_detection"));
    let by_summary = given(0.0, &["speech_detection"], Some("speech_detection"));
    for (number, (generation, text)) in detected.iter().enumerate() {
        assert_eq!(
            *text,
            SPEECH_DETECTION.1[usize::from(silent[number] > limit)],
            "{number}"
        );
        assert!(!generation.nothing_said);
        assert_eq!(by_summary[number].1, by_summary[0].1, "all have one summary");
    }
    for (tasks, task) in [
        (&["mood"][..], Some(TRANSCRIPT)),
        (&["speech_detection"], Some("mood")),
        (&["speech_detection"], None),
    ] {
        let found = given(limit, tasks, task);
        assert!(
            found.iter().all(|(found, _)| !found.nothing_said),
            "{tasks:?} {task:?}"
        );
    }
}

#[test]
fn a_warm_up_reads_silence_with_the_language_model_too() {
    let folder = tempfile::tempdir().unwrap();
    let options = DecodeOptions {
        nothing_said_above: -100.0, // whatever it is
        ..DecodeOptions::greedy(5)
    };
    let mut bench = bench(folder.path(), 2, options);
    let adapter = with_head(&bench, &["red", "a", "b"], |config| {
        config.summary = true;
        config.summary_tasks = vec!["speech_detection".to_owned()];
    });
    let version = adapter.snapshot("with summary").unwrap();

    let answer = bench.generator.transcribe_silence(&version).unwrap().unwrap();

    assert!(!answer.nothing_said);
    let found = answers(&mut bench, &version, |request| {
        request.task = Some(TRANSCRIPT.to_owned())
    });
    assert!(found.iter().all(|(generation, _)| generation.nothing_said));
}
