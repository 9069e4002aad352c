mod evidence;
mod go_on;

use std::collections::BTreeMap;
use std::path::Path;

use tch::{Device, Kind};

use super::*;
use crate::inference::{BeamSettings, EarlyStopping, Strategy};
use crate::models::EncoderInfo;
use crate::models::adapter::{AdapterConfig, LoraSnapshot, embedding_rms, label_scores};
use crate::models::config::{AdapterSettings, Positions};
use crate::nn::accel::Placement;
use crate::nn::lora::LoraConfig;
use crate::testing::TinyModels;

struct Bench {
    generator: Generator,
    /// A version without low-rank updates, and two with.
    versions: Vec<AdapterSnapshot>,
}

fn bench(folder: &Path, slots: usize, options: DecodeOptions) -> Bench {
    bench_drafting(folder, slots, options, 0)
}

/// A bench whose steps check so many drafted tokens.
fn bench_drafting(folder: &Path, slots: usize, options: DecodeOptions, draft_tokens_max: usize) -> Bench {
    let models = TinyModels::write(folder, 7);
    let model = SpeechLlm::open(&models.llm, Some(""), &Placement::reference()).unwrap();
    let encoder = EncoderInfo {
        layers: 2,
        width: 32,
        frames_per_second: 50.0,
        max_samples: None,
    };
    let llm = model.llm();
    let config = AdapterConfig::new(&AdapterSettings::default(), &encoder, &llm.info()).unwrap();
    let gain = embedding_rms(&llm.embedding_table()).unwrap();
    let plain = SpeechAdapter::new(config, gain, 3, Device::Cpu)
        .unwrap()
        .snapshot("plain")
        .unwrap();
    let mut versions = vec![plain.clone()];
    for number in 1..=2 {
        let set = LoraSet::new(LoraConfig::default(), &llm.lora_sites(), Device::Cpu).unwrap();
        let _no_grad = tch::no_grad_guard();
        for (place, (_, mut tensor)) in set.parameters().into_iter().enumerate() {
            let count = Tensor::arange(tensor.numel() as i64, (Kind::Float, Device::Cpu));
            let noise = (count * (0.37 * f64::from(number)) + place as f64).sin() * 0.3;
            tensor.copy_(&noise.view(tensor.size().as_slice()));
        }
        let lora = LoraSnapshot::of(&set).unwrap();
        versions.push(plain.with_lora(Some(lora)).renamed(&format!("low-rank-{number}")));
    }
    let config = EngineConfig {
        slots,
        positions_max: 200,
        answer_positions: 20,
        batch_windows_max: 1,
        options,
        by_window: None,
        prefill_positions_max: 0,
        draft_tokens_max,
        preallocate: true,
    };
    Bench {
        generator: Generator::new(model, &config),
        versions,
    }
}

/// Features of a clip with these `[T, 32]`.
fn with_frames(frames: Tensor) -> Features {
    Features {
        frames,
        statistics: Tensor::zeros([3, 64], (Kind::Float, Device::Cpu)),
    }
}

fn features(number: usize) -> Features {
    let steps = Tensor::arange(20 * 32, (Kind::Float, Device::Cpu));
    with_frames((steps * (0.5 + number as f64 * 0.1)).sin().view([20, 32]) * 2.0)
}

fn request(number: usize, version: &AdapterSnapshot) -> GenerateRequest {
    GenerateRequest {
        input: Input::Features {
            features: features(number),
            adapter: version.clone(),
        },
        instruction: "Say it.".to_owned(),
        grammar: None,
        tokens_max: None,
        task: None,
        spoken: None,
        joint: None,
    }
}

/// Asks all at once; answers by number.
fn ask(bench: &mut Bench, questions: &[(usize, AdapterSnapshot)]) -> BTreeMap<usize, Generation> {
    let asked: BTreeMap<RequestId, usize> = questions
        .iter()
        .map(|(number, version)| (bench.generator.add_request(request(*number, version)), *number))
        .collect();
    let mut answers = BTreeMap::new();
    while bench.generator.has_unfinished() {
        for event in bench.generator.step() {
            match event {
                Event::Token { .. } => {}
                Event::Finished { id, generation, .. } => {
                    answers.insert(asked[&id], generation);
                }
                Event::Failed { error, .. } => panic!("{error}"),
            }
        }
    }
    answers
}

