#!/usr/bin/env python3
"""Speed of greedy generation beside the transformers library: the same weights, the same prompt, the same machine, in turn.

Needs torch, transformers 5; the example first: cargo build --release --example llm

  generate.py PROGRAM FOLDER [--shape t5-base] [--prompt 100] [--tokens 64] [--batch 1 8] [--precision f32 bf16 int8]
              [--threads 2] [--rounds 7] [--device cuda:0]

PROGRAM is target/release/examples/llm. FOLDER holds a language model, or is made with random weights of --shape. Each round is one
generation by the program in each precision and one by the reference in f32 and in bf16. Printed per batch: the medians, the ratio
reference / program of the medians, the quartiles of the rounds' ratios, tokens per second, the share of the reference's f32 tokens that
the program's answer repeats before the first difference, and the CPU's capability, without which a ratio says nothing. On a busy machine
the ratio of processor time says more than the clock's.
"""

import argparse
import os
import pathlib
import statistics
import subprocess
import sys
import time

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("GOMP_SPINCOUNT", "0")

import torch
from transformers import (AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, T5Config,
                          T5ForConditionalGeneration)

SHAPES = {
    "t5-base": dict(vocab_size=32128, d_model=768, d_kv=64, d_ff=2048, num_layers=12, num_heads=12),
    "flan-t5-xl": dict(vocab_size=32128, d_model=2048, d_kv=64, d_ff=5120, num_layers=24, num_heads=32),
    "t5-small": dict(vocab_size=32128, d_model=512, d_kv=64, d_ff=1024, num_layers=8, num_heads=6),
}


def make(shape, folder):
    """Random weights: speed does not depend on them."""
    torch.manual_seed(1)
    config = T5Config(**SHAPES[shape], feed_forward_proj="gated-gelu", tie_word_embeddings=False,
                      decoder_start_token_id=0)
    T5ForConditionalGeneration(config).save_pretrained(folder)


class Program:
    """Our side, kept alive between the rounds."""

    def __init__(self, program, folder, ids, batch, threads, tokens, precision, device):
        words = [program, "speed", folder, ",".join(map(str, ids)), batch, threads, tokens, precision, device]
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        self.process = subprocess.Popen([str(word) for word in words], text=True, stdin=subprocess.PIPE,
                                        stdout=subprocess.PIPE, env=environment)
        self.capability = self.process.stdout.readline().strip()

    def run(self):
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        seconds, busy, ids = self.process.stdout.readline().split()
        return float(seconds), float(busy), [int(number) for number in ids.split(",")]

    def end(self):
        self.process.stdin.close()
        if self.process.wait() != 0:
            sys.exit("the program failed")


class Reference:
    """The transformers library, with its own cache."""

    def __init__(self, folder, ids, batch, tokens, dtype, device):
        seq2seq = AutoConfig.from_pretrained(folder).is_encoder_decoder
        family = AutoModelForSeq2SeqLM if seq2seq else AutoModelForCausalLM
        self.model = family.from_pretrained(folder, dtype=dtype).eval().to(device)
        self.model.generation_config.eos_token_id = None   # no answer ends by itself
        self.prompt = torch.tensor([ids] * batch, device=device)
        self.tokens, self.skip = tokens, 1 if seq2seq else len(ids)

    def run(self):
        start, busy = time.perf_counter(), time.process_time()
        with torch.inference_mode():
            answer = self.model.generate(self.prompt, attention_mask=torch.ones_like(self.prompt), do_sample=False,
                                         max_new_tokens=self.tokens, min_new_tokens=self.tokens, pad_token_id=0)
        seconds, busy = time.perf_counter() - start, time.process_time() - busy
        return seconds, busy, answer[0, self.skip:].tolist()


def agreement(found, expected):
    """Share of `expected` before the first difference."""
    same = 0
    for one, other in zip(found, expected):
        if one != other:
            break
        same += 1
    return same / len(expected)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("program")
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--shape", default="t5-base", choices=SHAPES)
    parser.add_argument("--prompt", type=int, default=100)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--precision", nargs="+", default=["f32", "bf16", "int8"])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()

    if not (arguments.folder / "config.json").is_file():
        make(arguments.shape, arguments.folder)
    torch.set_num_threads(arguments.threads)
    ids = list(range(1000, 1000 + arguments.prompt))
    for batch in arguments.batch:
        common = (arguments.folder, ids, batch)
        theirs = {"f32": Reference(*common, arguments.tokens, torch.float32, arguments.device),
                  "bf16": Reference(*common, arguments.tokens, torch.bfloat16, arguments.device)}
        ours = {precision: Program(arguments.program, *common, arguments.threads, arguments.tokens, precision,
                                   arguments.device)
                for precision in arguments.precision}
        sides = {**{("transformers", name): side for name, side in theirs.items()},
                 **{("program", name): side for name, side in ours.items()}}
        runs = {name: [] for name in sides}
        for turn in range(arguments.rounds + 1):
            for name, side in sides.items():
                result = side.run()
                if turn > 0:   # the first one warms up
                    runs[name].append(result)
        capability = next(iter(ours.values())).capability
        for side in ours.values():
            side.end()
        base = runs["transformers", "f32"]
        print(f"{arguments.folder.name}, prompt {arguments.prompt}, {arguments.tokens} tokens x {batch}, "
              f"{arguments.threads} threads, {capability}, {arguments.device}, {arguments.rounds} rounds")
        for (who, precision), found in runs.items():
            seconds, busy = (statistics.median(run[side] for run in found) for side in (0, 1))
            line = (f"  {who:12} {precision:4} {seconds:7.3f} s, {batch * arguments.tokens / seconds:6.1f} tokens/s, "
                    f"processor {busy:6.2f} s")
            for against in ("f32", "bf16") if who == "program" else ():
                other = runs["transformers", against]
                ratios = [theirs[0] / ours[0] for theirs, ours in zip(other, found)]
                low, _, high = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else ratios * 3
                line += f"; {statistics.median(ratios):.2f} x transformers {against} ({low:.2f} to {high:.2f})"
            line += f"; agrees {agreement(found[0][2], base[0][2]):.0%}"
            print(line, flush=True)


if __name__ == "__main__":
    main()
