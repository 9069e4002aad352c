//! The schedule: cycles that start by themselves, and what a restart leaves as it was.

use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn enough_new_samples_start_a_cycle_once() {
    let harness = Harness::new(|trainer| trainer.new_samples_trigger = 3).await;

    for number in 0..2 {
        harness.store.put(&sample(number)).unwrap();
    }
    harness.clock.advance(LOOK_INTERVAL);
    assert!(is_silent(&harness.cycles).await);
    harness.store.put(&sample(2)).unwrap();
    harness.clock.advance(LOOK_INTERVAL);
    let cycle = next(&harness.cycles).await;

    assert_eq!(cycle.trigger, "3 new samples");
    assert!(cycle.run.starts_with("auto-"), "{}", cycle.run);
    harness.clock.advance(LOOK_INTERVAL);
    assert!(is_silent(&harness.cycles).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn samples_that_take_the_place_of_older_ones_are_new_too() {
    let harness = Harness::new(|trainer| trainer.new_samples_trigger = 3).await;

    for cycle in 0..4 {
        for number in 0..9 {
            harness.store.put(&sample(cycle * 9 + number)).unwrap();
        }
        assert!(harness.store.len() <= 8);
        harness.clock.advance(LOOK_INTERVAL);
        assert_eq!(next(&harness.cycles).await.trigger, "9 new samples");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cycle_starts_when_the_interval_has_passed_and_anything_is_new() {
    const INTERVAL: Duration = Duration::from_secs(3600);
    let harness = Harness::new(|trainer| {
        trainer.new_samples_trigger = 0;
        trainer.interval_minutes = 60;
    })
    .await;
    harness.store.put(&sample(0)).unwrap();
    harness.clock.advance(INTERVAL - LOOK_INTERVAL);
    assert!(is_silent(&harness.cycles).await);

    harness.clock.advance(LOOK_INTERVAL);
    assert_eq!(next(&harness.cycles).await.trigger, "schedule");

    harness.clock.advance(INTERVAL);
    assert!(is_silent(&harness.cycles).await, "nothing is new");
    harness.store.put(&sample(1)).unwrap();
    harness.clock.advance(LOOK_INTERVAL);
    assert_eq!(next(&harness.cycles).await.trigger, "schedule");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_schedule_that_cannot_start_a_cycle_says_so_once() {
    let harness = Harness::between(nobody().await, probe(), |trainer| {
        trainer.new_samples_trigger = 1;
    })
    .await;
    harness.store.put(&sample(0)).unwrap();

    harness.clock.advance(LOOK_INTERVAL);
    let (id, _, reason) = harness.refusal().await;

    assert!(id.starts_with("auto-"), "{id}");
    assert!(reason.contains("the trainer is not running"), "{reason}");
    for _ in 0..2 {
        harness.clock.advance(LOOK_INTERVAL);
        assert!(is_silent(&harness.events).await);
    }
}

const HOUR: Duration = Duration::from_secs(3600);

/// A process that comes after one that ended.
async fn after_restart(harness: Harness, settings: impl FnOnce(&mut TrainerConfig)) -> Harness {
    let (dir, clock) = harness.end().await;
    Harness::on(dir, clock, &[], busy_probe(), probe(), settings).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_does_not_begin_the_interval_anew() {
    let daily = |trainer: &mut TrainerConfig| trainer.interval_minutes = 24 * 60;
    let harness = Harness::new(daily).await;
    harness.store.put(&sample(0)).unwrap();
    harness.clock.advance(20 * HOUR);
    assert!(is_silent(&harness.cycles).await);

    let harness = after_restart(harness, daily).await;
    harness.clock.advance(3 * HOUR);
    assert!(is_silent(&harness.cycles).await);
    harness.clock.advance(HOUR);
    assert_eq!(next(&harness.cycles).await.trigger, "schedule");

    let harness = after_restart(harness, daily).await;
    harness.clock.advance(25 * HOUR);
    assert!(is_silent(&harness.cycles).await, "nothing is new");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn samples_from_before_a_restart_count_until_a_cycle_has_used_them() {
    let third = |trainer: &mut TrainerConfig| trainer.new_samples_trigger = 3;
    let harness = Harness::new(third).await;
    for number in 0..2 {
        harness.store.put(&sample(number)).unwrap();
    }

    let harness = after_restart(harness, third).await;
    harness.clock.advance(LOOK_INTERVAL);
    assert!(is_silent(&harness.cycles).await);
    harness.store.put(&sample(2)).unwrap();
    harness.clock.advance(LOOK_INTERVAL);
    assert_eq!(next(&harness.cycles).await.trigger, "3 new samples");

    let harness = after_restart(harness, third).await;
    harness.clock.advance(LOOK_INTERVAL);
    assert!(is_silent(&harness.cycles).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_controller_that_is_started_again_goes_on_with_the_schedule() {
    let third = |trainer: &mut TrainerConfig| trainer.new_samples_trigger = 3;
    let harness = Harness::new(third).await;
    for number in 0..2 {
        harness.store.put(&sample(number)).unwrap();
    }
    harness.controller.kill();
    harness.controller.wait_for_shutdown().await;

    let _again = start::<Controller>(harness.args.clone(), 4).await;
    harness.store.put(&sample(2)).unwrap();
    harness.clock.advance(LOOK_INTERVAL);

    assert_eq!(next(&harness.cycles).await.trigger, "3 new samples");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pause_outlives_the_process_until_an_order_to_resume() {
    let harness = Harness::new(|_| {}).await;
    harness.order(r#"{"command": "pause"}"#).await;
    assert_eq!(harness.carried_out().await.1, "pause");

    let harness = after_restart(harness, |_| {}).await;
    assert!(harness.training.is_paused());
    harness.order(r#"{"command": "resume"}"#).await;
    assert_eq!(harness.carried_out().await.1, "resume");

    let harness = after_restart(harness, |_| {}).await;
    assert!(!harness.training.is_paused());
}
