#!/usr/bin/env python3
"""Speed of training beside transformers + peft: the same weights, the same clips in the same batches, the same machine, in turn.

Needs torch, transformers 5, peft, soundfile; the models, and the program first: cargo build --release -p speechverse-pipelines

  train.py [--manifest data/demo/train.jsonl ...] [--precision f32 bf16] [--rows 96] [--batch 16] [--rounds 3] [--threads 2]
           [--program target/release/speechverse] [--encoder models/whisper-base] [--llm models/smollm2-135m-instruct]

The manifests are JSON lines with `audio_filepath` and `text` (16 kHz, whole files of 1 to 12 s); --rows of them are drawn. Both sides
train the paper's form as a `multitask` stage does: layer mix, two convolutions with a stride of 2, LoRA of rank 16 on queries and values,
next-token loss of the transcript, AdamW, no augmentation. Every figure is one pass over all batches, after a pass that is not counted;
the program's is read from its log, in which validation and checkpoints have no part. The sides:

  encoding       the program, which encodes every clip in every pass
  cached         the program with its feature cache, filled
  padded         transformers + peft as one writes it: labels masked, logits of all positions, clips padded to 30 s, which is the
                 only length that transformers' Whisper encoder takes
  reference      the same, with the encoder's modules run by hand over clips cut to the longest of the batch
  trimmed        the same with logits of the answers' positions alone, which is what the program computes
  trimmed kept   and with the clips' features kept in memory

The reference does less where that is simpler: its encoder has no mask for what is behind a clip's end, its clips are decoded beforehand. As OpenMP's threads wait, so does the reference;
set OMP_WAIT_POLICY=PASSIVE GOMP_SPINCOUNT=0 on a busy machine and neither on a quiet one (the program sleeps of itself).
Printed: samples per second of each side, and ratios with the range of the rounds. The losses of the uncounted passes are there to see
that both sides learn the same; a ratio holds for one kind of CPU only.
"""

import argparse
import json
import os
import pathlib
import random
import re
import statistics
import subprocess
import sys
import tempfile
import time

import peft
import soundfile
import torch
import torch.nn.functional as F
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModelForCausalLM, AutoTokenizer, WhisperFeatureExtractor, WhisperModel
from transformers.utils import logging

SORTED_TOGETHER = 32  # batches: more rows than these hold would make other batches in the program
FRAME_SAMPLES = 320
INSTRUCTION = "Transcribe the speech."
SETTINGS = """
run = "bench"
output = "{folder}/run"
[model]
encoder = "{encoder}"
llm = "{llm}"
threads = {threads}
precision = "{precision}"
system = ""
[adapter]
strides = [2, 2]
kernel = 3
[lora]
rank = 16
alpha = 32.0
[data]
train = ["{folder}/rows.jsonl"]
valid = ["{folder}/rows.jsonl"]
[feature_cache]
dir = "{folder}/cache-{precision}"
variants = 1
[validation]
every_steps = 1000000
clips_max = 1
transcribed_clips_max = 0
[checkpoint]
every_steps = 1000000
[prompts]
asr = ["{instruction}"]
[[stage]]
kind = "multitask"
augment = false
cached = {cached}
steps_max = {steps}
batch_rows = {batch}
batch_seconds_max = 100000.0
learning_rate = 2e-4
"""


