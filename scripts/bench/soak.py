#!/usr/bin/env python3
"""Whether a service stays as it is under load: `serve` with its own broker, `bench serve` at a share of what it can do.

  cargo build --release -p speechverse-pipelines
  soak.py [--program target/release/speechverse] [--config configs/demo.toml] [--references tests/fixtures/speech/transcripts.jsonl]
          [--minutes 30] [--load 0.8] [--every 15]

Every so many seconds: resident memory, open files and threads of the process; from its metrics the seconds of audio in flight
and in queues, slots in use, and requests less answers and dead letters. Printed: the median of each in six equal parts of the
time, and lines fitted to memory and audio in flight over the last two thirds (the first third fills caches and allocators).
Exit status 1 where over these two thirds memory grows by more than 2 %, open files differ by more than 2, or audio in flight
grows by more than 30 s and by more than its spread. Needs some minutes at least.
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


def process_facts(pid):
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
        own = {"SPEECHVERSE__BROKER__ADDRESS": "127.0.0.1:0", "SPEECHVERSE__STORE__DIR": f"{scratch}/store", "SPEECHVERSE__ADAPTERS__DIR": f"{scratch}/adapters",
               "SPEECHVERSE__ENCODER__CACHE_BYTES_MAX": "0", "SPEECHVERSE__HTTP__LISTEN": "127.0.0.1:0"}
        log, bench = open(f"{scratch}/log", "w"), None
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
                stdout=subprocess.PIPE, text=True)
            samples = watch(bench, serve.pid, found["http"], args)
            print(bench.stdout.read())
            if bench.returncode != 0 or len(samples) < 12:
                sys.exit(f"`bench serve` ended with {bench.returncode} after {len(samples)} samples; it needs 12")
        finally:
            for process in (bench, serve):
                if process is not None and process.poll() is None:
                    process.terminate(), process.wait(60)
    report(samples)


def watch(bench, pid, http, args):
    """Samples of the load's own time: what comes before it, one at a time and all at once, is left out."""
    samples, began = [], time.monotonic()
    while bench.poll() is None:
        samples.append({"minutes": (time.monotonic() - began) / 60, **process_facts(pid), **metrics(http)})
        try:
            bench.wait(args.every)
        except subprocess.TimeoutExpired:
            pass
    ended = (time.monotonic() - began) / 60
    return [sample for sample in samples if sample["minutes"] > ended - args.minutes]


def report(samples):
    names = [name for name in samples[0] if name != "minutes"]
    count = len(samples)
    parts = [samples[count * at // 6:count * (at + 1) // 6] for at in range(6)]
    print("| part | " + " | ".join(names) + " |\n|" + "---|" * (1 + len(names)))
    for number, part in enumerate(parts, 1):
        print(f"| {number} | " + " | ".join(f"{statistics.median(sample[name] for sample in part):.1f}" for name in names) + " |")
    late = samples[count // 3:]
    minutes = [sample["minutes"] for sample in late]

    def growth(name):
        return statistics.linear_regression(minutes, [sample[name] for sample in late]).slope * (minutes[-1] - minutes[0])

    memory, audio = growth("memory MB"), growth("audio_in_flight_seconds")
    spread = statistics.stdev(sample["audio_in_flight_seconds"] for sample in late)
    files = [sample["files"] for sample in late]
    print(f"over the last two thirds, {minutes[-1] - minutes[0]:.1f} minutes ({len(late)} samples): memory {memory:+.1f} MB "
          f"({memory / late[0]['memory MB']:+.2%}); audio in flight {audio:+.1f} s, standard deviation {spread:.1f} s; "
          f"open files {min(files)} to {max(files)}")
    grows = memory > 0.02 * late[0]["memory MB"] or audio > max(30, spread)
    sys.exit(1 if grows or max(files) - min(files) > 2 else 0)


if __name__ == "__main__":
    main()
