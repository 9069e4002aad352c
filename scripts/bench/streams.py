#!/usr/bin/env python3
"""Measures streams of a running pipeline, as a client in Python sees them.

  speechverse serve --config configs/demo.toml --embedded-broker &
  streams.py latency  MANIFEST [--clips 40] [--streams 1] [--alone] [--model models/silero-vad]
  streams.py capacity MANIFEST [--clips 8] [--most 16]
  streams.py long     MANIFEST [--minutes 60] [--pause 0.5] [--as-file wav|opus]

`latency` speaks clips in real time, in chunks of 100 ms, with half a second of silence before and a second behind, and
asks for partial answers: time from the begin of speech (by Silero VAD, on the clip alone) to the first partial answer,
from its end to the settled answer and to the final one (whose last chunk comes a second after the speech), time between
partial answers, confirmed words that a later text of the same segment takes back, and confirmed words that the settled
answer has otherwise; word error rate of the streams' answers, and with `--alone` of the same clips as one request each. `capacity` speaks more and more streams at once, until the settled answers of a tenth come later than 2 s.
`long` joins clips to one recording, sends it as a stream as fast as it is taken (or as one file), and compares its word
error rate with that of the same clips one by one. WER is over lower-case words without punctuation.

Needs confluent-kafka, librosa, soundfile, numpy, jiwer; `latency` and `capacity` also torch and safetensors.
"""

import argparse
import io
import json
import pathlib
import re
import threading
import time
import uuid

import jiwer
import librosa
import numpy as np
import soundfile
from confluent_kafka import Consumer, Producer

RATE, CHUNK = 16000, 1600
L16 = "audio/L16;rate=16000;channels=1"


def rows(manifest, clips):
    folder = pathlib.Path(manifest).parent
    for line in list(open(manifest, encoding="utf-8"))[:clips]:
        row = json.loads(line)
        samples = librosa.load(folder / row["audio_filepath"], sr=RATE, mono=True)[0]
        yield samples, row.get("text") or row.get("target", "")


def plain(text):
    return " ".join(re.sub(r"[^\w' ]+", " ", text.lower()).split())


def pcm(samples):
    return (np.clip(samples, -1, 1) * 32767).astype(">i2").tobytes()