#[test]
fn a_long_instruction_and_long_audio_are_distinguished() {
    let folder = tempfile::tempdir().unwrap();
    let mut bench = bench(folder.path(), 1, DecodeOptions::greedy(4));
    let version = bench.versions[0].clone();
    let mut refusal = |frames: i64, instruction: &str| {
        let request = GenerateRequest {
            input: Input::Features {
                features: with_frames(Tensor::zeros([frames, 32], (Kind::Float, Device::Cpu))),
                adapter: version.clone(),
            },
            instruction: instruction.to_owned(),
            grammar: None,
            tokens_max: None,
            task: None,
            spoken: None,
            joint: None,
        };
        bench.generator.prompt(&request, &[]).unwrap_err()
    };

    let long = refusal(20, &"Say it. ".repeat(400));
    let audio = refusal(8_000, "Say it.");
    let both = refusal(8_000, &"Say it. ".repeat(400));

    let InferenceError::Model(ModelError::InstructionTooLong { tokens, tokens_max }) = long else {
        panic!("{long}")
    };
    assert!(
        tokens > 400 && (32..200).contains(&tokens_max),
        "{tokens} {tokens_max}"
    );
    for error in [audio, both] {
        let is_audio = matches!(&error, InferenceError::Model(ModelError::TooManyPositions { .. }));
        assert!(is_audio, "{error}");
    }
}

#[test]
fn versions_with_and_without_low_rank_updates_side_by_side_answer_as_each_does_alone() {
    let folder = tempfile::tempdir().unwrap();
    let mut bench = bench(folder.path(), 4, DecodeOptions::greedy(12));
    let versions = bench.versions.clone();
    let questions: Vec<(usize, AdapterSnapshot)> = (0..9)
        .map(|number| (number, versions[number % 3].clone()))
        .collect();

    let together = ask(&mut bench, &questions);

    let mut alone = Vec::new();
    for question in &questions {
        alone.push(ask(&mut bench, std::slice::from_ref(question))[&question.0].clone());
    }
    for (number, alone) in alone.iter().enumerate() {
        assert_eq!(together[&number].ids, alone.ids, "{number}");
    }
    let mut by_version = Vec::new();
    for version in &versions {
        let questions: Vec<_> = (0..6).map(|number| (number, version.clone())).collect();
        by_version.push(ask(&mut bench, &questions));
    }
    assert_ne!(by_version[0], by_version[1]);
    assert_ne!(by_version[1], by_version[2]);
}

#[test]
fn a_text_is_read_with_the_low_rank_updates_of_its_version_or_with_none() {
    let folder = tempfile::tempdir().unwrap();
    let mut bench = bench(folder.path(), 1, DecodeOptions::greedy(12));
    let versions = bench.versions.clone();
    let mut read = |adapter: Option<&AdapterSnapshot>| {
        let input = Input::Text {
            text: "turn on the radio".to_owned(),
            adapter: adapter.cloned(),
        };
        bench.generator.add_request(GenerateRequest {
            input,
            ..request(0, &versions[0])
        });
        loop {
            match bench.generator.step().pop() {
                Some(Event::Finished { generation, .. }) => return generation.ids,
                Some(Event::Failed { error, .. }) => panic!("{error}"),
                _ => {}
            }
        }
    };

    let published = read(None);

    assert_eq!(read(Some(&versions[0])), published, "it has none");
    let taught = [read(Some(&versions[1])), read(Some(&versions[2]))];
    assert!(taught[0] != published && taught[0] != taught[1], "{taught:?}");
}

#[test]
fn many_versions_come_and_go_and_their_low_rank_parts_with_them() {
    let folder = tempfile::tempdir().unwrap();
    let mut bench = bench(folder.path(), 2, DecodeOptions::greedy(3));
    let version = bench.versions[1].clone();

    let first = ask(&mut bench, &[(1, version.clone())]);
    for number in 0..10 {
        let answers = ask(&mut bench, &[(1, version.renamed(&format!("again-{number}")))]);
        assert_eq!(answers, first);
    }

    assert!(bench.generator.versions.len() <= VERSIONS_MAX);
    assert!(bench.generator.loras.len() <= VERSIONS_MAX + 1);
}

#[test]
fn low_rank_updates_that_do_not_fit_the_model_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let mut bench = bench(folder.path(), 2, DecodeOptions::greedy(3));
    let other = crate::nn::lora::LoraSite {
        path: "model.layers.0.self_attn.q_proj".to_owned(),
        inputs: 8,
        outputs: 8,
    };
    let config = LoraConfig {
        targets: vec!["q_proj".to_owned()],
        ..LoraConfig::default()
    };
    let set = LoraSet::new(config, &[other], Device::Cpu).unwrap();
    let version = bench.versions[0]
        .with_lora(Some(LoraSnapshot::of(&set).unwrap()))
        .renamed("strange");
    bench.generator.add_request(request(0, &version));
    let good = bench.generator.add_request(request(0, &bench.versions[0]));
    let events = bench.generator.step();

    let Event::Failed { error, .. } = &events[0] else {
        panic!("{events:?}");
    };
    let error = error.to_string();
    assert!(error.contains("lora_A") && error.contains("lora_B"), "{error}");
    assert!(
        matches!(&events[1], Event::Token { id, .. } if *id == good),
        "{events:?}"
    );
}

