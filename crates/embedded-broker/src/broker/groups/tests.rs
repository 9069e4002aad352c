//! One group through its phases, with time as an argument.

use std::time::{Duration, Instant};

use bytes::Bytes;
use kafka_protocol::error::ResponseError;
use kafka_protocol::protocol::StrBytes;

use super::Groups;
use super::group::{Group, JoinStep, Newcomer, Phase};
use super::member::{Introduction, JoinAnswer, Joined, SyncAnswer, Synced};

const SESSION: Duration = Duration::from_secs(10);
const REBALANCE: Duration = Duration::from_secs(60);
/// Longer than the pause for a first member's company.
const PAUSE: Duration = Duration::from_secs(1);

fn text(text: &'static str) -> StrBytes {
    StrBytes::from_static_str(text)
}

fn consumer(protocols: &[&'static str]) -> Introduction {
    Introduction {
        instance: None,
        client_id: "client".to_owned(),
        client_host: "/127.0.0.1".to_owned(),
        protocol_type: text("consumer"),
        protocols: protocols
            .iter()
            .map(|name| (text(name), Bytes::from_static(b"topics")))
            .collect(),
        session_timeout: SESSION,
        rebalance_timeout: REBALANCE,
    }
}

fn newcomer(id: &str) -> Newcomer {
    Newcomer::Unknown {
        fresh_id: id.to_owned(),
        must_return: false,
    }
}

fn known(id: &str) -> Newcomer {
    Newcomer::Known {
        member_id: id.to_owned(),
    }
}

fn join(group: &mut Group, who: Newcomer, now: Instant) -> JoinAnswer {
    match group.join(who, consumer(&["range"]), now) {
        Ok(JoinStep::Wait(answer)) => answer,
        other => panic!("not waiting: {other:?}"),
    }
}

fn joined(mut answer: JoinAnswer) -> Joined {
    answer
        .try_recv()
        .expect("the group has agreed")
        .expect("and the member is in it")
}

fn synced(mut answer: SyncAnswer) -> Result<Synced, ResponseError> {
    answer.try_recv().expect("the answer is there")
}

fn assignments(shares: &[(&'static str, &'static str)]) -> Vec<(StrBytes, Bytes)> {
    shares
        .iter()
        .map(|(id, share)| (text(id), Bytes::from_static(share.as_bytes())))
        .collect()
}

/// A stable group of `a` and `b`, led by `a`, and the present time.
fn group_of_two() -> (Group, Instant) {
    let start = Instant::now();
    let mut group = Group::new(start);
    let (a, b) = (
        join(&mut group, newcomer("a"), start),
        join(&mut group, newcomer("b"), start),
    );
    let now = start + PAUSE;
    group.sweep(now);
    assert_eq!((joined(a).generation, joined(b).generation), (1, 1));
    let b = group.sync("b", 1, vec![], now).unwrap();
    let a = group
        .sync("a", 1, assignments(&[("a", "0,1"), ("b", "2,3")]), now)
        .unwrap();
    assert_eq!(
        (synced(a).unwrap().assignment, synced(b).unwrap().assignment),
        ("0,1".into(), "2,3".into())
    );
    assert_eq!(group.phase(), Phase::Stable);
    (group, now)
}

#[test]
fn the_first_member_waits_a_moment_for_company_and_leads() {
    let start = Instant::now();
    let mut group = Group::new(start);

    let mut early = join(&mut group, newcomer("a"), start);
    group.sweep(start);
    let too_soon = early.try_recv().is_err();
    group.sweep(start + PAUSE);
    let joined = joined(early);

    assert!(too_soon);
    assert_eq!(
        (joined.leader.as_str(), joined.members.len(), joined.protocol),
        ("a", 1, text("range"))
    );
}

#[test]
fn a_third_member_makes_everybody_agree_anew_and_nobody_is_left_behind_before_the_deadline() {
    let (mut group, now) = group_of_two();

    let c = join(&mut group, newcomer("c"), now);
    let answer = group.heartbeat("a", 1, now);
    group.sweep(now + SESSION / 2); // far beyond the pause for first members
    let a = join(&mut group, known("a"), now + SESSION / 2);
    let b = join(&mut group, known("b"), now + SESSION / 2);

    assert_eq!(answer, Err(ResponseError::RebalanceInProgress));
    let (a, b, c) = (joined(a), joined(b), joined(c));
    assert_eq!((a.generation, b.generation, c.generation), (2, 2, 2));
    assert_eq!(
        (a.members.len(), b.members.len(), c.members.len()),
        (3, 0, 0),
        "only the leader gets the list of members"
    );
}

#[test]
fn a_silent_member_is_left_behind_and_the_others_are_reported() {
    let (mut group, now) = group_of_two();

    group.heartbeat("a", 1, now + SESSION).unwrap();
    group.sweep(now + SESSION + PAUSE);
    let answer = group.heartbeat("a", 1, now + SESSION + PAUSE);
    let a = join(&mut group, known("a"), now + SESSION + PAUSE);
    let late = group.heartbeat("b", 1, now + SESSION + PAUSE);

    assert_eq!(answer, Err(ResponseError::RebalanceInProgress));
    assert_eq!(late, Err(ResponseError::UnknownMemberId));
    assert_eq!(joined(a).members.len(), 1);
}

#[test]
fn a_member_that_lives_but_does_not_come_back_is_left_behind_at_the_deadline() {
    let (mut group, start) = group_of_two();
    let c = join(&mut group, newcomer("c"), start);
    let a = join(&mut group, known("a"), start);

    let mut now = start;
    while now < start + REBALANCE {
        let _ = group.heartbeat("b", 1, now); // alive, and busy with something else
        group.sweep(now);
        now += SESSION / 2;
    }
    group.sweep(start + REBALANCE);

    assert_eq!((joined(a).members.len(), joined(c).generation), (2, 2));
    assert_eq!(group.heartbeat("b", 1, now), Err(ResponseError::UnknownMemberId));
}

#[test]
fn a_member_whose_connection_is_gone_while_it_joins_is_not_waited_for() {
    let start = Instant::now();
    let mut group = Group::new(start);
    drop(join(&mut group, newcomer("gone"), start));
    let here = join(&mut group, newcomer("here"), start);

    group.sweep(start + PAUSE);
    group.sweep(start + PAUSE * 2);

    let joined = joined(here);
    assert_eq!((joined.leader.as_str(), joined.members.len()), ("here", 1));
}

#[test]
fn followers_that_wait_for_a_leader_who_dies_are_asked_to_join_again() {
    let start = Instant::now();
    let mut group = Group::new(start);
    let (a, b) = (
        join(&mut group, newcomer("a"), start),
        join(&mut group, newcomer("b"), start),
    );
    let now = start + PAUSE;
    group.sweep(now);
    assert_eq!((joined(a).leader, joined(b).generation), ("a".to_owned(), 1));
    let follower = group.sync("b", 1, vec![], now).unwrap();

    group.sweep(now + SESSION + PAUSE);

    assert_eq!(synced(follower), Err(ResponseError::RebalanceInProgress));
    assert!(matches!(group.phase(), Phase::Gathering { first: false, .. }));
}

#[test]
fn a_follower_that_comes_back_unchanged_gets_the_same_answer_and_a_leader_a_new_round() {
    let (mut group, now) = group_of_two();

    let follower = joined(join(&mut group, known("b"), now));
    let still_stable = group.phase() == Phase::Stable;
    let _leader = join(&mut group, known("a"), now);

    assert!(still_stable && follower.generation == 1);
    assert!(matches!(group.phase(), Phase::Gathering { .. }));
}

#[test]
fn strangers_and_the_past_are_refused() {
    let (mut group, now) = group_of_two();

    let stranger = group.join(known("x"), consumer(&["range"]), now).unwrap_err();
    let other_strategy = group
        .join(newcomer("y"), consumer(&["roundrobin"]), now)
        .unwrap_err();
    let past = group.heartbeat("a", 0, now).unwrap_err();
    let commit_past = group.may_commit("a", 0, now).unwrap_err();
    let commit_without_membership = group.may_commit("", -1, now).unwrap_err();

    assert_eq!(stranger, ResponseError::UnknownMemberId);
    assert_eq!(other_strategy, ResponseError::InconsistentGroupProtocol);
    assert_eq!(
        (past, commit_past),
        (ResponseError::IllegalGeneration, ResponseError::IllegalGeneration)
    );
    assert_eq!(commit_without_membership, ResponseError::UnknownMemberId);
    assert_eq!(group.phase(), Phase::Stable, "nobody was disturbed");
}

#[test]
fn an_id_is_given_first_to_those_who_must_come_back_and_holds_for_a_session() {
    let now = Instant::now();
    let mut group = Group::new(now);
    let who = |id: &str| Newcomer::Unknown {
        fresh_id: id.to_owned(),
        must_return: true,
    };

    let first = group.join(who("a"), consumer(&["range"]), now).unwrap();
    let second = group.join(who("b"), consumer(&["range"]), now).unwrap();
    let in_time = group.join(known("a"), consumer(&["range"]), now + SESSION / 2);
    group.sweep(now + SESSION);
    let too_late = group.join(known("b"), consumer(&["range"]), now + SESSION);

    assert!(
        matches!((first, second), (JoinStep::ComeBack(a), JoinStep::ComeBack(b)) if a == "a" && b == "b")
    );
    assert!(matches!(in_time, Ok(JoinStep::Wait(_))));
    assert_eq!(too_late.unwrap_err(), ResponseError::UnknownMemberId);
}

#[test]
fn most_votes_choose_the_strategy_among_those_that_all_know() {
    let start = Instant::now();
    let mut group = Group::new(start);
    let mut come =
        |id: &str, protocols: &[&'static str]| match group.join(newcomer(id), consumer(protocols), start) {
            Ok(JoinStep::Wait(answer)) => answer,
            other => panic!("not waiting: {other:?}"),
        };

    let first = come("a", &["private", "range", "sticky"]);
    let _b = come("b", &["sticky", "range"]);
    let _c = come("c", &["sticky", "range"]);
    group.sweep(start + PAUSE);

    assert_eq!(joined(first).protocol, text("sticky"));
}

#[test]
fn a_static_member_that_returns_takes_its_own_place() {
    let start = Instant::now();
    let mut group = Group::new(start);
    let named = || Introduction {
        instance: Some(text("kitchen")),
        ..consumer(&["range"])
    };
    let first = group.join(newcomer("a"), named(), start);

    let second = group.join(newcomer("b"), named(), start);

    let (Ok(JoinStep::Wait(mut first)), Ok(JoinStep::Wait(second))) = (first, second) else {
        panic!("both wait");
    };
    assert_eq!(first.try_recv(), Ok(Err(ResponseError::FencedInstanceId)));
    group.sweep(start + PAUSE);
    assert_eq!(joined(second).members.len(), 1);
}

#[test]
fn a_static_member_that_restarts_gets_its_partitions_back_without_a_new_round() {
    let start = Instant::now();
    let mut group = Group::new(start);
    let named = || Introduction {
        instance: Some(text("kitchen")),
        ..consumer(&["range"])
    };
    let Ok(JoinStep::Wait(first)) = group.join(newcomer("a"), named(), start) else {
        panic!("it waits");
    };
    group.sweep(start + PAUSE);
    let generation = joined(first).generation;
    let shared_out = vec![(text("a"), Bytes::from_static(b"partition 0"))];
    drop(group.sync("a", generation, shared_out, start).unwrap());

    let Ok(JoinStep::Wait(second)) = group.join(newcomer("b"), named(), start) else {
        panic!("it is answered");
    };
    let second = joined(second);
    let mut synced = group.sync("b", second.generation, Vec::new(), start).unwrap();

    assert_eq!((second.generation, group.phase()), (generation, Phase::Stable));
    assert_eq!(
        synced.try_recv().unwrap().unwrap().assignment,
        Bytes::from_static(b"partition 0")
    );
    let kitchen = text("kitchen");
    assert_eq!(
        group.check_instance("a", Some(&kitchen)),
        Err(ResponseError::FencedInstanceId)
    );
    assert_eq!(group.check_instance("b", Some(&kitchen)), Ok(()));
    assert_eq!(group.check_instance("c", None), Ok(()));
}

#[test]
fn the_last_member_leaves_an_empty_group_that_goes_when_nothing_was_committed() {
    let now = Instant::now();
    let mut groups = Groups::default();
    let group = groups.get_or_create("group", now).unwrap();
    let _answer = join(group, newcomer("a"), now);

    group.leave("a", None, now).unwrap();
    let left_twice = group.leave("a", None, now);
    let phase = group.phase();
    groups.sweep(now);

    assert_eq!(
        (left_twice, phase),
        (Err(ResponseError::UnknownMemberId), Phase::Empty)
    );
    assert!(groups.get("group").is_none());
}

#[test]
fn one_group_too_many_takes_the_place_of_the_longest_unused() {
    use super::offsets::CommittedOffset;
    use crate::broker::limits::GROUPS_MAX;
    let start = Instant::now();
    let mut groups = Groups::default();
    for number in 0..GROUPS_MAX {
        let now = start + Duration::from_millis(number as u64);
        let group = groups.get_or_create(&format!("group {number}"), now).unwrap();
        group.offsets.set("topic", 0, CommittedOffset::new(1, None));
    }

    groups.get_or_create("another", start + PAUSE * 10).unwrap();

    assert!(
        groups.get("group 0").is_none() && groups.get("group 1").is_some() && groups.get("another").is_some()
    );
}
