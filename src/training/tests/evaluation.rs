//! Answers that are judged as serving would give them.

use super::super::evaluate::{EvaluatedRow, scores};
use super::*;

#[test]
fn evaluation_keeps_the_order_and_scores_each_task() {
    let place = Place::new();
    let config = place.config("evaluates", vec![stage(StageKind::CtcAlign, 2)]);
    let (outcome, _) = place.train(config.clone());
    let mut list = examples(5);
    list[3].audio = AudioSource::File("no/such.wav".into());
    let samples = prepare(list, &config, &place.networks.speech_llm)
        .unwrap()
        .samples;
    let mut seen = 0;

    for by_ctc in [false, true] {
        let options = EvaluateOptions {
            engine: EngineConfig::offline(2, DecodeOptions::greedy(4)),
            by_ctc,
        };
        let found = evaluate(
            &place.networks,
            &outcome.adapter,
            &samples,
            &options,
            &Control::new(),
            &mut |_| seen += 1,
        )
        .unwrap();

        let ids: Vec<&str> = found.rows.iter().map(|row| row.id.as_str()).collect();
        assert_eq!(ids, ["clip-0", "clip-1", "clip-2", "clip-4"]);
        assert_eq!(found.unreadable.len(), 1);
        assert!(found.unreadable[0].contains("clip-3"));
        let [score] = found.scores.as_slice() else {
            panic!("{:?}", found.scores);
        };
        assert_eq!(
            (score.task.as_str(), score.metric, score.answers),
            ("asr", Metric::Wer, 4)
        );
        assert_eq!(found.score_of("asr"), Some(score));
        assert!(
            found
                .rows
                .iter()
                .all(|row| by_ctc || row.score.is_some() || row.hypothesis.is_empty())
        );
    }
    assert_eq!(seen, 8);
}

/// 35 s of sound: more than the encoder's window of 30 s.
fn long_example() -> Example {
    let samples: Vec<f32> = (0..560_000).map(|at| (at as f32 * 0.05).sin() * 0.3).collect();
    Example {
        audio: AudioSource::Samples(samples.into()),
        seconds: 35.0,
        ..example(0)
    }
}

#[test]
fn a_clip_longer_than_the_encoders_window_is_evaluated_and_validated_as_serving_would_encode_it() {
    let place = Place::new();
    let mut config = place.config("long", vec![stage(StageKind::Asr, 1)]);
    config.data.seconds_max = 60.0;
    config.data.seconds_min = 0.0;
    let mut args = place.args(config.clone());
    args.valid = vec![long_example()];
    let mut validated = None;

    let engine = Engine::new(args).unwrap();
    let outcome = engine
        .run(&mut |event| {
            if let TrainEvent::Validated {
                clips,
                transcribed_clips,
                ..
            } = event
            {
                validated = Some((*clips, *transcribed_clips));
            }
        })
        .unwrap();
    let samples = prepare(vec![long_example()], &config, &place.networks.speech_llm).unwrap();
    let options = EvaluateOptions {
        engine: EngineConfig::offline(2, DecodeOptions::greedy(4)),
        by_ctc: false,
    };
    let found = evaluate(
        &place.networks,
        &outcome.adapter,
        &samples.samples,
        &options,
        &Control::new(),
        &mut |_| {},
    )
    .unwrap();

    assert_eq!(validated, Some((1, 1)));
    assert_eq!((found.rows.len(), found.unreadable.len()), (1, 0));
    assert!((found.audio_seconds - 35.0).abs() < 1e-6);
}

#[test]
fn each_task_is_judged_by_its_own_metric_also_where_several_are_answered_at_once() {
    let place = Place::new();
    let mut config = place.config("metrics", vec![stage(StageKind::Asr, 1)]);
    config.tasks_dir = Some(Path::new(env!("CARGO_MANIFEST_DIR")).join("configs/tasks"));
    config.data.target_tokens_max = 1_000;
    let (outcome, _) = place.train(place.config("any", vec![stage(StageKind::Asr, 1)]));
    let of_task = |task: &str, target: &str| Example {
        task: task.to_owned(),
        target: target.to_owned(),
        ..example(0)
    };
    let list = vec![
        of_task("asr", "ab"),
        of_task("emotion", "sad"),
        of_task("asr,emotion", "ASR: ab | Emotion: sad |"),
    ];
    let samples = prepare(list, &config, &place.networks.speech_llm)
        .unwrap()
        .samples;
    assert_eq!(samples.len(), 3);

    let options = EvaluateOptions {
        engine: EngineConfig::offline(4, DecodeOptions::greedy(4)),
        by_ctc: false,
    };
    let found = evaluate(
        &place.networks,
        &outcome.adapter,
        &samples,
        &options,
        &Control::new(),
        &mut |_| {},
    )
    .unwrap();

    let scores: Vec<(&str, Metric, usize)> = (found.scores.iter())
        .map(|score| (score.task.as_str(), score.metric, score.answers))
        .collect();
    let emotion = crate::text::TaskTable::load(config.tasks_dir.as_deref().unwrap()).unwrap();
    let emotion = Metric::of_task(emotion.get("emotion").unwrap().metric)[0];
    assert_ne!(emotion, Metric::Wer);
    assert_eq!(scores, [("asr", Metric::Wer, 2), ("emotion", emotion, 2)]);
    let emotion = found.score_of("emotion").unwrap();
    assert!((emotion.error() - (1.0 - emotion.score / 100.0)).abs() < 1e-9);
}

#[test]
fn a_task_of_slots_whose_answers_rightly_name_none_is_judged_and_has_the_best_score() {
    let place = Place::new();
    let config = place.config("slots", vec![stage(StageKind::Asr, 1)]);
    let prepared = prepare(examples(4), &config, &place.networks.speech_llm).unwrap();
    let score = |metric: Metric, answers: [&str; 4]| {
        let (mut samples, mut rows) = (prepared.samples.clone(), Vec::new());
        for (sample, answer) in samples.iter_mut().zip(answers) {
            sample.metrics = vec![("slots".to_owned(), metric)];
            rows.push(Some(EvaluatedRow {
                id: sample.example.id.clone(),
                task: "slots".to_owned(),
                reference: "none".to_owned(),
                hypothesis: answer.to_owned(),
                score: None,
            }));
        }
        let scores = scores(&samples, &rows);
        assert!(scores.iter().all(|score| score.answers == 4), "{scores:?}");
        scores.first().map(|score| score.score)
    };

    for metric in [Metric::SluF1, Metric::SdF1] {
        assert_eq!(
            score(metric, ["none", "", "none", "none"]),
            Some(100.0),
            "{metric}"
        );
        assert_eq!(
            score(metric, ["none", "city=rome", "none", "none"]),
            Some(0.0),
            "{metric}"
        );
    }
    let unanswered: Vec<Option<EvaluatedRow>> = vec![None; 4];
    assert!(scores(&prepared.samples, &unanswered).is_empty());
}