def program_pass(args, folder, precision, count, cached):
    """Samples per second over the second epoch, and the mean loss of the first."""
    subprocess.run(["rm", "-rf", str(folder / "run")], check=True)
    settings = folder / "train.toml"
    steps = 2 * (count // args.batch)
    settings.write_text(SETTINGS.format(folder=folder, encoder=args.encoder.resolve(), llm=args.llm.resolve(), threads=args.threads,
                                        precision=precision, cached=str(cached).lower(), steps=steps, batch=args.batch,
                                        instruction=INSTRUCTION))
    ran = subprocess.run([args.program, "train", "--config", str(settings)], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
                         text=True, env={**os.environ, "OMP_NUM_THREADS": str(args.threads)})
    if ran.returncode:
        sys.exit(f"{args.program} failed:\n{ran.stderr}")
    events = [json.loads(line) for line in open(folder / "run/log.jsonl")]
    samples = next(event["train_samples"] for event in events if event["event"] == "run_started")
    epochs = [[event for event in events if event["event"] == "step" and event["epoch"] == epoch] for epoch in (0, 1)]
    if samples != count or len(epochs[0]) != len(epochs[1]) or 2 * len(epochs[0]) != steps:
        sys.exit(f"the program trained on {samples} of {count} rows, in {len(epochs[0])} and {len(epochs[1])} of {steps} steps")
    seconds = epochs[1][-1]["seconds"] - epochs[0][-1]["seconds"]
    return count / seconds, statistics.mean(event["loss"] for event in epochs[0])


class Reference(torch.nn.Module):
    def __init__(self, args, precision):
        super().__init__()
        self.dtype = {"f32": torch.float32, "bf16": torch.bfloat16}[precision]
        self.extract = WhisperFeatureExtractor.from_pretrained(args.encoder)
        self.encoder = WhisperModel.from_pretrained(args.encoder, dtype=self.dtype).encoder.eval().requires_grad_(False)
        self.tokenizer = AutoTokenizer.from_pretrained(args.llm)
        llm = AutoModelForCausalLM.from_pretrained(args.llm, dtype=self.dtype)
        self.llm = peft.get_peft_model(llm, peft.LoraConfig(r=16, lora_alpha=32, target_modules=["q_proj", "v_proj"]))
        self.table = llm.get_input_embeddings()
        width = llm.config.hidden_size
        self.mix = torch.nn.Parameter(torch.ones(self.encoder.config.encoder_layers))
        self.convolutions = torch.nn.ModuleList(torch.nn.Conv1d(inside, width, 3, stride=2, padding=1)
                                                for inside in (self.encoder.config.d_model, width))
        self.norms = torch.nn.ModuleList(torch.nn.LayerNorm(width) for _ in range(2))
        torch.nn.init.constant_(self.norms[-1].weight, self.table.weight.float().square().mean().sqrt().item())
        self.prefix = self.ids("<|im_start|>system\n<|im_end|>\n<|im_start|>user\n")
        self.suffix = torch.cat([self.ids("\n" + INSTRUCTION), self.ids("<|im_end|>\n<|im_start|>assistant\n")])
        self.kept = {}
        self.learned = [parameter for parameter in self.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(self.learned, lr=2e-4, betas=(0.9, 0.98), fused=True)

    def ids(self, text):
        return self.tokenizer(text, add_special_tokens=False, return_tensors="pt").input_ids[0]

    @torch.no_grad()
    def states(self, clips, padded):
        """The outputs of all layers, `[L, B, T, D]`."""
        if padded:
            mel = self.extract(clips, sampling_rate=16_000, return_tensors="pt").input_features.to(self.dtype)
            frames = -(-max(map(len, clips)) // FRAME_SAMPLES)
            return torch.stack(self.encoder(mel, output_hidden_states=True).hidden_states[1:])[:, :, :frames]
        mel = self.extract(clips, sampling_rate=16_000, padding="longest", pad_to_multiple_of=FRAME_SAMPLES, return_tensors="pt")
        x = F.gelu(self.encoder.conv1(mel.input_features.to(self.dtype)))
        x = F.gelu(self.encoder.conv2(x)).transpose(1, 2)
        x = x + self.encoder.embed_positions.weight[:x.shape[1]]
        states = []
        for layer in self.encoder.layers:
            x = layer(x, None)
            x = x[0] if isinstance(x, tuple) else x
            states.append(x)
        states[-1] = self.encoder.layer_norm(x)
        return torch.stack(states)

    def mixed(self, clips, padded=False):
        return torch.einsum("l,lbtd->btd", self.mix / len(self.mix), self.states(clips, padded).float())

    def features(self, at, clips, keep, padded):
        if not keep:
            return self.mixed(clips, padded)
        if at not in self.kept:
            self.kept[at] = self.mixed(clips).detach().bfloat16()
        return self.kept[at].float()

    def loss(self, at, clips, texts, trim, keep, padded):
        x = self.features(at, clips, keep, padded)
        lengths = [-(-len(clip) // FRAME_SAMPLES) for clip in clips]
        for convolution, norm in zip(self.convolutions, self.norms):
            with torch.autocast("cpu", self.dtype, enabled=self.dtype == torch.bfloat16):
                x = norm(convolution(x.transpose(1, 2)).transpose(1, 2))
            lengths = [(length + 1) // 2 for length in lengths]
        prefix, suffix = self.table(self.prefix), self.table(self.suffix)
        rows, labels = [], []
        for row, (length, text) in enumerate(zip(lengths, texts)):
            answer = torch.cat([self.ids(" " + text), torch.tensor([self.tokenizer.eos_token_id])])
            prompt = torch.cat([prefix, x[row, :length].to(self.dtype), suffix])
            rows.append(torch.cat([prompt, self.table(answer)]))
            labels.append(torch.cat([torch.full((len(prompt),), -100), answer]))
        left = dict(batch_first=True, padding_side="left")
        embeds, labels = pad_sequence(rows, **left), pad_sequence(labels, padding_value=-100, **left)
        mask = pad_sequence([torch.ones(len(row), dtype=torch.long) for row in rows], **left)
        if not trim:
            return self.llm(inputs_embeds=embeds, attention_mask=mask, labels=labels).loss
        causal = self.llm.base_model.model
        hidden = causal.model(inputs_embeds=embeds, attention_mask=mask).last_hidden_state[:, :-1]
        answers = labels[:, 1:] != -100  # each token is predicted at the position before it
        return F.cross_entropy(causal.lm_head(hidden[answers]).float(), labels[:, 1:][answers])

    def one_pass(self, batches, trim, keep=False, padded=False):
        """Samples per second, and the mean loss."""
        losses, start = [], time.perf_counter()
        for at, batch in enumerate(batches):
            loss = self.loss(at, [row["samples"] for row in batch], [row["text"] for row in batch], trim, keep, padded)
            self.optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.learned, 1.0)
            self.optimizer.step()
            losses.append(loss.item())
        return sum(map(len, batches)) / (time.perf_counter() - start), statistics.mean(losses)


def plain(text):
    return re.sub(r"[^a-z' ]+", " ", text.lower()).strip()


def drawn(args):
    """Rows in order of their length, with samples and plain text."""
    found = []
    for manifest in args.manifest:
        if not manifest.is_file():
            sys.exit(f"{manifest} is not there: docs/DATA.md says how data is made, --manifest takes another")
        for row in map(json.loads, open(manifest)):
            whole = not row.get("offset") and row.get("task", "asr") == "asr"
            if whole and 1.0 <= row["duration"] <= 12.0 and plain(row.get("text") or ""):
                found.append({"audio_filepath": str((manifest.parent / row["audio_filepath"]).resolve()), "duration": row["duration"],
                              "text": " ".join(plain(row["text"]).split())})
    count = min(args.rows, SORTED_TOGETHER * args.batch, len(found)) // args.batch * args.batch
    if not count:
        sys.exit(f"{len(found)} usable rows are too few for a batch of {args.batch}")
    rows = sorted(random.Random(1).sample(found, count), key=lambda row: row["duration"])
    for row in rows:
        row["samples"], rate = soundfile.read(row["audio_filepath"], dtype="float32")
        if rate != 16_000 or row["samples"].ndim != 1:
            sys.exit(f"{row['audio_filepath']} is not mono at 16 kHz")
    return rows


def compare(args, folder, rows, batches, precision):
    reference = Reference(args, precision)
    sides = {
        "encoding": lambda: program_pass(args, folder, precision, len(rows), False),
        "padded": lambda: reference.one_pass(batches, trim=False, padded=True),
        "reference": lambda: reference.one_pass(batches, trim=False),
        "cached": lambda: program_pass(args, folder, precision, len(rows), True),
        "trimmed": lambda: reference.one_pass(batches, trim=True),
        "trimmed kept": lambda: reference.one_pass(batches, trim=True, keep=True),
    }
    _, loss = reference.one_pass(batches, trim=False)
    losses = {"reference": loss}
    reference.one_pass(batches, trim=True, keep=True)
    found = {name: [] for name in sides}
    for _ in range(args.rounds):
        for name, side in sides.items():
            speed, loss = side()
            found[name].append(speed)
            losses.setdefault(name, loss)
    print(f"\n{precision}; mean loss of the first pass: program {losses['encoding']:.2f}, reference {losses['reference']:.2f}")
    for name, speeds in found.items():
        print(f"  {name:12} {statistics.median(speeds):6.2f} samples/s ({min(speeds):.2f} to {max(speeds):.2f})")
    for ours, theirs in (("encoding", "padded"), ("cached", "padded"), ("encoding", "reference"), ("encoding", "trimmed"), ("cached", "reference"), ("cached", "trimmed"),
                         ("cached", "trimmed kept")):
        ratios = [one / other for one, other in zip(found[ours], found[theirs])]
        print(f"  {ours} / {theirs}: {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--program", default="target/release/speechverse")
    parser.add_argument("--encoder", type=pathlib.Path, default="models/whisper-base")
    parser.add_argument("--llm", type=pathlib.Path, default="models/smollm2-135m-instruct")
    parser.add_argument("--manifest", type=pathlib.Path, nargs="+", default=[pathlib.Path("data/demo/train.jsonl")])
    parser.add_argument("--precision", nargs="+", choices=["f32", "bf16"], default=["f32", "bf16"])
    for name, default in (("--rows", 96), ("--batch", 16), ("--rounds", 3), ("--threads", 2)):
        parser.add_argument(name, type=int, default=default)
    args = parser.parse_args()
    logging.disable_progress_bar()
    torch.set_num_threads(args.threads)
    rows = drawn(args)
    batches = [rows[at:at + args.batch] for at in range(0, len(rows), args.batch)]
    seconds = sum(len(row["samples"]) for row in rows) / 16_000
    bf16 = ", avx512_bf16" if "avx512_bf16" in pathlib.Path("/proc/cpuinfo").read_text() else ""
    print(f"{len(rows)} rows ({seconds / len(rows):.1f} s on average) in batches of {args.batch}, {args.threads} threads, "
          f"{torch.backends.cpu.get_cpu_capability()}{bf16}, torch {torch.__version__}, {args.rounds} rounds, "
          f"OpenMP {os.environ.get('OMP_WAIT_POLICY', 'waits as by default')}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        keep = ("audio_filepath", "duration", "text")
        (folder / "rows.jsonl").write_text("".join(json.dumps({key: row[key] for key in keep}) + "\n" for row in rows))
        for precision in args.precision:
            compare(args, folder, rows, batches, precision)


if __name__ == "__main__":
    main()
