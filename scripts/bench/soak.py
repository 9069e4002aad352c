#!/usr/bin/env python3
"""Whether a service stays as it is under load: `serve` with its own broker, `bench serve` at a share of what it can do.

  cargo build --release -p speechverse-pipelines
  soak.py [--program target/release/speechverse] [--config configs/demo.toml] [--references tests/fixtures/speech/transcripts.jsonl]
          [--minutes 30] [--load 0.8] [--every 15]

Every so many seconds: resident memory, open files and threads of the process; from its metrics the seconds of audio in flight
and in queues, slots in use, and requests less answers and dead letters. Printed: the median of each in six equal parts of the
time, and a line fitted to the memory of the last two thirds (the first third fills caches and allocators). Exit status 1 where
memory grows by more than 2 % in those two thirds, open files differ by more than 2, or audio in flight grows.

Old records of the embedded broker go when a topic is full, which takes hours at this load; so its topics are limited to 32 MB
and are full soon.
"""

import argparse
import os
import pathlib
import re
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request

GAUGES = ("speechverse_audio_in_flight_seconds", "speechverse_queue_audio_seconds", "speechverse_decoder_slots_used")


def process(pid):
    status = pathlib.Path(f"/proc/{pid}/status").read_text()
    number = lambda name: int(re.search(rf"^{name}:\s+(\d+)", status, re.M)[1])
    return {"memory MB": number("VmRSS") / 1024, "threads": number("Threads"), "files": len(os.listdir(f"/proc/{pid}/fd"))}


def metrics(http):
    text = urllib.request.urlopen(f"{http}/metrics", timeout=30).read().decode()
    total = lambda name: sum(float(value) for value in re.findall(rf"^{name}(?:{{[^}}]*}})? (\S+)$", text, re.M))
    open_requests = total("speechverse_requests_total") - total("speechverse_answers_total") - total("speechverse_dead_letters_total")
    return {**{name.removeprefix("speechverse_"): total(name) for name in GAUGES}, "requests open": open_requests}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--program", default="target/release/speechverse")
    parser.add_argument("--config", default="configs/demo.toml")
    parser.add_argument("--references", default="tests/fixtures/speech/transcripts.jsonl")
    parser.add_argument("--minutes", type=float, default=30), parser.add_argument("--load", type=float, default=0.8)
    parser.add_argument("--every", type=float, default=15)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        own = {"SPEECHVERSE__STORE__DIR": f"{scratch}/store", "SPEECHVERSE__ADAPTERS__DIR": f"{scratch}/adapters",
               "SPEECHVERSE__BROKER__BYTES_PER_TOPIC_MAX": str(32 << 20),
               "SPEECHVERSE__ENCODER__CACHE_BYTES_MAX": "0", "SPEECHVERSE__HTTP__LISTEN": "127.0.0.1:0"}
        log = open(f"{scratch}/log", "w")
        serve = subprocess.Popen([args.program, "serve", "--config", args.config, "--embedded-broker"], stdout=subprocess.PIPE,
                                 stderr=log, text=True, env={**os.environ, **own})
        try:
            ready = next((line for line in serve.stdout if line.startswith("ready ")), "")
            found = dict(part.split("=", 1) for part in ready.split()[1:])
            if not found:
                sys.exit(f"`serve` did not start:\n{pathlib.Path(log.name).read_text()}")
            bench = subprocess.Popen(
                [args.program, "bench", "serve", "--config", args.config, "--bootstrap", found["bootstrap"],
                 "--http", found["http"].removeprefix("http://"), "--process", str(serve.pid), "--references", args.references,
                 "--unloaded", "16", "--saturation", "96", "--loads", str(args.load), "--seconds", str(args.minutes * 60)],
                stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
            time.sleep(30)  # one at a time, and all at once
            samples = []
            while bench.poll() is None:
                samples.append({"minutes": time.monotonic() / 60, **process(serve.pid), **metrics(found["http"])})
                try:
                    bench.wait(args.every)
                except subprocess.TimeoutExpired:
                    pass
            print(bench.stdout.read())
        finally:
            serve.terminate(), serve.wait(60)
    report(samples)


def report(samples):
    names = [name for name in samples[0] if name != "minutes"]
    size = max(1, len(samples) // 6)
    parts = [samples[at:at + size] for at in range(0, size * 6, size) if samples[at:at + size]]
    print("| part | " + " | ".join(names) + " |\n|" + "---|" * (1 + len(names)))
    for number, part in enumerate(parts, 1):
        print(f"| {number} | " + " | ".join(f"{statistics.median(sample[name] for sample in part):.1f}" for name in names) + " |")
    late = samples[len(samples) // 3:]
    slope, _ = statistics.linear_regression([sample["minutes"] for sample in late], [sample["memory MB"] for sample in late])
    grown = slope * (late[-1]["minutes"] - late[0]["minutes"]) / late[0]["memory MB"]
    files = [statistics.median(sample["files"] for sample in part) for part in parts]
    in_flight = [statistics.mean(sample["audio_in_flight_seconds"] for sample in part) for part in parts]
    print(f"memory over the last two thirds: {slope * 60:+.1f} MB an hour, {grown:+.2%}; open files {min(files):.0f} to {max(files):.0f}; "
          f"audio in flight {min(in_flight):.1f} to {max(in_flight):.1f} s ({len(samples)} samples)")
    growing = in_flight[-1] > 3 * max(1.0, statistics.median(in_flight))
    sys.exit(grown > 0.02 or max(files[2:]) - min(files[2:]) > 2 or growing)


if __name__ == "__main__":
    main()
