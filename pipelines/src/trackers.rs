//! The offset trackers of the three sources, and the sources themselves.

use std::collections::HashMap;

use anyhow::Context;
use speechverse::config::Settings;
use speechverse::kafka::config::{Delivery, KafkaConfig};
use speechverse::kafka::{Budget, ConnectionMonitor, OffsetTracker, Source, SourceConfig, SourceEvent};

/// Records of the label and control topics that may be in flight, bytes.
const SIDE_BUDGET_BYTES: u64 = 64 * 1024 * 1024;

/// One tracker a source: each is a group of its own, so that orders and labels never wait behind audio.
pub(crate) struct Trackers {
    pub(crate) requests: OffsetTracker,
    pub(crate) labels: OffsetTracker,
    pub(crate) control: OffsetTracker,
    monitor: ConnectionMonitor,
}

#[derive(Clone, Copy)]
pub(crate) enum Side {
    Requests,
    Labels,
    Control,
}

impl Trackers {
    pub(crate) fn new(settings: &Settings, monitor: ConnectionMonitor) -> Self {
        let audio_seconds_max = settings.admission.audio_seconds_max;
        let requests = Budget::with_audio(settings.kafka.in_flight_bytes_max, audio_seconds_max);
        Self {
            monitor,
            requests: match settings.kafka.delivery {
                Delivery::AtLeastOnce => OffsetTracker::new(requests),
                Delivery::ExactlyOnce => OffsetTracker::transactional(requests),
            },
            labels: OffsetTracker::new(Budget::new(SIDE_BUDGET_BYTES)),
            control: OffsetTracker::new(Budget::new(SIDE_BUDGET_BYTES)),
        }
    }

    pub(crate) fn by_topic(&self, kafka: &KafkaConfig) -> HashMap<String, OffsetTracker> {
        HashMap::from([
            (kafka.topics.requests.clone(), self.requests.clone()),
            (kafka.topics.labels.clone(), self.labels.clone()),
            (kafka.topics.control.clone(), self.control.clone()),
        ])
    }

    pub(crate) fn source(
        &self,
        kafka: &KafkaConfig,
        side: Side,
    ) -> anyhow::Result<(Source, flume::Receiver<SourceEvent>)> {
        let mut kafka = kafka.clone();
        let (topic, tracker) = match side {
            Side::Requests => (kafka.topics.requests.clone(), &self.requests),
            Side::Labels => {
                kafka.group_id.push_str("-labels");
                (kafka.topics.labels.clone(), &self.labels)
            }
            Side::Control => {
                kafka.group_id.push_str("-control");
                (kafka.topics.control.clone(), &self.control)
            }
        };
        let config = SourceConfig {
            kafka,
            topics: vec![topic],
            monitor: self.monitor.clone(),
        };
        Source::start(config, tracker.clone()).context("Kafka consumer")
    }
}
