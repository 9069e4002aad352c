//! Labelled samples, training cycles, swaps.

use speechverse::wire::event::{EventKind, Verdict};
use speechverse_pipelines::serving::Pipeline;

use crate::harness::{Client, Sandbox, header, tone};

async fn label_some(client: &Client, count: usize) {
    for number in 0..count {
        let audio = tone(0.6 + 0.05 * number as f64, 120.0 + 15.0 * number as f64);
        let target = format!("sentence number {number}");
        client
            .label(
                Some(audio),
                vec![header("ce_task", "asr"), header("ce_target", target)],
            )
            .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_ordered_cycle_makes_a_version_that_the_next_answer_names_and_no_answer_goes_back() {
    let sandbox = Sandbox::new().await;
    let pipeline = sandbox.start().await;
    let mut client = sandbox.client().await;
    label_some(&client, 22).await;
    client.request("before", "k", tone(0.5, 200.0), Vec::new()).await;
    let (before, _) = client.answer().await;
    // A correction of that answer is a sample too.
    client
        .label(
            None,
            vec![header("ce_subject", "before"), header("ce_target", "hello")],
        )
        .await;
    tokio::time::sleep(std::time::Duration::from_secs(1)).await;

    client
        .order("{\"command\": \"retrain\", \"id\": \"run-1\"}")
        .await;
    let mut number = 0;
    // A caller that goes on asking while the cycle runs and the swap happens.
    let (finished, during) = {
        let mut during = Vec::new();
        loop {
            client
                .request(&format!("during-{number}"), "k", tone(0.5, 200.0), Vec::new())
                .await;
            number += 1;
            during.push(client.answer().await.0);
            if during
                .last()
                .is_some_and(|answer| answer.adapter != before.adapter)
            {
                break;
            }
            assert!(number < 2_000, "the swap did not come");
        }
        let finished = client
            .event(|what| matches!(what, EventKind::CycleFinished { .. }))
            .await;
        (finished, during)
    };

    let EventKind::CycleFinished { verdict, version, .. } = &finished.what else {
        unreachable!("asked for above")
    };
    assert_eq!(finished.id, "run-1");
    assert_eq!(*verdict, Verdict::Promoted, "{:?}", finished.what);
    assert_eq!(version.as_deref(), Some("tiny-0002"));
    assert_eq!(before.adapter, "tiny-0001");
    let swap = during
        .iter()
        .position(|answer| answer.adapter == "tiny-0002")
        .expect("the loop ended with it");
    assert!(during[..swap].iter().all(|answer| answer.adapter == "tiny-0001"));
    sandbox.end(pipeline).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cycle_without_enough_samples_fails_with_that_reason_and_serving_goes_on() {
    let sandbox = Sandbox::new().await;
    let pipeline = sandbox.start().await;
    let mut client = sandbox.client().await;
    label_some(&client, 3).await;

    client.order("{\"command\": \"retrain\"}").await;
    let finished = client
        .event(|what| matches!(what, EventKind::CycleFinished { .. }))
        .await;
    client.request("after", "k", tone(0.5, 200.0), Vec::new()).await;
    let (answer, _) = client.answer().await;

    let EventKind::CycleFinished { verdict, reason, .. } = finished.what else {
        unreachable!("asked for above")
    };
    assert_eq!(verdict, Verdict::Failed);
    assert!(reason.contains("samples_min"), "{reason}");
    assert_eq!(answer.adapter, "tiny-0001");
    sandbox.end(pipeline).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_order_for_a_version_that_does_not_exist_is_refused_by_an_event() {
    let sandbox = Sandbox::new().await;
    let pipeline = sandbox.start().await;
    let mut client = sandbox.client().await;

    client
        .order("{\"command\": \"promote\", \"version\": \"tiny-0099\"}")
        .await;
    let refused = client
        .event(|what| matches!(what, EventKind::CommandRefused { .. }))
        .await;

    let EventKind::CommandRefused { command, reason } = refused.what else {
        unreachable!("asked for above")
    };
    assert_eq!(command, "promote");
    assert!(reason.contains("tiny-0099"), "{reason}");
    sandbox.end(pipeline).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn orders_are_carried_out_in_the_order_of_sending_and_not_again_by_a_group_of_another_name() {
    let sandbox = Sandbox::new().await;
    let first = sandbox.start().await;
    let mut client = sandbox.client().await;
    let mut carried_out = Vec::new();
    for number in 0..12 {
        let command = ["pause", "resume"][number % 2];
        client
            .order(&format!(
                "{{\"command\": \"{command}\", \"id\": \"old-{number}\"}}"
            ))
            .await;
    }
    for _ in 0..12 {
        let event = client
            .event(|what| matches!(what, EventKind::CommandObeyed { .. }))
            .await;
        carried_out.push((event.time, event.id));
    }
    carried_out.sort();
    let ids: Vec<&str> = carried_out.iter().map(|(_, id)| id.as_str()).collect();
    let sent: Vec<String> = (0..12).map(|number| format!("old-{number}")).collect();
    assert_eq!(ids, sent);
    first.stop().await.unwrap();

    let mut settings = sandbox.settings.clone();
    settings.kafka.group_id = "second".into();
    let second = Pipeline::start(settings).await.unwrap();
    client.order("{\"command\": \"pause\", \"id\": \"new\"}").await;

    let mut expired = std::collections::BTreeSet::new();
    for _ in 0..12 {
        let event = client
            .event(|what| matches!(what, EventKind::CommandExpired { .. }))
            .await;
        expired.insert(event.id);
    }
    assert_eq!(expired, sent.into_iter().collect());
    let mut from_the_beginning = sandbox.client().await;
    let new = from_the_beginning.event_of("new").await;
    assert!(matches!(new.what, EventKind::CommandObeyed { .. }), "{new:?}");
    sandbox.end(second).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_curriculum_with_low_rank_updates_makes_a_version_that_is_served_learned_on_and_served_again() {
    let mut sandbox = Sandbox::new().await;
    // So coarse that answers change; every candidate is good enough.
    std::fs::write(
        &sandbox.settings.trainer.curriculum,
        "[lora]\nrank = 2\n[validation]\nevery_steps = 100\n[[stage]]\nkind = \"lora_warmup\"\nsteps_max = 4\nbatch_rows = 4\n\
         learning_rate = 0.02\nlora_rate_factor = 1.0\n",
    )
    .unwrap();
    sandbox.settings.trainer.improvement_min = -1.0;
    sandbox.settings.trainer.regression_max = 1.0;
    let pipeline = sandbox.start().await;
    let mut client = sandbox.client().await;
    label_some(&client, 22).await;
    client.request("before", "k", tone(0.5, 200.0), Vec::new()).await;
    let (before, _) = client.answer().await;
    let mut answers = vec![before];
    tokio::time::sleep(std::time::Duration::from_secs(1)).await;

    // The second cycle goes on from the first one's low-rank updates.
    for cycle in 1..=2 {
        client.order("{\"command\": \"retrain\"}").await;
        let finished = client
            .event(|what| matches!(what, EventKind::CycleFinished { .. }))
            .await;
        let EventKind::CycleFinished { verdict, version, .. } = &finished.what else {
            unreachable!("asked for above")
        };
        assert_eq!(*verdict, Verdict::Promoted, "{:?}", finished.what);
        let version = version.clone().expect("a promoted candidate has a version");
        let folder = sandbox.settings.adapters.dir.join(&version).join("lora");
        assert!(folder.join("adapter_model.safetensors").is_file());
        client
            .request(&format!("after-{cycle}"), "k", tone(0.5, 200.0), Vec::new())
            .await;
        let (answer, _) = client.answer().await;
        assert_eq!(answer.adapter, version);
        answers.push(answer);
    }
    // An older version and the newest one, asked in one breath.
    client.order("{\"command\": \"rollback\"}").await;
    client
        .event(|what| matches!(what, EventKind::AdapterSwapped { reason, .. } if reason == "rollback"))
        .await;
    client.request("back", "k", tone(0.5, 200.0), Vec::new()).await;
    let (back, _) = client.answer().await;

    assert_ne!(answers[0].text, answers[1].text);
    assert_eq!(
        (&back.adapter, &back.text),
        (&answers[1].adapter, &answers[1].text)
    );
    pipeline.stop().await.unwrap();
    let again = sandbox.start().await;
    client.request("again", "k", tone(0.5, 200.0), Vec::new()).await;
    let (again_answer, _) = client.answer().await;
    assert_eq!(
        (&again_answer.adapter, &again_answer.text),
        (&back.adapter, &back.text)
    );
    sandbox.end(again).await;
}
