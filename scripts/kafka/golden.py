#!/usr/bin/env python3
"""Sends the golden requests through a running pipeline with confluent-kafka and checks what comes back.

    golden.py HOST:PORT [PREFIX]

Needs the Python package `confluent-kafka`. Topics are PREFIX (speechverse.) and requests, results or dead-letters. Exit code 0 when every request had the outcome that
docs/TOPICS.md promises: the key byte for byte, the id, the trace continued, a dead letter with the original bytes and headers.
"""

import base64
import hashlib
import json
import sys
import time
from pathlib import Path

from confluent_kafka import Consumer, Producer

FOLDER = Path(__file__).resolve().parents[2] / "tests/fixtures/messages"
WAIT_SECONDS = 120
REQUESTS = ["request_binary", "request_structured", "chunk", "request_not_audio"]


def content(given):
    if given is None:
        return None
    if "text" in given:
        return given["text"].encode()
    if "base64" in given:
        return base64.b64decode(given["base64"])
    return (FOLDER / given["file"]).read_bytes()


def golden(name):
    message = json.loads((FOLDER / f"{name}.json").read_text())
    headers = [(header, content(value)) for header, value in message["headers"]]
    return content(message["key"]), headers, content(message["value"])


def read_as(name):
    return json.loads((FOLDER / f"{name}.json").read_text())["reads_as"]


def header(headers, name):
    found = [value for known, value in headers or [] if known == name]
    return found[-1] if found else None


def main():
    prefix = sys.argv[2] if len(sys.argv) > 2 else "speechverse."
    requests, results, dead_letters = (prefix + name for name in ("requests", "results", "dead-letters"))
    consumer = Consumer({"bootstrap.servers": sys.argv[1], "group.id": f"golden-{time.time_ns()}", "auto.offset.reset": "latest"})
    assigned = []
    consumer.subscribe([results, dead_letters], on_assign=lambda _, partitions: assigned.extend(partitions))
    deadline = time.time() + WAIT_SECONDS
    while not assigned and time.time() < deadline:
        consumer.poll(0.1)
    for partition in assigned:  # from here on, not from when the first fetch happens to look
        partition.offset = consumer.get_watermark_offsets(partition)[1]
    consumer.assign(assigned)

    producer = Producer({"bootstrap.servers": sys.argv[1]})
    for name in REQUESTS:
        key, headers, value = golden(name)
        producer.produce(requests, value=value, key=key, headers=headers)
    producer.flush(30)

    wanted = {f"golden-{number}" for number in range(1, 5)}
    outcomes = {}
    while set(outcomes) < wanted and time.time() < deadline:
        message = consumer.poll(1.0)
        if message is None or message.error():
            continue
        subject = header(message.headers(), "ce_subject") or header(message.headers(), "ce_id")
        if subject and subject.decode() in wanted and b'"kind":"partial"' not in (message.value() or b""):
            outcomes[subject.decode()] = message
    assert set(outcomes) == wanted, f"no outcome of {sorted(wanted - set(outcomes))}"

    for name, number in zip(REQUESTS[:3], range(1, 4)):
        key, headers, _ = golden(name)
        message = outcomes[f"golden-{number}"]
        assert message.topic() == results, (name, message.topic(), message.headers())
        assert message.key() == key, (name, message.key())
        assert header(message.headers(), "ce_type") == b"speechverse.result.v1"
        source = read_as(name).get("source")  # it makes the answer's id another one
        digest = "@" + hashlib.sha256(source.encode()).hexdigest()[:16] if source else ""
        assert header(message.headers(), "ce_id") == f"golden-{number}:final{digest}".encode(), message.headers()
        assert header(message.headers(), "ce_subjectsource") == (source.encode() if source else None), message.headers()
        answer = json.loads(message.value())
        assert answer["request_id"] == f"golden-{number}" and answer["kind"] == "final", answer
        sent = header(headers, "traceparent")
        if sent:
            continued = header(message.headers(), "traceparent")
            assert continued.split(b"-")[1] == sent.split(b"-")[1] and continued != sent, continued
        print(f"{name}: {answer['text']!r}")
    key, headers, value = golden("request_not_audio")
    letter = outcomes["golden-4"]
    assert letter.topic() == dead_letters
    assert (letter.key(), letter.value()) == (key, value)
    assert letter.headers()[: len(headers)] == headers, letter.headers()
    assert header(letter.headers(), "speechverse_reason") == b"not_audio"
    assert header(letter.headers(), "speechverse_attempts") == b"1"
    print("request_not_audio: a dead letter, not_audio")


if __name__ == "__main__":
    main()
