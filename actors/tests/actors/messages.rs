//! The context: what happens to a record that its stage lets go of; and what is kept of a request.

use speechverse::kafka::{Budget, TopicPartition};
use speechverse::training::Control;
use speechverse::wire::dead_letter::{Reason, Stage};
use speechverse::wire::request::{Request, RequestLimits};
use speechverse_actors::messages::{AdmittedRequest, OrphanQueue, PublishDeadLetter};

use crate::support::{context, header, record, shipped};

#[test]
fn a_context_that_is_dropped_comes_back_with_its_stage_and_the_record_offsets_that_it_settles() {
    let (orphans, found) = OrphanQueue::new();
    let mut dropped = context(record(7), &orphans);
    dropped.hold(
        Budget::new(100).hold(1),
        vec![record(5).record_offset, record(6).record_offset],
    );
    dropped.queue_for(Stage::Decode);

    drop(dropped);

    let back = found.try_recv().unwrap();
    assert_eq!(back.record.record_offset, record(7).record_offset);
    assert_eq!(back.earlier, [record(5).record_offset, record(6).record_offset]);
    assert_eq!(back.stage, Stage::Decode);
    assert!(found.try_recv().is_err(), "it comes back once");
}

#[test]
fn a_context_that_is_completed_does_not_come_back() {
    let (orphans, found) = OrphanQueue::new();

    context(record(1), &orphans).complete();
    let letter =
        PublishDeadLetter::of(context(record(2), &orphans), Reason::InternalError, "no luck").unwrap();

    assert!(found.try_recv().is_err());
    assert_eq!(letter.record.record_offset, record(2).record_offset);
}

#[test]
fn during_a_stop_a_dropped_context_is_left_to_the_restart() {
    let (orphans, found) = OrphanQueue::new();
    let under_way = context(record(1), &orphans);

    orphans.close();
    drop(under_way);

    assert!(found.try_recv().is_err());
}

#[test]
fn memory_and_right_of_way_last_as_long_as_the_context() {
    let (orphans, _found) = OrphanQueue::new();
    let (budget, training) = (Budget::new(100), Control::new());
    let mut under_way = context(record(1), &orphans);

    let partition = TopicPartition::new("speechverse.requests", 0);
    under_way.hold(budget.hold(40), Vec::new());
    under_way.hold_audio(budget.audio().hold(partition, 2.5));
    under_way.yield_to_serving(Some(&training));
    assert_eq!((budget.bytes(), budget.audio().seconds()), (40, 2.5));
    assert!(training.is_paused());

    drop(under_way.complete());
    assert_eq!((budget.bytes(), budget.audio().seconds()), (0, 0.0));
    assert!(!training.is_paused());
}

#[test]
fn what_is_kept_of_a_request_says_whether_its_answer_is_constrained_to_labels() {
    let kept_of = |headers: &[(&str, &str)]| {
        let mut record = record(1);
        let headers = headers.iter();
        (record.headers).extend(headers.map(|(name, value)| header(name, value.as_bytes().to_vec())));
        let request = Request::parse(&record, &RequestLimits::default(), &shipped()).unwrap();
        AdmittedRequest::from(&request)
    };
    let labels = ("ce_labels", r#"["on", "off"]"#);

    for (headers, constrained) in [
        (vec![], false),
        (vec![("ce_task", "emotion")], true),
        (vec![("ce_task", "emotion"), ("ce_constrain", "no")], false),
        (
            vec![("ce_task", "emotion"), ("ce_instruction", "How do they feel?")],
            false,
        ),
        (
            vec![
                ("ce_task", "emotion"),
                ("ce_instruction", "How do they feel?"),
                labels,
            ],
            true,
        ),
        (vec![("ce_task", "asr")], false),
        (vec![("ce_task", "asr,emotion")], true),
        (vec![labels], true),
        (vec![labels, ("ce_constrain", "no")], false),
        (vec![("ce_regex", "on|off")], false), // a form of its own, which is not stored
    ] {
        assert_eq!(kept_of(&headers).constrained, constrained, "{headers:?}");
    }
    let kept = kept_of(&[("ce_source", "/phone"), ("ce_task", "emotion"), labels]);
    assert_eq!(
        (kept.source.as_deref(), kept.id.as_str()),
        (Some("/phone"), "request-1")
    );
    assert_eq!(kept.task.as_deref(), Some("emotion"));
    assert_eq!(kept.labels, Some(vec!["on".to_owned(), "off".to_owned()]));
    let searched = [
        ("ce_task", "keyword_search"),
        ("ce_fields", r#"{"keyword": "radio"}"#),
    ];
    assert_eq!(kept_of(&searched).fields["keyword"], "radio");
}
