#!/usr/bin/env python3
"""Speed of training beside transformers + peft: the same weights, the same clips in the same batches, the same machine, in turn.

Needs torch, transformers 5, peft, soundfile; the program first: cargo build --release -p speechverse-pipelines

  train.py PROGRAM ENCODER LLM MANIFEST [--rows 160] [--batch 16] [--rounds 3] [--threads 2] [--precision f32]

PROGRAM is target/release/speechverse, ENCODER a Whisper folder, LLM a decoder-only folder, MANIFEST JSON lines with
`audio_filepath` and `text` (16 kHz clips). Both sides train the paper's form: layer mix, two convolution blocks, LoRA of rank 16 on
queries and values, AdamW, next-token loss over transcripts. Each round is one pass over the rows by the program (encoding every clip),
one more from its feature cache, and one by the reference, which encodes every clip cut to its length like the program (transformers'
encoder alone would compute 30 s for each). The first batch of a pass is left out. Printed: samples per second of each, and the ratios
with the range of the rounds.
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("GOMP_SPINCOUNT", "0")

import peft
import soundfile
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, WhisperFeatureExtractor, WhisperModel

SETTINGS = """
run = "bench"
output = "{output}"
seed = 1
[model]
encoder = "{encoder}"
llm = "{llm}"
threads = {threads}
precision = "{precision}"
system = ""
[lora]
rank = 16
alpha = 32.0
[data]
train = ["{manifest}"]
valid = ["{manifest}"]
plain_targets = true
seconds_max = 30.0
[feature_cache]
dir = "{cache}"
variants = 1
[validation]
every_steps = 100000
clips_max = 1
transcribed_clips_max = 0
[checkpoint]
every_steps = 100000
[prompts]
asr = ["Transcribe the speech."]
[[stage]]
kind = "lora_warmup"
augment = false
cached = {cached}
steps_max = {steps}
batch_rows = {batch}
batch_seconds_max = 100000.0
learning_rate = 2e-4
"""


def program_pass(args, folder, manifest, steps, cached):
    """Samples per second of the program over steps 2 and later."""
    output = folder / "run"
    subprocess.run(["rm", "-rf", str(output)], check=True)
    settings = folder / "train.toml"
    settings.write_text(SETTINGS.format(output=output, encoder=args.encoder, llm=args.llm, threads=args.threads,
                                        precision=args.precision, manifest=manifest, cache=folder / "cache",
                                        cached=str(cached).lower(), steps=steps, batch=args.batch))
    subprocess.run([args.program, "train", "--config", str(settings)], check=True, stdout=subprocess.DEVNULL,
                   stderr=subprocess.DEVNULL, env={**os.environ, "OMP_NUM_THREADS": str(args.threads)})
    times = [event["seconds"] for event in map(json.loads, open(output / "log.jsonl")) if event["event"] == "step"]
    return (len(times) - 1) * args.batch / (times[-1] - times[0])


class Reference(torch.nn.Module):
    def __init__(self, args):
        super().__init__()
        dtype = {"f32": torch.float32, "bf16": torch.bfloat16}[args.precision]
        self.extractor = WhisperFeatureExtractor.from_pretrained(args.encoder)
        self.encoder = WhisperModel.from_pretrained(args.encoder, dtype=dtype).encoder.eval().requires_grad_(False)
        self.tokenizer = AutoTokenizer.from_pretrained(args.llm)
        llm = AutoModelForCausalLM.from_pretrained(args.llm, dtype=dtype)
        self.llm = peft.get_peft_model(llm, peft.LoraConfig(r=16, lora_alpha=32, target_modules=["q_proj", "v_proj"]))
        width, self.dtype = llm.config.hidden_size, dtype
        self.mix = torch.nn.Parameter(torch.ones(self.encoder.config.encoder_layers))
        self.blocks = torch.nn.ModuleList()
        for inside in (self.encoder.config.d_model, width):
            self.blocks.append(torch.nn.Conv1d(inside, width, 3, stride=2, padding=1))
            self.blocks.append(torch.nn.LayerNorm(width))
        chat = [{"role": "system", "content": ""}, {"role": "user", "content": "@\nTranscribe the speech."}]
        text = self.tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        self.around = [self.tokenizer(part, add_special_tokens=False).input_ids for part in text.split("@")]

    def features(self, clips):
        """Mixed hidden states of clips, each cut to its length: the published encoder pads everything to 30 s."""
        lengths = [(len(clip) + 319) // 320 for clip in clips]
        mel = self.extractor(clips, sampling_rate=16000, return_tensors="pt").input_features
        with torch.no_grad():
            x = mel[:, :, :2 * max(lengths)].to(self.dtype)
            x = torch.nn.functional.gelu(self.encoder.conv1(x))
            x = torch.nn.functional.gelu(self.encoder.conv2(x)).transpose(1, 2)
            x = x + self.encoder.embed_positions.weight[:x.shape[1]]
            states = []
            for layer in self.encoder.layers:
                x = layer(x, None)
                x = x[0] if isinstance(x, tuple) else x
                states.append(x)
            states[-1] = self.encoder.layer_norm(states[-1])
        stacked = torch.stack(states).float()
        return torch.einsum("l,lbtd->btd", self.mix / len(states), stacked), lengths

    def loss(self, clips, texts):
        x, lengths = self.features(clips)
        for at in range(0, len(self.blocks), 2):
            x = self.blocks[at + 1](self.blocks[at](x.transpose(1, 2)).transpose(1, 2))
            lengths = [(length + 1) // 2 for length in lengths]
        table = self.llm.get_input_embeddings()
        rows, labels = [], []
        for row, (length, text) in enumerate(zip(lengths, texts)):
            answer = self.tokenizer(" " + text, add_special_tokens=False).input_ids + [self.tokenizer.eos_token_id]
            prompt = torch.cat([table(torch.tensor(self.around[0])), x[row, :length].to(self.dtype), table(torch.tensor(self.around[1]))])
            rows.append(torch.cat([prompt, table(torch.tensor(answer))]))
            labels.append(torch.tensor([-100] * len(prompt) + answer))
        embeds = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
        labels = torch.nn.utils.rnn.pad_sequence(labels, batch_first=True, padding_value=-100)
        mask = torch.nn.utils.rnn.pad_sequence([torch.ones(len(row), dtype=torch.long) for row in rows], batch_first=True)
        return self.llm(inputs_embeds=embeds, attention_mask=mask, labels=labels).loss


def reference_pass(args, model, optimizer, batches):
    times = []
    for batch in batches:
        clips = [soundfile.read(row["audio_filepath"], dtype="float32")[0] for row in batch]
        loss = model.loss(clips, [row["text"] for row in batch])
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_([p for p in model.parameters() if p.requires_grad], 1.0)
        optimizer.step()
        times.append(time.perf_counter())
    return (len(times) - 1) * args.batch / (times[-1] - times[0])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("program", "encoder", "llm", "manifest"):
        parser.add_argument(name)
    for name, default in (("--rows", 160), ("--batch", 16), ("--rounds", 3), ("--threads", 2)):
        parser.add_argument(name, type=int, default=default)
    parser.add_argument("--precision", choices=["f32", "bf16"], default="f32")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    base = pathlib.Path(args.manifest).resolve().parent
    rows = [json.loads(line) for line in open(args.manifest)]
    rows = [row for row in rows if row.get("text") and 1.0 <= row["duration"] <= 12.0 and not row.get("offset")][:args.rows]
    rows = rows[:len(rows) // args.batch * args.batch]
    if not rows:
        sys.exit("the manifest has too few rows")
    for row in rows:
        row["audio_filepath"] = str(base / row["audio_filepath"])
    rows.sort(key=lambda row: row["duration"])
    batches = [rows[at:at + args.batch] for at in range(0, len(rows), args.batch)]
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        manifest = folder / "rows.jsonl"
        keep = ("audio_filepath", "duration", "text")
        manifest.write_text("".join(json.dumps({key: row[key] for key in keep}) + "\n" for row in rows))
        model = Reference(args)
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=2e-4)
        program_pass(args, folder, manifest, len(batches), True)     # fills the cache
        found = {"encoding": [], "cached": [], "reference": []}
        for _ in range(args.rounds):
            found["encoding"].append(program_pass(args, folder, manifest, len(batches), False))
            found["cached"].append(program_pass(args, folder, manifest, len(batches), True))
            found["reference"].append(reference_pass(args, model, optimizer, batches))
    print(f"{len(rows)} rows in batches of {args.batch}, {args.precision}, {args.threads} threads, {torch.backends.cpu.get_cpu_capability()}")
    for name, speeds in found.items():
        print(f"{name}: {statistics.median(speeds):.2f} samples/s")
    for name in ("encoding", "cached"):
        ratios = [ours / theirs for ours, theirs in zip(found[name], found["reference"])]
        print(f"{name} / reference: {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")


main()