#[test]
fn beam_searches_take_their_slots_and_answers_keep_to_their_grammars() {
    let folder = tempfile::tempdir().unwrap();
    let options = DecodeOptions {
        strategy: Strategy::Beam(BeamSettings {
            width: 3,
            length_penalty: 1.0,
            early_stopping: EarlyStopping::No,
        }),
        ..DecodeOptions::greedy(15)
    };
    let mut bench = bench(folder.path(), 7, options);
    let labels = ["yes", "no", "no idea"];
    assert_eq!(bench.generator.free(), 2);
    let version = bench.versions[0].clone();

    for _ in 0..3 {
        bench.generator.add_request(GenerateRequest {
            grammar: Some(OutputGrammar::one_of(labels)),
            ..request(2, &version)
        });
    }
    assert_eq!(bench.generator.free(), 0);
    let mut finished = Vec::new();
    while bench.generator.has_unfinished() {
        finished.extend(bench.generator.step());
        assert!(bench.generator.running() <= 2 && bench.generator.slots_in_use() <= 6);
    }

    let mut answers = 0;
    for event in finished {
        if let Event::Finished { generation, text, .. } = event {
            assert_eq!(generation.label.map(|label| labels[label]), Some(text.as_str()));
            answers += 1;
        }
    }
    assert_eq!((answers, bench.generator.free()), (3, 2));
    assert_eq!(bench.generator.grammars.len(), 1);
}

#[test]
fn an_embedding_of_the_clip_has_a_say_in_labels_of_tasks_that_it_is_aligned_with() {
    let folder = tempfile::tempdir().unwrap();
    let labels = ["yes", "no", "no idea"];
    let answers = |sentence: bool, weight: f64, task: Option<&str>, aligned: bool| {
        let weights = if sentence { [0.0, weight] } else { [weight, 0.0] };
        let options = DecodeOptions {
            summary_weight: weights[0],
            sentence_weight: weights[1],
            ..DecodeOptions::greedy(15)
        };
        let mut bench = bench(folder.path(), 2, options);
        let tasks = |aligned: bool| Vec::from_iter(aligned.then(|| "mood".to_owned()));
        let config = AdapterConfig {
            summary: true,
            summary_tasks: tasks(aligned && !sentence),
            positions: Positions::CtcSegments,
            sentence: true,
            sentence_tasks: tasks(aligned && sentence),
            ..bench.versions[0].config().clone()
        };
        let mut adapter = SpeechAdapter::new(config, 1.0, 3, Device::Cpu).unwrap();
        adapter.set_ctc_classes(vec![4, 9, 13, 20, 31], 5).unwrap();
        let table = bench.generator.model().llm().embedding_table();
        adapter.bind(&table).unwrap();
        let version = adapter.snapshot("with embeddings").unwrap();
        let (model, mut by_clip, mut given) = (bench.generator.model(), Vec::new(), Vec::new());
        let clip = |number: i64| {
            let waves = |count: i64, width: i64| {
                let steps = Tensor::arange(count * width, (Kind::Float, Device::Cpu));
                (steps * (0.3 + 0.21 * number as f64)).sin().view([count, width])
            };
            Features {
                frames: waves(60, 32),
                statistics: waves(3, 64),
            }
        };
        let tokens: Vec<Vec<i64>> = labels
            .iter()
            .map(|label| model.spoken_ids(label).unwrap())
            .collect();
        for number in 0..8 {
            let Features { frames, statistics } = clip(number);
            let frames = adapter.forward(&frames.unsqueeze(0), &[60]).unwrap();
            let segments = adapter.segments(&frames, None).unwrap();
            assert!(segments.lengths[0] > 0, "something is said");
            let embedding = match sentence {
                true => adapter.sentence(&segments).unwrap().unwrap(),
                false => adapter.summary(&statistics.unsqueeze(0)).unwrap().unwrap(),
            };
            let scores = label_scores(&embedding.view([-1]), &tokens, &table).unwrap();
            by_clip.push(usize::try_from(scores.argmax(0, false).int64_value(&[])).unwrap());
        }
        for number in 0..8 {
            bench.generator.add_request(GenerateRequest {
                input: Input::Features {
                    features: clip(number),
                    adapter: version.clone(),
                },
                grammar: Some(OutputGrammar::one_of(labels)),
                task: task.map(str::to_owned),
                ..request(1, &version)
            });
            while bench.generator.has_unfinished() {
                for event in bench.generator.step() {
                    match event {
                        Event::Finished { generation, .. } => given.push(generation.label.unwrap()),
                        Event::Failed { error, .. } => panic!("{error}"),
                        Event::Token { .. } => {}
                    }
                }
            }
        }
        (by_clip, given)
    };

    for sentence in [false, true] {
        let (by_clip, given) = answers(sentence, 0.999, Some("mood"), true);
        assert_eq!(given, by_clip);
        let by_model = answers(sentence, 0.0, Some("mood"), true).1;
        assert_ne!(by_model, by_clip);
        let without = |task, aligned| answers(sentence, 0.999, task, aligned).1;
        assert_eq!(without(Some("mood"), false), by_model, "never aligned");
        assert_eq!(without(Some("other"), true), by_model, "another task");
        assert_eq!(without(None, true), by_model, "no task");
    }
}

