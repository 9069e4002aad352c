//! The AsyncAPI document: as committed, complete, and without references into nothing.

use std::collections::BTreeSet;

use serde_json::Value;

use super::super::asyncapi::{Addresses, document, to_yaml};
use super::super::attributes;

fn default_document() -> Value {
    document(&Addresses {
        requests: "speechverse.requests",
        results: "speechverse.results",
        labels: "speechverse.labels",
        control: "speechverse.control",
        events: "speechverse.events",
        dead_letters: "speechverse.dead-letters",
    })
}

#[test]
fn the_committed_document_is_the_one_that_the_types_make() {
    let made = to_yaml(&default_document());

    let committed = include_str!("../../../docs/asyncapi.yaml");
    assert!(
        made == committed,
        "docs/asyncapi.yaml is not what the types say: run `speechverse asyncapi > docs/asyncapi.yaml` and look at \
         the difference; what a reader may rely on is in docs/TOPICS.md"
    );
}

#[test]
fn every_header_that_is_read_is_in_the_document_and_no_other() {
    let document = default_document();
    let messages = &document["components"]["messages"];
    let listed: BTreeSet<&str> = ["request", "chunk", "sample", "correction"]
        .into_iter()
        .flat_map(|name| {
            messages[name]["headers"]["properties"]
                .as_object()
                .unwrap()
                .keys()
        })
        .map(String::as_str)
        .filter(|name| !name.starts_with("speechverse_"))
        .collect();

    assert_eq!(listed, attributes::headers().collect());
}

#[test]
fn every_reference_of_the_document_leads_somewhere() {
    fn references<'v>(value: &'v Value, found: &mut Vec<&'v str>) {
        match value {
            Value::Object(members) => {
                found.extend(members.get("$ref").and_then(Value::as_str));
                members.values().for_each(|member| references(member, found));
            }
            Value::Array(items) => items.iter().for_each(|item| references(item, found)),
            _ => {}
        }
    }
    let document = default_document();
    let mut found = Vec::new();
    references(&document, &mut found);

    assert!(found.len() > 20, "{found:?}");
    for reference in found {
        let place = reference.strip_prefix('#').unwrap();
        assert!(document.pointer(place).is_some(), "{reference}");
    }
}
