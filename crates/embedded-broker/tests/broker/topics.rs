//! Topics: made, described, refused, deleted.

use anyhow::{Context, Result, ensure};
use rdkafka::admin::{AdminOptions, NewTopic, ResourceSpecifier, TopicReplication};
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::types::RDKafkaErrorCode;

use crate::support::{STEP, Target, blocking, unique, write};

pub(crate) async fn created_described_deleted(target: Target) -> Result<()> {
    let settings = [("retention.ms", "60000"), ("max.message.bytes", "10485760")];
    let topic = target.topic_with("admin", 3, &settings).await?;
    let admin = target.admin()?;

    let described = admin
        .describe_configs([&ResourceSpecifier::Topic(&topic)], &AdminOptions::new())
        .await?;
    let described = described.into_iter().next().context("one answer per topic")??;
    let deleted = admin.delete_topics(&[&topic], &AdminOptions::new()).await?;
    let deleted_again = admin.delete_topics(&[&topic], &AdminOptions::new()).await?;

    for (key, value) in settings {
        let entry = described
            .get(key)
            .with_context(|| format!("{key} is described"))?;
        ensure!(
            entry.value.as_deref() == Some(value),
            "{key} is {:?}",
            entry.value
        );
    }
    ensure!(deleted == [Ok(topic.clone())], "{deleted:?}");
    ensure!(
        deleted_again == [Err((topic, RDKafkaErrorCode::UnknownTopicOrPartition))],
        "{deleted_again:?}"
    );
    Ok(())
}

pub(crate) async fn made_by_writing(target: Target) -> Result<()> {
    const PARTITIONS_BY_DEFAULT: usize = 4;
    let topic = unique("auto");
    let producer = target.producer()?;

    let offset = write(&producer, &topic, 0, "first").await?;

    let client: BaseConsumer = target.client().create()?;
    let name = topic.clone();
    let partitions = blocking(move || {
        client
            .fetch_metadata(Some(&name), STEP)
            .map(|metadata| metadata.topics()[0].partitions().len())
    })
    .await?;
    ensure!(
        offset == 0 && partitions == PARTITIONS_BY_DEFAULT,
        "offset {offset}, {partitions} partitions"
    );
    Ok(())
}

pub(crate) async fn refused(target: Target) -> Result<()> {
    let topic = target.topic("twice", 1).await?;
    let admin = target.admin()?;
    let create = async |name: &str, partitions: i32, setting: Option<(&str, &str)>| -> Result<_> {
        let mut topic = NewTopic::new(name, partitions, TopicReplication::Fixed(1));
        if let Some((key, value)) = setting {
            topic = topic.set(key, value);
        }
        let results = admin.create_topics([&topic], &AdminOptions::new()).await?;
        Ok(results
            .into_iter()
            .next()
            .context("one answer per topic")?
            .map_err(|(_, error)| error))
    };

    let again = create(&topic, 1, None).await?;
    let bad_name = create("no spaces, please", 1, None).await?;
    let bad_setting = create(&unique("setting"), 1, Some(("retention.hours", "1"))).await?;
    let bad_number = create(&unique("setting"), 1, Some(("retention.ms", "an hour"))).await?;

    ensure!(again == Err(RDKafkaErrorCode::TopicAlreadyExists), "{again:?}");
    ensure!(bad_name == Err(RDKafkaErrorCode::InvalidTopic), "{bad_name:?}");
    ensure!(
        bad_setting == Err(RDKafkaErrorCode::InvalidConfig),
        "{bad_setting:?}"
    );
    ensure!(
        bad_number == Err(RDKafkaErrorCode::InvalidConfig),
        "{bad_number:?}"
    );
    Ok(())
}