class Client:
    """Sends requests and notes when answers come."""

    def __init__(self, args):
        self.topics = (args.requests, args.results, args.dead_letters)
        self.producer = Producer({"bootstrap.servers": args.bootstrap, "linger.ms": 0, "message.max.bytes": 16000000})
        self.consumer = Consumer({"bootstrap.servers": args.bootstrap, "group.id": str(uuid.uuid4()),
                                  "auto.offset.reset": "latest", "fetch.wait.max.ms": 10})
        ready = threading.Event()
        self.consumer.subscribe(list(self.topics[1:]), on_assign=lambda *_: ready.set())
        self.answers, self.lock = {}, threading.Condition()
        self.ended = False
        threading.Thread(target=self.read, daemon=True).start()
        if not ready.wait(60):
            raise SystemExit(f"no partitions of {args.results}: is the pipeline running at {args.bootstrap}?")
        time.sleep(1)

    def read(self):
        while not self.ended:
            record = self.consumer.poll(0.2)
            if record is None or record.error():
                continue
            now = time.monotonic()
            headers = dict(record.headers() or [])
            if record.topic() == self.topics[2]:
                name = headers.get("ce_id", b"").decode()
                answer = {"kind": "dead letter", "text": headers.get("__connect.errors.exception.message", b"").decode()}
            else:
                answer = json.loads(record.value())
                name = answer["request_id"]
            with self.lock:
                self.answers.setdefault(name, []).append((now, answer))
                self.lock.notify_all()

    def send(self, name, value, headers):
        headers = {"ce_id": name, "ce_task": "asr", "content-type": L16, **headers}
        while True:
            try:
                self.producer.produce(self.topics[0], value, key=name, headers=headers)
                return self.producer.poll(0)
            except BufferError:
                self.producer.poll(0.05)

    def final(self, name, limit):
        is_final = lambda: any(answer["kind"] != "partial" for _, answer in self.answers.get(name, []))
        with self.lock:
            if not self.lock.wait_for(is_final, limit):
                raise SystemExit(f"{name}: no answer within {limit} s")
            return list(self.answers[name])

    def speak(self, samples, real_time=True, **headers):
        """A stream; the times at which its first sample and its last chunk were sent, and its answers."""
        name = str(uuid.uuid4())
        value, size = pcm(samples), CHUNK * 2
        count = -(-len(value) // size)
        begin = time.monotonic()
        for number in range(count):
            if real_time:
                time.sleep(max(0.0, begin + (number + 1) * CHUNK / RATE - time.monotonic()))
            part = value[number * size:(number + 1) * size]
            place = {"ce_type": "speechverse.chunk.v1", "ce_session": name, "ce_sequence": str(number),
                     "ce_final": str(number + 1 == count).lower()}
            self.send(name, part, {**place, **headers})
        sent = time.monotonic()
        self.producer.flush(60)
        return begin, sent, self.final(name, 120 + len(samples) / RATE)


def percentiles(name, values, unit="s"):
    if not values:
        return print(f"{name}: nothing measured")
    found = [np.percentile(values, at) for at in (50, 90, 95)]
    print(f"{name}: median {found[0]:.3f}, 90 % {found[1]:.3f}, 95 % {found[2]:.3f} {unit} ({len(values)})")


def spoken(args, manifest, clips):
    """Clips with silence around them, and where speech begins and ends, seconds."""
    from voice_detector import SPEECH_ABOVE, Silero
    silero = Silero(args.model)
    for samples, text in rows(manifest, clips):
        speech = np.flatnonzero(silero.probabilities(samples) >= SPEECH_ABOVE)
        if len(speech):
            silence = np.random.default_rng(7).normal(0, 1e-4, RATE * 3 // 2)
            samples = np.concatenate([silence[:RATE // 2], samples, silence[RATE // 2:]])
            yield samples, text, 0.5 + speech[0] * 0.032, 0.5 + (speech[-1] + 1) * 0.032


def measure(client, samples, text, starts, ends, found):
    begin, sent, answers = client.speak(samples, ce_partials="true")
    partials = [(at, answer) for at, answer in answers if answer["kind"] == "partial"]
    readings = [(at, answer) for at, answer in partials if not answer["segment"]["is_settled"]]
    settled = {answer["segment"]["number"]: (at, answer) for at, answer in partials if answer["segment"]["is_settled"]}
    final_at, final = next((at, answer) for at, answer in answers if answer["kind"] != "partial")
    if final["kind"] != "final":
        return found["failed"].append(final["text"])
    found["said"].append(plain(text)), found["answered"].append(plain(final["text"]) or "-")
    if partials:
        found["first"].append(partials[0][0] - begin - starts)
    last = max((at for at, _ in settled.values()), default=final_at)
    found["settled"].append(last - begin - ends)
    found["final"].append(final_at - sent)
    before = {}
    for (at, answer), (later, other) in zip(readings, readings[1:]):
        if answer["segment"]["number"] == other["segment"]["number"]:
            found["gaps"].append(later - at)
    for _, answer in readings:
        number, confirmed = answer["segment"]["number"], answer["segment"].get("confirmed", "").split()
        earlier = before.get(number, [])
        found["confirmed"] += max(0, len(confirmed) - len(earlier))
        found["retracted"] += sum(one != other for one, other in zip(earlier, confirmed + [None] * len(earlier)))
        before[number] = confirmed
    for number, confirmed in before.items():
        if number in settled and confirmed:
            # Where speech without a pause was cut, the words that were confirmed last are of the next segment.
            texts = [answer["text"] for later, (_, answer) in sorted(settled.items()) if later >= number]
            words = plain(" ".join(texts)).split()
            edits = jiwer.process_words(plain(" ".join(confirmed)), " ".join(words[:len(confirmed)]) or "-")
            found["changed"] += edits.substitutions + edits.deletions


def latency(args, client):
    found = {"first": [], "settled": [], "final": [], "gaps": [], "failed": [], "said": [], "answered": [],
             "confirmed": 0, "retracted": 0, "changed": 0}
    clips = list(spoken(args, args.manifest, args.clips))
    client.speak(clips[0][0], ce_partials="true")      # warm
    for at in range(0, len(clips), args.streams):
        speakers = [threading.Thread(target=measure, args=(client, *clip, found)) for clip in clips[at:at + args.streams]]
        for speaker in speakers:
            speaker.start()
        for speaker in speakers:
            speaker.join()
    percentiles("begin of speech to first partial answer", found["first"])
    percentiles("end of speech to settled answer", found["settled"])
    percentiles("last chunk to final answer", found["final"])
    percentiles("between partial answers of an utterance", found["gaps"])
    print(f"confirmed words {found['confirmed']}, taken back {found['retracted']}, otherwise in the settled answer {found['changed']}")
    print(f"failed: {len(found['failed'])} {found['failed'][:2]}")
    if found["said"]:
        print(f"WER {jiwer.wer(found['said'], found['answered']):.1%}")
    if args.alone:
        names = [str(uuid.uuid4()) for _ in clips]
        for name, clip in zip(names, clips):
            client.send(name, pcm(clip[0]), {})
        client.producer.flush(60)
        texts = [plain(client.final(name, 600)[-1][1]["text"]) or "-" for name in names]
        print(f"WER as one request each {jiwer.wer([plain(clip[1]) for clip in clips], texts):.1%}")
    return found


def capacity(args, client):
    streams = 1
    while streams <= args.most:
        args.streams, args.clips = streams, max(args.clips, streams)
        print(f"== {streams} streams at once", flush=True)
        found = latency(args, client)
        if not found["settled"] or np.percentile(found["settled"], 90) > 2.0:
            break
        streams *= 2


def long(args, client):
    clips, references, samples = [], [], []
    for clip, text in rows(args.manifest, None):
        clips.append(clip), references.append(plain(text))
        samples += [clip, np.random.default_rng(len(clips)).normal(0, 1e-4, int(args.pause * RATE))]
        if sum(map(len, samples)) >= args.minutes * 60 * RATE:
            break
    samples = np.concatenate(samples)
    seconds = len(samples) / RATE
    begin = time.monotonic()
    if args.as_file:
        name, file = str(uuid.uuid4()), io.BytesIO()
        if args.as_file == "wav":  # up to 8 minutes; an hour of Opus fits into a record
            soundfile.write(file, samples, RATE, format="WAV", subtype="PCM_16")
        else:
            soundfile.write(file, samples, RATE, format="OGG", subtype="OPUS", compression_level=0.9)
        print(f"a file of {len(file.getvalue()) / 1e6:.1f} MB", flush=True)
        client.send(name, file.getvalue(), {})
        client.producer.flush(60)
        answers = client.final(name, 600 + 4 * seconds)
    else:
        _, _, answers = client.speak(samples, real_time=False)
    whole = answers[-1][1]
    took = time.monotonic() - begin
    if whole["kind"] != "final":
        raise SystemExit(f"{whole['kind']}: {whole['text']}")
    names = []
    for clip in clips:
        names.append(str(uuid.uuid4()))
        client.send(names[-1], pcm(clip), {})
    client.producer.flush(60)
    texts = [plain(client.final(name, 600 + 4 * seconds)[-1][1]["text"]) for name in names]
    kept = [(one, other) for one, other in zip(references, texts) if one]
    alone = jiwer.wer([one for one, _ in kept], [other for _, other in kept])
    joined = jiwer.wer(" ".join(references), plain(whole["text"]) or "-")
    print(f"{seconds / 60:.1f} minutes, {len(clips)} clips, {len(' '.join(references).split())} words, answered in {took:.0f} s "
          f"({seconds / took:.1f} times real time), audio_seconds {whole['audio_seconds']:.1f}, flags {whole['flags']}")
    print(f"WER as one {joined:.1%}, clips one by one {alone:.1%}, difference {100 * (joined - alone):+.1f} points")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=["latency", "capacity", "long"]), parser.add_argument("manifest")
    for name, default in (("bootstrap", "127.0.0.1:9092"), ("requests", "speechverse.requests"),
                          ("results", "speechverse.results"), ("dead-letters", "speechverse.dead-letters"),
                          ("model", "models/silero-vad")):
        parser.add_argument(f"--{name}", default=default)
    parser.add_argument("--clips", type=int, default=40), parser.add_argument("--streams", type=int, default=1)
    parser.add_argument("--alone", action="store_true"), parser.add_argument("--most", type=int, default=16), parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--pause", type=float, default=0.5), parser.add_argument("--as-file", choices=["wav", "opus"])
    args = parser.parse_args()
    client = Client(args)
    {"latency": latency, "capacity": capacity, "long": long}[args.what](args, client)
    client.ended = True


if __name__ == "__main__":
    main()
