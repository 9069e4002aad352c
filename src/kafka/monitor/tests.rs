use rdkafka::statistics::{ConsumerGroup, ExactlyOnceSemantics};

use super::*;

const LIMIT: Duration = Duration::from_millis(100);

fn broker(state: &str) -> Broker {
    Broker {
        state: state.to_owned(),
        rxidle: 1_000,
        ..Broker::default()
    }
}

fn statistics(brokers: impl IntoIterator<Item = Broker>) -> Statistics {
    let brokers = brokers.into_iter().enumerate();
    Statistics {
        brokers: brokers
            .map(|(number, broker)| (number.to_string(), broker))
            .collect(),
        ..Statistics::default()
    }
}

fn of_member(join_state: &str, state: &str) -> Statistics {
    let group = ConsumerGroup {
        state: state.to_owned(),
        join_state: join_state.to_owned(),
        ..ConsumerGroup::default()
    };
    Statistics {
        cgrp: Some(group),
        ..statistics([broker("UP")])
    }
}

#[test]
fn a_client_that_loses_its_broker_fails_the_check_after_the_limit_and_passes_it_again() {
    let monitor = ConnectionMonitor::default();
    assert!(monitor.check(LIMIT).is_err(), "nobody has a broker yet");
    let client = monitor.client("producer", false);
    assert!(monitor.check(LIMIT).unwrap_err().contains("no broker yet"));
    client.statistics(&statistics([broker("UP")]));
    monitor.check(LIMIT).unwrap();

    client.log(
        RDKafkaLogLevel::Error,
        "FAIL",
        "127.0.0.1:9092: Connection refused",
    );
    client.statistics(&statistics([broker("DOWN")]));
    monitor.check(LIMIT).unwrap();
    std::thread::sleep(LIMIT);

    let problem = monitor.check(LIMIT).unwrap_err();
    assert!(
        problem.contains("producer") && problem.contains("Connection refused"),
        "{problem}"
    );
    client.statistics(&statistics([broker("UP")]));
    monitor.check(LIMIT).unwrap();
}

#[test]
fn one_broker_of_two_is_enough_and_an_idle_connection_that_closed_is_no_outage() {
    let monitor = ConnectionMonitor::default();
    let client = monitor.client("producer", false);

    client.statistics(&statistics([broker("DOWN"), broker("UP")]));
    client.statistics(&statistics([broker("INIT")])); // closed, and nothing to connect for

    assert!(monitor.state().outage.is_none());
    monitor.check(Duration::ZERO).unwrap();
}

#[test]
fn a_broker_that_owes_an_answer_for_long_is_not_in_reach_but_a_coordinator_may_take_its_time() {
    let mute = Broker {
        waitresp_cnt: 1,
        rxidle: 60_000_000,
        ..broker("UP")
    };
    let coordinator = Broker {
        source: "logical".to_owned(),
        ..mute.clone()
    };
    let idle = Broker {
        waitresp_cnt: 0,
        ..mute.clone()
    };

    assert!(!is_in_reach(&mute));
    assert!(is_in_reach(&coordinator));
    assert!(is_in_reach(&idle));
}

#[test]
fn a_member_passes_when_the_group_has_given_it_its_share_and_fails_without_a_coordinator() {
    let monitor = ConnectionMonitor::default();
    let client = monitor.client("consumer", true);

    client.statistics(&of_member("wait-sync", "up"));
    assert!(
        monitor
            .check(LIMIT)
            .unwrap_err()
            .contains("waits for its partitions")
    );
    client.statistics(&of_member("steady", "up"));
    monitor.check(LIMIT).unwrap();
    client.statistics(&of_member("wait-join", "up")); // the group shares out anew
    monitor.check(Duration::ZERO).unwrap();

    client.statistics(&of_member("init", "wait-coord"));
    assert!(monitor.check(Duration::ZERO).unwrap_err().contains("coordinator"));
}

#[test]
fn a_producer_that_failed_for_good_passes_only_when_the_next_one_has_its_id() {
    let monitor = ConnectionMonitor::default();
    let client = monitor.client("producer", false);
    let with_id = |state: &str| {
        let eos = ExactlyOnceSemantics {
            idemp_state: state.to_owned(),
            ..ExactlyOnceSemantics::default()
        };
        Statistics {
            eos: Some(eos),
            ..statistics([broker("UP")])
        }
    };
    client.statistics(&with_id("WaitPID"));
    assert!(monitor.check(Duration::ZERO).is_err());
    client.statistics(&with_id("Assigned"));
    client.statistics(&with_id("DrainBump"));
    monitor.check(Duration::ZERO).unwrap();

    client.fatal("fenced");
    client.statistics(&with_id("FatalError"));
    assert!(monitor.check(Duration::ZERO).unwrap_err().contains("fenced"));
    client.statistics(&with_id("WaitPID"));
    assert!(monitor.check(Duration::ZERO).is_err());

    client.statistics(&with_id("Assigned"));
    monitor.check(Duration::ZERO).unwrap();
}

#[test]
fn an_outage_is_one_for_all_clients_and_counts_what_they_complain_of() {
    let (monitor, _reports) = ConnectionMonitor::new();
    let clients = ["one", "two"].map(|name| monitor.client(name, false));
    for client in &clients {
        client.statistics(&statistics([broker("UP")]));
        client.log(RDKafkaLogLevel::Error, "FAIL", "gone");
        client.statistics(&statistics([broker("TRY_CONNECT")]));
    }
    for _ in 0..100 {
        clients[0].complain("send", "no acknowledgement");
        clients[1].log(RDKafkaLogLevel::Warning, "SESSTMOUT", "no coordinator");
    }

    assert_eq!(monitor.state().outage.as_ref().unwrap().errors, 1 + 1 + 200);
    assert!(
        monitor.state().complaints.is_empty(),
        "nothing was said but the outage"
    );
    clients[0].statistics(&statistics([broker("UP")]));
    assert!(
        monitor.state().outage.is_some(),
        "the other one has no broker yet"
    );
    clients[1].statistics(&statistics([broker("UP")]));
    assert!(monitor.state().outage.is_none());
}

#[test]
fn a_topic_that_refuses_records_fails_the_check_until_it_takes_one() {
    let monitor = ConnectionMonitor::default();
    let client = monitor.client("producer", false);
    client.statistics(&statistics([broker("UP")]));

    client.topic_refused("results", "not authorized");
    assert!(
        monitor
            .check(Duration::ZERO)
            .unwrap_err()
            .contains("not authorized")
    );
    client.topic_written("results");

    monitor.check(Duration::ZERO).unwrap();
}
