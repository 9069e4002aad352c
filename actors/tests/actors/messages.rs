//! The ticket: what happens to a record that its stage lets go of.

use speechverse::kafka::Budget;
use speechverse::training::Control;
use speechverse::wire::dead_letter::{Reason, Stage};
use speechverse_actors::messages::{LostAndFound, PublishDeadLetter};

use crate::support::{record, ticket};

#[test]
fn a_ticket_that_is_dropped_comes_back_with_its_stage_and_the_receipts_it_answers_for() {
    let (lost, found) = LostAndFound::new();
    let mut dropped = ticket(record(7), &lost);
    dropped.hold(
        Budget::new(100).hold(1),
        vec![record(5).receipt, record(6).receipt],
    );
    dropped.queue_for(Stage::Decode);

    drop(dropped);

    let back = found.try_recv().unwrap();
    assert_eq!(back.record.receipt, record(7).receipt);
    assert_eq!(back.earlier, [record(5).receipt, record(6).receipt]);
    assert_eq!(back.stage, Stage::Decode);
    assert!(found.try_recv().is_err(), "it comes back once");
}

#[test]
fn a_ticket_that_is_settled_does_not_come_back() {
    let (lost, found) = LostAndFound::new();

    ticket(record(1), &lost).settle();
    let letter = PublishDeadLetter::of(ticket(record(2), &lost), Reason::InternalError, "no luck");

    assert!(found.try_recv().is_err());
    assert_eq!(letter.record.receipt, record(2).receipt);
}

#[test]
fn during_a_stop_a_dropped_ticket_is_left_to_the_restart() {
    let (lost, found) = LostAndFound::new();
    let under_way = ticket(record(1), &lost);

    lost.close();
    drop(under_way);

    assert!(found.try_recv().is_err());
}

#[test]
fn memory_and_right_of_way_last_as_long_as_the_ticket() {
    let (lost, _found) = LostAndFound::new();
    let (budget, training) = (Budget::new(100), Control::new());
    let mut under_way = ticket(record(1), &lost);

    under_way.hold(budget.hold(40), Vec::new());
    under_way.go_first(Some(&training));
    assert_eq!(budget.bytes(), 40);
    assert!(training.is_paused());

    drop(under_way.settle());
    assert_eq!(budget.bytes(), 0);
    assert!(!training.is_paused());
}
