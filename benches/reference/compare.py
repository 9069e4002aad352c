#!/usr/bin/env python3
"""`speechverse serve` beside Python services, in turn: the same clips, the same machine, the same broker, the same load generator.

  benches/reference/compare.py [--program target/release/speechverse] [--python PYTHON] [--only NAME ...] [--out FILE]
                               [-- ARGUMENTS OF `speechverse bench serve`]

Needs Java 17 and Maven once (Apache Kafka, by scripts/kafka/start.sh), the demo's models, and for the services a Python with the
packages of benches/reference/requirements.txt. Prints Markdown: a table of all, and each one's own under it.
"""

import argparse
import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parents[2]
HERE = pathlib.Path(__file__).resolve().parent
CONFIG = ROOT / "configs/demo.toml"
REFERENCES = ["tests/fixtures/speech/transcripts.jsonl"]
SERVICES = {
    "transformers, one at a time": ["--model", "speech"],
    "transformers, batches of 8": ["--model", "speech", "--batch", "8"],
    "faster-whisper int8, greedy": ["--model", "faster-whisper"],
    "faster-whisper int8, 5 beams": ["--model", "faster-whisper", "--beams", "5"],
}
OURS = "speechverse serve"


class Process:
    """A service that says `ready` at the begin of a line."""

    def __init__(self, words, environment):
        self.process = subprocess.Popen([str(word) for word in words], env={**os.environ, **environment}, cwd=ROOT, text=True,
                                        stdout=subprocess.PIPE)
        self.ready = ""
        for line in self.process.stdout:
            if line.startswith("ready"):
                self.ready = line
                return
        sys.exit(f"{words[0]} ended before it was ready: {self.process.wait()}")

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()


def measure(arguments, name, bootstrap, process, http, folder):
    words = [arguments.program, "bench", "serve", "--config", CONFIG, "--bootstrap", bootstrap, "--json", "--name", name,
             "--process", process.process.pid]
    for reference in arguments.references or REFERENCES:
        words += ["--references", reference]
    words += ["--http", http] if http else []
    words += arguments.bench
    done = subprocess.run([str(word) for word in words], cwd=ROOT, text=True, stdout=subprocess.PIPE, check=True)
    return [json.loads(line) for line in done.stdout.splitlines()]


def run_ours(arguments, bootstrap, folder):
    environment = {"SPEECHVERSE__KAFKA__BOOTSTRAP": bootstrap, "SPEECHVERSE__HTTP__LISTEN": "127.0.0.1:0",
                   "SPEECHVERSE__STORE__DIR": f"{folder}/samples", "SPEECHVERSE__ADAPTERS__DIR": f"{folder}/adapters",
                   "SPEECHVERSE__ENCODER__CACHE_BYTES_MAX": "0",  # the clips repeat
                   "RUST_LOG": "warn", "OMP_WAIT_POLICY": "PASSIVE"}
    process = Process([arguments.program, "serve", "--config", CONFIG], environment)
    facts = dict(word.split("=", 1) for word in process.ready.split() if "=" in word)
    try:
        return measure(arguments, OURS, bootstrap, process, facts["http"].removeprefix("http://"), folder)
    finally:
        process.stop()


def run_service(arguments, name, bootstrap, folder):
    words = [arguments.python, HERE / "service.py", "--bootstrap", bootstrap, "--group", f"reference-{len(name)}",
             "--threads", os.cpu_count(), "--whisper", f"{folder}/whisper-ct2", *SERVICES[name]]
    process = Process(words, {})
    try:
        return measure(arguments, name, bootstrap, process, None, folder)
    finally:
        process.stop()


def convert_whisper(arguments, folder):
    """The same Whisper as the encoder is of, whole, for CTranslate2, with int8 weights."""
    converter = pathlib.Path(arguments.python).parent / "ct2-transformers-converter"
    subprocess.run([converter, "--model", ROOT / "models/whisper-base", "--output_dir", f"{folder}/whisper-ct2",
                    "--copy_files", "tokenizer.json", "preprocessor_config.json", "--quantization", "int8"], check=True,
                   stdout=subprocess.DEVNULL)


