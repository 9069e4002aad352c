#!/usr/bin/env python3
"""A speech service on Kafka, written as one would in an afternoon: reads requests, answers them, writes the answers.

  service.py --bootstrap HOST:PORT --model speech|faster-whisper [--batch 8] ...

It stands beside `speechverse serve` in `compare.py`. Records of the request topic are audio files; an answer is JSON with
`kind`, `request_id`, `text` and `tokens`. Prints `ready` when it has partitions and its model is warm.
"""

import argparse
import io
import json
import signal

import numpy
import soundfile
import soxr
from confluent_kafka import Consumer, Producer

RATE_HZ = 16_000


def samples(value):
    audio, rate = soundfile.read(io.BytesIO(value), dtype="float32", always_2d=True)
    audio = audio.mean(1)
    return audio if rate == RATE_HZ else soxr.resample(audio, rate, RATE_HZ)


def open_model(arguments):
    """A function from clips to texts and numbers of tokens."""
    if arguments.model == "speech":
        import torch

        from speech_model import SpeechModel
        torch.set_num_threads(arguments.threads)
        model = SpeechModel(arguments.encoder, arguments.llm, arguments.adapter, arguments.dtype)
        return model.transcribe
    from faster_whisper import WhisperModel
    model = WhisperModel(arguments.whisper, device="cpu", compute_type="int8", cpu_threads=arguments.threads)

    def transcribe(clips):
        answers = []
        for clip in clips:
            segments, _ = model.transcribe(clip, language="en", beam_size=arguments.beams)
            segments = list(segments)
            text = " ".join(segment.text.strip() for segment in segments)
            answers.append((text, sum(len(segment.tokens) for segment in segments)))
        return answers
    return transcribe


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bootstrap", required=True)
    parser.add_argument("--requests", default="speechverse.requests")
    parser.add_argument("--results", default="speechverse.results")
    parser.add_argument("--group", default="reference")
    parser.add_argument("--model", choices=["speech", "faster-whisper"], required=True)
    parser.add_argument("--batch", type=int, default=1, help="requests answered together, at most; 1: one at a time")
    parser.add_argument("--batch-wait", type=float, default=0.02, help="how long a batch waits for company, seconds")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--encoder", default="models/whisper-base")
    parser.add_argument("--llm", default="models/smollm2-135m-instruct")
    parser.add_argument("--adapter", default="configs/adapters/demo-0012")
    parser.add_argument("--dtype", default="bfloat16", help="of the frozen networks: float32, bfloat16")
    parser.add_argument("--whisper", help="folder of a CTranslate2 Whisper, for faster-whisper")
    parser.add_argument("--beams", type=int, default=1)
    arguments = parser.parse_args()

    transcribe = open_model(arguments)
    transcribe([numpy.zeros(RATE_HZ, dtype=numpy.float32)] * arguments.batch)
    consumer = Consumer({"bootstrap.servers": arguments.bootstrap, "group.id": arguments.group,
                         "auto.offset.reset": "latest", "enable.auto.commit": True, "fetch.wait.max.ms": 20})
    producer = Producer({"bootstrap.servers": arguments.bootstrap, "linger.ms": 0})
    ready = lambda consumer, partitions: print("ready", flush=True)
    consumer.subscribe([arguments.requests], on_assign=ready)
    stopped = []
    signal.signal(signal.SIGTERM, lambda *_: stopped.append(True))
    while not stopped:
        messages = consumer.consume(1, timeout=0.5)
        if messages and arguments.batch > 1:
            messages += consumer.consume(arguments.batch - 1, timeout=arguments.batch_wait)
        messages = [message for message in messages if not message.error()]
        if not messages:
            continue
        for message, (text, tokens) in zip(messages, transcribe([samples(message.value()) for message in messages])):
            headers = dict(message.headers() or [])
            answer = {"kind": "final", "request_id": headers["ce_id"].decode(), "text": text, "tokens": tokens}
            producer.produce(arguments.results, json.dumps(answer).encode(), message.key())
        producer.poll(0)
    producer.flush(10)
    consumer.close()


if __name__ == "__main__":
    main()
