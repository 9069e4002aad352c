"""Round trip of the confluent-kafka client: topics, headers, groups, transactions.

Usage: confluent_roundtrip.py BOOTSTRAP. Prints one JSON line on success; exits 1 with a reason otherwise.
"""

import json
import sys
import time
import uuid

from confluent_kafka import Consumer, KafkaError, KafkaException, Producer, TopicPartition, libversion
from confluent_kafka.admin import AdminClient, NewTopic

PATIENCE_S = 20


def consume(consumer, count):
    """Polls until so many records came, or time is up."""
    records, deadline = [], time.monotonic() + PATIENCE_S
    while len(records) < count and time.monotonic() < deadline:
        message = consumer.poll(0.1)
        if message is None:
            continue
        if message.error():
            if message.error().code() == KafkaError._PARTITION_EOF:
                continue
            raise KafkaException(message.error())
        records.append(message)
    return records


def main(bootstrap):
    name = f"python-{uuid.uuid4()}"
    common = {"bootstrap.servers": bootstrap, "broker.address.family": "v4"}

    admin = AdminClient(common)
    for future in admin.create_topics([NewTopic(name, 2, 1)]).values():
        future.result(PATIENCE_S)
    # Apache Kafka answers before its metadata tell of the topic.
    partitions, deadline = 0, time.monotonic() + PATIENCE_S
    while partitions == 0 and time.monotonic() < deadline:
        partitions = len(admin.list_topics(name, timeout=PATIENCE_S).topics[name].partitions)
    assert partitions == 2, f"{partitions} partitions instead of 2"

    producer = Producer(common | {"compression.type": "zstd", "enable.idempotence": True, "linger.ms": 5})
    failures = []
    sent = {}
    for number in range(100):
        key, value = f"key {number}".encode(), bytes([number]) * 3_000
        sent[key] = value
        producer.produce(
            name, key=key, value=value, headers=[("number", str(number)), ("empty", None)],
            on_delivery=lambda error, _: error and failures.append(str(error)),
        )
    assert producer.flush(PATIENCE_S) == 0 and not failures, failures

    consumer = Consumer(common | {
        "group.id": name, "auto.offset.reset": "earliest", "enable.auto.commit": False,
        "isolation.level": "read_committed", "partition.assignment.strategy": "cooperative-sticky",
    })
    consumer.subscribe([name])
    received = consume(consumer, 100)
    got = {message.key(): message.value() for message in received}
    assert got == sent, f"{len(got)} of {len(sent)} records came back"
    for message in received:
        number = message.key().decode().split()[1]
        assert message.headers() == [("number", number.encode()), ("empty", None)], message.headers()

    transactional = Producer(common | {"transactional.id": name})
    transactional.init_transactions(PATIENCE_S)
    for commit in (False, True):
        transactional.begin_transaction()
        transactional.produce(name, value=b"committed" if commit else b"aborted", partition=0)
        if commit:
            positions = consumer.position(consumer.assignment())
            transactional.send_offsets_to_transaction(positions, consumer.consumer_group_metadata(), PATIENCE_S)
            transactional.commit_transaction(PATIENCE_S)
        else:
            transactional.abort_transaction(PATIENCE_S)
    values = [message.value() for message in consume(consumer, 1)]
    assert values == [b"committed"], values
    offsets = consumer.committed([TopicPartition(name, 0), TopicPartition(name, 1)], PATIENCE_S)
    committed = sum(offset.offset for offset in offsets)
    assert committed == 100, f"offsets {[offset.offset for offset in offsets]} instead of a sum of 100"
    consumer.close()

    for future in admin.delete_topics([name]).values():
        future.result(PATIENCE_S)
    print(json.dumps({"records": len(received), "librdkafka": libversion()[0]}))


if __name__ == "__main__":
    try:
        main(sys.argv[1])
    except (AssertionError, KafkaException) as error:
        sys.exit(f"confluent-kafka round trip failed: {error}")
