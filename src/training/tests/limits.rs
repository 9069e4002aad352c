//! What ends a run or a stage early, and what does not.

use std::time::Duration;

use super::*;
use crate::util::Clock;

#[test]
fn a_run_ends_in_time_with_what_it_has() {
    let place = Place::new();
    let endless = StageConfig {
        steps_max: None,
        minutes_max: Some(1e5),
        ..stage(StageKind::CtcAlign, 1)
    };
    let config = TrainingConfig {
        minutes_max: Some(0.02),
        ..place.config("short", vec![endless.clone(), endless])
    };

    let (outcome, events) = place.train(config);

    assert!(!outcome.stopped && outcome.best.is_some());
    assert!(
        events
            .iter()
            .any(|event| matches!(event, TrainEvent::RunFinished { stopped: false, .. }))
    );
}

#[test]
fn patience_ends_a_stage_that_no_longer_improves() {
    let place = Place::new();
    let stubborn = StageConfig {
        steps_max: None,
        patience: Some(2),
        learning_rate: 1e-9,
        ..stage(StageKind::CtcAlign, 1)
    };
    let mut config = place.config("patient", vec![stubborn]);
    config.validation.every_steps = 1;

    let (_, events) = place.train(config);

    assert!(
        events
            .iter()
            .any(|event| matches!(event, TrainEvent::StageFinished { reason, .. } if reason == "patience"))
    );
}

/// Pauses at the first step; once the run waits, lets that time pass and resumes.
fn pause_for(control: &Control, clock: &Clock, time: Duration) -> std::thread::JoinHandle<()> {
    control.pause();
    let (control, clock, before) = (control.clone(), clock.clone(), control.paused_time());
    std::thread::spawn(move || {
        let moment = Duration::from_millis(1);
        let until = |moves: &dyn Fn(), least: Duration| {
            while control.paused_time() - before < least {
                moves();
                std::thread::sleep(moment);
            }
        };
        until(&|| clock.advance(moment), moment); // the run waits by now
        clock.advance(time);
        until(&|| {}, time);
        control.resume();
    })
}

#[test]
fn a_pause_is_not_taken_off_the_time_that_a_run_may_take() {
    let place = Place::new();
    let clock = Clock::manual();
    let config = TrainingConfig {
        minutes_max: Some(15.0),
        ..place.config(
            "paused",
            vec![stage(StageKind::CtcAlign, 3), stage(StageKind::Asr, 2)],
        )
    };
    let args = EngineArgs {
        control: Control::by(clock.clone()),
        ..place.args(config)
    };
    let control = args.control.clone();
    let mut pause = None;

    let outcome = Engine::new(args)
        .unwrap()
        .run(&mut |event| {
            if matches!(event, TrainEvent::Step { .. }) && pause.is_none() {
                pause = Some(pause_for(&control, &clock, Duration::from_secs(20 * 60)));
            }
        })
        .unwrap();
    pause.unwrap().join().unwrap();

    assert_eq!((outcome.stopped, outcome.steps), (false, 5));
    assert!(outcome.seconds < 60.0, "{}", outcome.seconds);
}

#[test]
fn time_that_passes_without_a_pause_is_taken_off_it() {
    let place = Place::new();
    let clock = Clock::manual();
    let config = TrainingConfig {
        minutes_max: Some(15.0),
        ..place.config(
            "slow",
            vec![stage(StageKind::CtcAlign, 9), stage(StageKind::Asr, 9)],
        )
    };
    let args = EngineArgs {
        control: Control::by(clock.clone()),
        ..place.args(config)
    };

    let outcome = Engine::new(args)
        .unwrap()
        .run(&mut |event| {
            if matches!(event, TrainEvent::Step { .. }) {
                clock.advance(Duration::from_secs(8 * 60));
            }
        })
        .unwrap();

    assert_eq!((outcome.stopped, outcome.steps), (false, 2));
}
