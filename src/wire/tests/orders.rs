//! Orders: what they may bring, what is none, and the id under which events tell of them.

use proptest::prelude::*;

use super::super::control::{Command, Order};
use super::*;

fn order(value: &str) -> Result<Order, Rejection> {
    Order::parse(&record(value.as_bytes(), &[]))
}

#[test]
fn an_order_of_a_type_of_ours_that_is_not_known_is_refused() {
    let of = |kind: &str| {
        Order::parse(&record(
            br#"{"command":"retrain"}"#,
            &[("ce_type", kind.as_bytes())],
        ))
    };
    for kind in ["speechverse.order.v1", "com.example.order"] {
        assert!(of(kind).is_ok(), "{kind}");
    }
    for kind in ["speechverse.order.v2", "speechverse.label.v1"] {
        let refusal = of(kind).unwrap_err();
        assert_eq!(
            (refusal.reason, refusal.stage),
            (Reason::UnsupportedType, Stage::Control),
            "{kind}"
        );
    }
}

#[test]
fn orders_are_read_with_what_they_may_bring() {
    let of = |id: Option<&str>, command| {
        let id = id.map(str::to_owned);
        Ok(Order { id, command })
    };
    let version = |name: &str| name.to_owned();
    for (value, expected) in [
        (r#"{"command":"retrain"}"#, of(None, Command::Retrain)),
        (
            r#"{"command":"retrain","id":"c-1","reason":"new voices"}"#,
            of(Some("c-1"), Command::Retrain),
        ),
        (
            r#"{"command":"promote","version":"v2","id":"c-2"}"#,
            of(
                Some("c-2"),
                Command::Promote {
                    version: version("v2"),
                },
            ),
        ),
        (
            r#"{"command":"rollback"}"#,
            of(None, Command::Rollback { version: None }),
        ),
        (
            r#"{"command":"rollback","version":"v1"}"#,
            of(
                None,
                Command::Rollback {
                    version: Some(version("v1")),
                },
            ),
        ),
        (
            r#"{"command":"pause","reason":"noise"}"#,
            of(None, Command::Pause),
        ),
        (
            "\u{feff}{\"command\":\"resume\",\"id\":\"c-3\"}",
            of(Some("c-3"), Command::Resume),
        ),
    ] {
        assert_eq!(order(value), expected, "{value}");
    }
    let samples = vec!["ab".repeat(32), "01".repeat(32)];
    let value = format!(
        r#"{{"command":"forget","samples":["{}","{}"]}}"#,
        samples[0], samples[1]
    );
    assert_eq!(order(&value), of(None, Command::Forget { samples }));
}

#[test]
fn what_is_no_order_is_refused() {
    let id = "ab".repeat(32);
    let with_id = |order: &str| order.replace("ID", &id);
    let too_many = format!(
        r#"{{"command":"forget","samples":[{}"ID"]}}"#,
        r#""ID","#.repeat(1_000)
    );
    let too_many = with_id(&too_many);
    let (other, twice) = (
        with_id(r#"{"command":"pause","samples":["ID"]}"#),
        with_id(r#"{"command":"forget","samples":["ID"],"version":"v1"}"#),
    );
    let long = format!(r#"{{"command":"pause","id":"{}"}}"#, "x".repeat(129));
    for value in [
        "",
        "retrain",
        "[]",
        "{}",
        r#"{"command":7}"#,
        r#"{"command":"dance"}"#,
        r#"{"command":"promote"}"#,
        r#"{"command":"promote","version":""}"#,
        r#"{"command":"rollback","verison":"v1"}"#,
        r#"{"command":"pause","verison":"v1"}"#,
        r#"{"command":"pause","version":"v1"}"#,
        r#"{"command":"pause","id":""}"#,
        &long,
        r#"{"command":"forget"}"#,
        r#"{"command":"forget","samples":[]}"#,
        r#"{"command":"forget","samples":["abc"]}"#,
        r#"{"command":"forget","samples":"abc"}"#,
        &other,
        &twice,
        &too_many,
    ] {
        let rejection = order(value).expect_err(value);
        assert_eq!(
            (rejection.reason, rejection.stage),
            (Reason::InvalidCommand, Stage::Control)
        );
    }
    let header = Order::parse(&record(br#"{"command":"pause"}"#, &[("ce_id", b"\xff")])).unwrap_err();
    assert_eq!(header.reason, Reason::InvalidCommand);
}

#[test]
fn an_order_has_the_id_that_it_brings_or_one_of_its_place() {
    let id = |value: &str, headers: &[(&str, &[u8])]| {
        let record = record(value.as_bytes(), headers);
        Order::parse(&record).unwrap().id_at(&record.record_offset)
    };

    assert_eq!(id(r#"{"command":"pause","id":"a"}"#, &[("ce_id", b"b")]), "a");
    assert_eq!(id(r#"{"command":"pause"}"#, &[("ce_id", b"b")]), "b");
    assert_eq!(
        id(r#"{"command":"pause"}"#, &[]),
        "order-speechverse.requests-2-17"
    );
    assert_eq!(
        id(r#"{"command":"retrain"}"#, &[]),
        "run-speechverse.requests-2-17"
    );
}

proptest! {
    #[test]
    fn an_order_that_is_written_is_read_back(version in "\\PC{1,20}", id in prop::option::of("[a-z0-9-]{1,20}"), which in 0..7_usize) {
        let command = [
            Command::Retrain,
            Command::Promote { version: version.clone() },
            Command::Rollback { version: Some(version) },
            Command::Rollback { version: None },
            Command::Pause,
            Command::Resume,
            Command::Forget { samples: vec!["0f".repeat(32)] },
        ][which].clone();
        let written = Order { id, command };

        prop_assert_eq!(order(&written.to_json()), Ok(written));
    }
}
