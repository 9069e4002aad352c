use super::*;

fn parse(text: &str) -> Result<KafkaConfig, toml::de::Error> {
    toml::from_str(text)
}

#[test]
fn the_defaults_are_valid_and_name_the_contract_s_topics() {
    let config = KafkaConfig::default();

    config.validate().unwrap();

    let names: Vec<&str> = config.topics.all().iter().map(|(_, name)| *name).collect();
    assert_eq!(
        names,
        [
            "speechverse.requests",
            "speechverse.results",
            "speechverse.labels",
            "speechverse.control",
            "speechverse.events",
            "speechverse.dead-letters"
        ]
    );
}

#[test]
fn a_misspelt_key_is_an_error_that_names_the_key() {
    let error = parse("bootstrop = \"x\"").unwrap_err();
    let nested = parse("[topics]\nrequest = \"x\"").unwrap_err();

    assert!(error.to_string().contains("bootstrop"), "{error}");
    assert!(nested.to_string().contains("request"), "{nested}");
}

#[test]
fn rules_of_groups_and_transactions_are_checked_before_anything_starts() {
    for (text, key) in [
        ("instance_id = \"a b\"", "kafka.instance_id"),
        (
            "embedded = true\ngroup_protocol = \"consumer\"",
            "kafka.group_protocol",
        ),
        ("transaction_records_max = 0", "kafka.transaction_records_max"),
        ("transaction_timeout_ms = 500", "kafka.transaction_timeout_ms"),
        (
            "delivery = \"exactly_once\"\ntransaction_timeout_ms = 2000\ncommit_interval_ms = 1000",
            "kafka.commit_interval_ms",
        ),
    ] {
        let error = parse(text).unwrap().validate().unwrap_err();

        assert!(error.to_string().contains(key), "{text}: {error}");
    }
    let text = "delivery = \"exactly_once\"\ngroup_protocol = \"consumer\"\ninstance_id = \"pod-0\"";
    parse(text).unwrap().validate().unwrap();
}

#[test]
fn processes_without_a_name_never_share_a_transactional_id() {
    let named = parse("group_id = \"g\"\ninstance_id = \"pod-0\"").unwrap();
    let unnamed = KafkaConfig::default();

    assert_eq!(named.transactional_id(), "g-pod-0");
    assert_ne!(unnamed.transactional_id(), unnamed.transactional_id());
}

#[test]
fn two_topics_of_one_name_are_refused() {
    let config = parse("[topics]\nresults = \"speechverse.requests\"").unwrap();

    let error = config.validate().unwrap_err();

    assert!(error.to_string().contains("kafka.topics.results"), "{error}");
    assert!(error.to_string().contains("kafka.topics.requests"), "{error}");
}

#[test]
fn a_topic_for_replies_is_one_of_its_own() {
    let error = parse("[topics]\nreplies = [\"team\", \"speechverse.requests\"]")
        .unwrap()
        .validate()
        .unwrap_err();

    assert!(error.to_string().contains("kafka.topics.replies"), "{error}");
    parse("[topics]\nreplies = [\"team-a\", \"team-b\"]")
        .unwrap()
        .validate()
        .unwrap();
}

#[test]
fn impossible_names_and_addresses_are_refused() {
    for text in [
        "bootstrap = \"localhost\"",
        "bootstrap = \"a:1,,b:2\"",
        "bootstrap = \"a:99999\"",
        "group_id = \" \"",
        "[topics]\nevents = \"a b\"",
        "[topics]\nevents = \"..\"",
    ] {
        assert!(parse(text).unwrap().validate().is_err(), "{text}");
    }
    parse("bootstrap = \"[::1]:9092, SSL://broker-2:9093\"")
        .unwrap()
        .validate()
        .unwrap();
}

#[test]
fn buffers_must_hold_the_largest_record() {
    let config = parse("message_bytes_max = 300_000_000").unwrap();

    let error = config.validate().unwrap_err();

    assert!(error.to_string().contains("in_flight_bytes_max"), "{error}");
}
