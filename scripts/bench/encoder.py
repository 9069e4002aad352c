#!/usr/bin/env python3
"""Speed of the speech encoders beside the transformers library: the same weights, the same machine, in turn.

Needs torch, transformers 5, safetensors, numpy; the example first: cargo build --release --example encoder

  encoder.py PROGRAM FOLDER [--shape wavlm-base-plus] [--seconds 10] [--batch 1 8] [--threads 2] [--rounds 9] [--device cuda:0]

PROGRAM is target/release/examples/encoder. FOLDER holds a model, or is made with random weights of --shape (see
scripts/fixtures/wavlm.py). Each round is one pass of the program and one of the reference; printed are the medians, the ratio
reference / program of the medians, the quartiles of the rounds' ratios, and the CPU's capability, without which a ratio
says nothing. On a busy machine the ratio of processor time says more than the clock's. The reference gets its features (normalised samples, mel) outside the clock; the program makes its own.
"""

import argparse
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

import numpy as np
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoFeatureExtractor, AutoModel

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent / "fixtures"))


def reference(folder, clip, batch, device):
    """A function that runs the reference once, and the frames that count."""
    extractor = AutoFeatureExtractor.from_pretrained(folder)
    model = AutoModel.from_pretrained(folder, dtype=torch.float32).eval().to(device)
    inputs = extractor([clip] * batch, sampling_rate=16000, return_tensors="pt").to(device)
    if AutoConfig.from_pretrained(folder).model_type == "whisper":
        return lambda: model.encoder(inputs.input_features).last_hidden_state
    return lambda: model(inputs.input_values).last_hidden_state


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("program")
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--shape", default="wavlm-base-plus")
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", default="f32", choices=["f32", "bf16"], help="of the program")
    arguments = parser.parse_args()

    if not (arguments.folder / "config.json").is_file():
        from wavlm import make
        make(arguments.shape, 1, arguments.folder)
    torch.set_num_threads(arguments.threads)
    clip = (np.random.default_rng(1).standard_normal(int(arguments.seconds * 16000)) * 0.1).astype("<f4")
    for batch in arguments.batch:
        with tempfile.TemporaryDirectory() as scratch, torch.inference_mode():
            samples, out = pathlib.Path(scratch) / "clip.f32", pathlib.Path(scratch) / "out.safetensors"
            clip.tofile(samples)
            forward = reference(arguments.folder, clip, batch, arguments.device)
            expected = forward()[0].cpu()
            command = [arguments.program, arguments.folder, samples, batch, arguments.threads, out,
                       arguments.precision, arguments.device]
            program = subprocess.Popen([str(word) for word in command], text=True, stdin=subprocess.PIPE,
                                       stdout=subprocess.PIPE)
            capability = program.stdout.readline().strip()
            ours, theirs, busy = [], [], []
            for _ in range(arguments.rounds):
                program.stdin.write("\n")
                program.stdin.flush()
                seconds, our_busy = map(float, program.stdout.readline().split())
                ours.append(seconds)
                start, start_busy = time.perf_counter(), time.process_time()
                forward()
                if arguments.device != "cpu":
                    torch.cuda.synchronize()
                theirs.append(time.perf_counter() - start)
                busy.append((our_busy, time.process_time() - start_busy))
            program.stdin.close()
            assert program.wait() == 0
            error = (load_file(out)["features"] - expected).abs().max() / expected.abs().max()
        # cuDNN's convolutions round f32 to TF32 on a GPU
        exact = arguments.precision == "f32" and arguments.device == "cpu"
        assert error < (1e-3 if exact else 0.1), f"the two do not agree: {error:.1e}"
        ratios = sorted(their / our for our, their in zip(ours, theirs))
        quartiles = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else ratios * 3
        our_busy, their_busy = (statistics.median(side) for side in zip(*busy))
        print(f"{arguments.folder.name}, {arguments.seconds:g} s x {batch}, {arguments.threads} threads, {capability}, {arguments.device}, "
              f"program in {arguments.precision}: "
              f"program {statistics.median(ours):.3f} s, transformers {statistics.median(theirs):.3f} s, "
              f"ratio {statistics.median(theirs) / statistics.median(ours):.2f} "
              f"(quartiles {quartiles[0]:.2f} to {quartiles[2]:.2f}, {len(ratios)} rounds); "
              f"processor time {our_busy:.2f} and {their_busy:.2f} s, ratio {their_busy / our_busy:.2f}; error {error:.1e}",
              flush=True)


if __name__ == "__main__":
    main()
