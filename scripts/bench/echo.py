#!/usr/bin/env python3
"""What Kafka alone costs a request: round trips through a service that answers each record with itself.

  echo.py [--bootstrap 127.0.0.1:9092] [--count 300] [--bytes 100000] [--pause 0.2]

A client writes a record of so many bytes to one topic, the service reads it and writes one of 500 bytes to another, the client
reads that. One at a time, with a pause between. Printed: median and 95th percentile of the whole, of its way to the service and of
the way back, milliseconds. To be subtracted from the overhead of an idle service (`bench serve`), whose records go the same way.

Needs confluent-kafka. Makes two topics of its own.
"""

import argparse
import statistics
import threading
import time
import uuid

from confluent_kafka import Consumer, Producer
from confluent_kafka.admin import AdminClient, NewTopic


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bootstrap", default="127.0.0.1:9092"), parser.add_argument("--count", type=int, default=300)
    parser.add_argument("--bytes", type=int, default=100_000), parser.add_argument("--pause", type=float, default=0.2)
    args = parser.parse_args()
    client = {"bootstrap.servers": args.bootstrap, "socket.nagle.disable": True}
    there, back = (f"echo-{uuid.uuid4().hex[:8]}-{way}" for way in ("there", "back"))
    admin = AdminClient(client)
    for future in admin.create_topics([NewTopic(name, 1, 1) for name in (there, back)]).values():
        future.result()

    def reader(topic):
        consumer = Consumer(client | {"group.id": topic, "auto.offset.reset": "earliest", "enable.auto.commit": False})
        consumer.subscribe([topic])
        return consumer

    def writer():
        return Producer(client | {"linger.ms": 0, "acks": "all", "enable.idempotence": True})

    ended, arrived = threading.Event(), {}

    def serve():
        consumer, producer = reader(there), writer()
        while not ended.is_set():
            record = consumer.poll(0.2)
            if record is not None and not record.error():
                arrived[record.key()] = time.perf_counter()
                producer.produce(back, key=record.key(), value=bytes(500))
                producer.flush()
        consumer.close()

    service = threading.Thread(target=serve)
    service.start()
    consumer, producer, times = reader(back), writer(), []
    for number in range(args.count + 20):
        key = str(number).encode()
        begin = time.perf_counter()
        producer.produce(there, key=key, value=bytes(args.bytes))
        producer.flush()
        record = None
        while record is None or record.error() or record.key() != key:
            record = consumer.poll(30)
            assert record is not None, "no answer within 30 s"
        end = time.perf_counter()
        times.append((end - begin, arrived[key] - begin, end - arrived[key]))
        time.sleep(args.pause)
    ended.set()
    service.join()
    consumer.close()
    for name, column in zip(("whole", "to the service", "back"), zip(*times[20:])):
        spread = statistics.quantiles(column, n=20)
        print(f"{name}: {statistics.median(column) * 1e3:.2f} ms, 95 % within {spread[-1] * 1e3:.2f}")


if __name__ == "__main__":
    main()