#[test]
fn a_request_is_reported_until_it_ends_and_an_aborted_one_no_more() {
    let folder = tempfile::tempdir().unwrap();
    let mut bench = bench(folder.path(), 2, DecodeOptions::greedy(12));
    let version = bench.versions[0].clone();
    let [kept, running, waiting] =
        [0, 1, 2].map(|number| bench.generator.add_request(request(number, &version)));

    let first = bench.generator.step();
    let partial = bench.generator.partial(kept).unwrap();
    assert!(bench.generator.abort(running) && bench.generator.abort(waiting));
    let mut tokens = Vec::new();
    let mut whole = None;
    while bench.generator.has_unfinished() {
        for event in bench.generator.step() {
            match event {
                Event::Token { id, tokens: count } => {
                    assert_eq!(id, kept);
                    tokens.push(count);
                }
                Event::Finished { generation, .. } => whole = Some(generation),
                Event::Failed { error, .. } => panic!("{error}"),
            }
        }
    }

    assert_eq!(first.len(), 2, "both slots: {first:?}");
    let whole = whole.unwrap();
    assert_eq!(partial.ids, whole.ids[..1]);
    assert!(tokens.is_sorted(), "{tokens:?}");
    assert!(!bench.generator.abort(kept) && bench.generator.partial(kept).is_none());
}

#[test]
fn a_warm_up_runs_both_passes_and_leaves_nothing_but_the_version_behind() {
    let folder = tempfile::tempdir().unwrap();
    let mut bench = bench(folder.path(), 2, DecodeOptions::greedy(12));
    let version = bench.versions[1].clone();

    bench.generator.warm_up(&version).unwrap();

    assert!(bench.generator.versions.contains_key(version.version()));
    assert!(!bench.generator.has_unfinished());
    assert_eq!((bench.generator.free(), bench.generator.slots_in_use()), (2, 0));
}

#[test]
fn while_answers_run_no_more_prompts_are_made_than_can_be_read_between_two_tokens() {
    let folder = tempfile::tempdir().unwrap();
    let mut bench = bench(folder.path(), 6, DecodeOptions::greedy(12));
    let generator = &mut bench.generator;
    let version = bench.versions[0].clone();
    generator.prefill_positions_max = 1; // of one prompt at a time
    for number in 0..2 {
        generator.add_request(request(number, &version));
    }
    generator.step();
    assert!(generator.waiting.is_empty(), "nobody waits for a token");
    for number in 2..6 {
        generator.add_request(request(number, &version));
    }

    let waiting: Vec<usize> = (0..4)
        .map(|_| {
            generator.step();
            generator.waiting.len()
        })
        .collect();

    assert_eq!(waiting, [3, 2, 1, 0]);
}

#[test]
fn sound_that_nobody_has_encoded_is_an_error_of_its_request() {
    let folder = tempfile::tempdir().unwrap();
    let mut bench = bench(folder.path(), 2, DecodeOptions::greedy(12));
    let version = bench.versions[0].clone();

    bench.generator.add_request(GenerateRequest {
        input: Input::Audio {
            samples: vec![0.0; 1600],
            adapter: version.clone(),
        },
        ..request(0, &version)
    });

    let events = bench.generator.step();
    assert!(
        matches!(
            &events[..],
            [Event::Failed {
                error: InferenceError::NoFeatures,
                ..
            }]
        ),
        "{events:?}"
    );
}