def figure(row, key, digits=2, scale=1.0):
    value = row and row[key]
    return "–" if value is None else f"{value * scale:.{digits}f}"


def table(results):
    at = lambda rows, load: next((row for row in rows if row["load"] == load), None)
    ours = at(results.get(OURS, []), "all at once")
    ratio = lambda row, key: f"{ours[key] / row[key]:.2f} ×" if ours and ours[key] and row[key] else "–"
    print("| service | answers/s, saturated | ours is | answers/processor s | ours is | p50 s, idle | p99 s at half load | MB | WER |")
    print("|---|---|---|---|---|---|---|---|---|")
    for name, rows in results.items():
        idle, full, half = at(rows, "one at a time"), at(rows, "all at once"), at(rows, "50 %")
        cells = [name, figure(full, "answered"), ratio(full, "answered"), figure(full, "answers_per_processor_second"),
                 ratio(full, "answers_per_processor_second"), figure(idle, "p50"), figure(half, "p99"),
                 figure(full, "resident_bytes", 0, 1e-6), figure(full, "wer", 1)]
        print(f"| {' | '.join(cells)} |")


def details(results):
    keys = ["load", "offered", "answered", "goodput", "p50", "p95", "p99", "audio_rate", "tokens_rate", "encoder_rows",
            "decoder_rows", "busy", "processors", "answers_per_processor_second", "wer"]
    for name, rows in results.items():
        print(f"\n### {name}\n\n| {' | '.join(keys)} |\n|{'---|' * len(keys)}")
        for row in rows:
            print("| " + " | ".join([row["load"], *(figure(row, key) for key in keys[1:])]) + " |")
        idle = rows[0]
        if idle["overhead_seconds"] is not None:
            share = idle["overhead_seconds"] / idle["network_seconds"]
            print(f"\nOverhead, idle: {idle['overhead_seconds'] * 1e3:.1f} ms a request, {share:.1%} of its network passes "
                  f"({idle['network_seconds'] * 1e3:.0f} ms); {figure(idle, 'choice_seconds', 1, 1e3)} ms of it choose tokens "
                  "(CTC prefix scores, sampling)")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--program", default=ROOT / "target/release/speechverse")
    parser.add_argument("--python", default=sys.executable)
    parser.add_argument("--only", nargs="+", choices=[OURS, *SERVICES])
    parser.add_argument("--references", action="append", help="manifest with asr rows; repeat for more")
    parser.add_argument("--port", type=int, default=29292, help="for Apache Kafka, and the one after it")
    parser.add_argument("--out", help="JSON lines of all figures")
    parser.add_argument("bench", nargs="*", help="arguments of `bench serve`, after --")
    arguments = parser.parse_args()
    names = arguments.only or [OURS, *SERVICES]
    started = subprocess.run([ROOT / "scripts/kafka/start.sh", str(arguments.port)], text=True, stdout=subprocess.PIPE)
    if started.returncode:
        sys.exit("Apache Kafka cannot be started here")
    bootstrap = started.stdout.split()[0]
    results = {}
    try:
        with tempfile.TemporaryDirectory() as folder:
            if any("faster-whisper" in name for name in names):
                convert_whisper(arguments, folder)
            for name in names:
                print(f"measuring {name}", file=sys.stderr, flush=True)
                run = run_ours if name == OURS else lambda *rest: run_service(rest[0], name, *rest[1:])
                results[name] = run(arguments, bootstrap, folder)
    finally:
        subprocess.run([ROOT / "scripts/kafka/stop.sh", str(arguments.port)])
    if arguments.out:
        lines = [json.dumps(row) for rows in results.values() for row in rows]
        pathlib.Path(arguments.out).write_text("\n".join(lines) + "\n")
    table(results)
    details(results)


if __name__ == "__main__":
    main()
