#!/usr/bin/env python3
"""The cascade taught on the tasks' text: Whisper's decoder writes a transcript, a language model with LoRA answers it. No audio is trained on.

The paper tunes its cascade's language model on the text of the tasks; `speechverse eval --cascade` asks the untuned one. This makes the missing
baseline: prompts are those of `eval --cascade` (empty system message; transcript, a new line and the task's default instruction in the user's turn).
Needs torch, transformers 5, peft.

    python scripts/data/whisper_transcripts.py --model data/whisper-base-ct2 --out data/cascade data/manifests/slots_test.jsonl ...
    python scripts/bench/taught_cascade.py train --llm models/smollm2-135m-instruct --out data/cascade/lora \\
        --train data/manifests/{slots,intent,keyword_search_read}_train.jsonl --valid data/manifests/{slots,intent,keyword_search_read}_valid.jsonl
    python scripts/bench/taught_cascade.py answer --llm models/smollm2-135m-instruct --adapter data/cascade/lora \\
        --out data/cascade/taught.jsonl data/cascade/slots_test.jsonl ... data/manifests/slots_test.jsonl ...
    speechverse eval --config configs/demo.toml --rows data/cascade/taught.jsonl

`train` writes the peft adapter with the lowest mean validation loss to OUT, and OUT/log.jsonl. Every task has the same share of the rows. `answer`
writes a JSON line for each row that has a `text`; the system is named after the manifest's folder: with Whisper's transcripts it is the cascade, with
the `text` of the manifests themselves the oracle. Without --adapter it asks the language model as published. Texts are brought to the spelling of
training transcripts first.

Answers are greedy. A task with one label as its answer is held to the labels in force byte by byte, as constrained decoding does
(`src/inference/grammar`), but for white space around the label, which is not allowed here. Slots are free.
"""

import argparse
import json
import math
import os
import pathlib
import random
import statistics
import sys
import time
import tomllib

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("GOMP_SPINCOUNT", "0")

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, get_linear_schedule_with_warmup

ROOT = pathlib.Path(__file__).parent.parent.parent
sys.path.insert(0, str(ROOT / "scripts" / "data"))
from text import normalise

MARK = "\ue000"  # stands for the user's message while the chat template is rendered
BATCHES_SORTED = 16  # so many batches are sorted by length together


def cut(items, count):
    """Pieces of so many items."""
    return [items[at : at + count] for at in range(0, len(items), count)]


def read_rows(path):
    """The rows of a manifest that have a `text`, with their line numbers."""
    rows = [json.loads(line) | dict(line=number) for number, line in enumerate(open(path, encoding="utf8"), 1)]
    return [row for row in rows if row.get("text")]


class Prompts:
    """Token ids of prompts and answers, as `src/text/prompt.rs` makes them: each part is encoded by itself."""

    def __init__(self, llm, tasks):
        self.tokenizer = AutoTokenizer.from_pretrained(llm)
        self.tasks = {task["name"]: task for task in (tomllib.loads(path.read_text(encoding="utf8")) for path in tasks.glob("*.toml"))}
        turns = [dict(role="system", content=""), dict(role="user", content=MARK)]
        self.before, self.after = self.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True).split(MARK)
        # A byte-level vocabulary writes ASCII as it is, but for blanks: enough for labels.
        self.ids_of = {token.replace("\u0120", " "): id for token, id in self.tokenizer.get_vocab().items()}

    def encode(self, text):
        return self.tokenizer(text, add_special_tokens=False).input_ids

    def labels(self, row):
        """The labels in force: the row's, else the task's."""
        return row.get("labels") or [label["name"] for label in self.tasks[row["task"]]["labels"]]

    def prompt(self, row):
        task = self.tasks[row["task"]]
        described = {label["name"]: f": {label['description'].strip()}" for label in task["labels"]}
        bullets = "\n".join(f"- {name}{described.get(name, '')};" for name in self.labels(row))
        instruction = task["instruction"].format(labels=bullets, keyword=row.get("keyword"))
        text = normalise(row["text"]) or row["text"].lower()
        return [id for part in (self.before, text, "\n" + instruction, self.after) for id in self.encode(part)]

    def answer(self, row):
        return [*self.encode(row["target"]), self.tokenizer.eos_token_id]

    def leads_on(self, labels, so_far):
        """The tokens that lead from a text on to a label, however it is cut into tokens; the end after a whole label."""
        rests = [label[len(so_far) :] for label in labels if label.startswith(so_far)]
        pieces = {rest[:end] for rest in rests for end in range(1, len(rest) + 1)}
        ids = [self.ids_of[piece] for piece in pieces if piece in self.ids_of]
        # A row that has ended is only filled up until its batch ends.
        return ids + [self.tokenizer.eos_token_id] * ("" in rests or not rests)


def loss_and_exact(llm, batch, end):
    """Mean loss of the answers' tokens, and whether each answer's tokens are all the likeliest."""
    length = max(len(prompt) + len(answer) for prompt, answer in batch)
    ids = torch.tensor([prompt + answer + [end] * (length - len(prompt) - len(answer)) for prompt, answer in batch])  # [B, L]
    real = torch.tensor([[at < len(prompt) + len(answer) for at in range(length)] for prompt, answer in batch])
    # The position before a token predicts it; only those of answers get logits.
    predicts = torch.tensor([[len(prompt) - 1 <= at < len(prompt) + len(answer) - 1 for at in range(length)] for prompt, answer in batch])
    hidden = llm.model(input_ids=ids, attention_mask=real.long()).last_hidden_state  # [B, L, H]
    logits = llm.lm_head(hidden[predicts])  # [N, V]
    wanted = torch.tensor([id for _, answer in batch for id in answer])
    right = (logits.argmax(-1) == wanted).split([len(answer) for _, answer in batch])
    return torch.nn.functional.cross_entropy(logits, wanted), [bool(answer.all()) for answer in right]


def validate(llm, samples, rows, end):
    """(mean loss of the batches, share of answers exact) of each task; nothing is constrained."""
    llm.eval()
    found = {}
    for task, of_task in samples.items():
        batches = cut(sorted(of_task, key=lambda sample: len(sample[0])), rows)
        with torch.inference_mode():
            losses, exact = zip(*(loss_and_exact(llm, batch, end) for batch in batches))
        exact = [one for batch in exact for one in batch]
        found[task] = (statistics.mean(loss.item() for loss in losses), statistics.mean(exact))
    llm.train()
    return found


def batches_of(samples, steps, rows, rng):
    """Batches of rows of about one length; every task has the same share, its rows come again when all have been seen."""
    drawn = []
    for of_task in samples.values():
        passes = math.ceil(steps * rows / len(samples) / len(of_task))
        again = [sample for _ in range(passes) for sample in rng.sample(of_task, len(of_task))]
        drawn += again[: math.ceil(steps * rows / len(samples))]
    rng.shuffle(drawn)
    batches = []
    for chunk in cut(drawn, BATCHES_SORTED * rows):
        of_chunk = cut(sorted(chunk, key=lambda sample: len(sample[0])), rows)
        batches += rng.sample(of_chunk, len(of_chunk))
    return batches[:steps]


def train(args):
    rng = random.Random(args.seed)
    torch.manual_seed(args.seed)
    prompts = Prompts(args.llm, args.tasks)

    def read(paths, rows_max=None):
        samples = {}
        for row in (row for path in paths for row in read_rows(path)):
            sample = prompts.prompt(row), prompts.answer(row)
            if len(sample[0]) <= args.positions_max:
                samples.setdefault(row["task"], []).append(sample)
        return {task: rng.sample(of_task, min(rows_max or len(of_task), len(of_task))) for task, of_task in samples.items()}

    samples, valid = read(args.train), read(args.valid, args.valid_rows)
    print({task: (len(of_task), len(valid.get(task, []))) for task, of_task in samples.items()}, "training and validation rows", flush=True)
    lora = LoraConfig(r=16, lora_alpha=32, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(args.llm, dtype=torch.float32), lora)
    llm, end = model.get_base_model(), prompts.tokenizer.eos_token_id
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=args.learning_rate, weight_decay=0.0)
    schedule = get_linear_schedule_with_warmup(optimiser, args.steps // 20, args.steps)
    args.out.mkdir(parents=True, exist_ok=True)
    log = open(args.out / "log.jsonl", "w", encoding="utf8")
    started, busy, best, recent = time.time(), time.process_time(), math.inf, []
    model.train()
    for step, batch in enumerate(batches_of(samples, args.steps, args.rows, rng), 1):
        loss, _ = loss_and_exact(llm, batch, end)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        optimiser.zero_grad()
        recent.append(loss.item())
        if step % args.valid_every == 0 or step == args.steps:
            found = validate(llm, valid, args.rows, end)
            mean = statistics.mean(loss for loss, _ in found.values())
            facts = dict(step=step, loss=statistics.mean(recent), valid_loss=mean, seconds=time.time() - started, cpu_seconds=time.process_time() - busy, learning_rate=args.learning_rate)
            facts |= {task: dict(loss=loss, exact=exact) for task, (loss, exact) in found.items()}
            print(json.dumps(facts), file=log, flush=True)
            print(json.dumps(facts), flush=True)
            recent = []
            if mean < best:
                best = mean
                model.save_pretrained(args.out)


def generate(model, prompts, batch, tokens_max):
    """The greedy answers to prompts of one task, held to the labels of their rows where an answer is one label."""
    length = max(len(prompt) for prompt, _ in batch)
    end = prompts.tokenizer.eos_token_id
    ids = torch.tensor([[end] * (length - len(prompt)) + list(prompt) for prompt, _ in batch])  # [B, L]
    real = torch.tensor([[0] * (length - len(prompt)) + [1] * len(prompt) for prompt, _ in batch])
    labels = [prompts.labels(row) for _, row in batch]

    def allowed(at, so_far):
        return prompts.leads_on(labels[at], prompts.tokenizer.decode(so_far[length:]))

    one_label = prompts.tasks[batch[0][1]["task"]]["answer"]["format"] == "label"
    with torch.inference_mode():
        written = model.generate(ids, attention_mask=real, max_new_tokens=tokens_max, do_sample=False, prefix_allowed_tokens_fn=allowed if one_label else None)
    return [text.strip() for text in prompts.tokenizer.batch_decode(written[:, length:], skip_special_tokens=True)]


def answer(args):
    prompts = Prompts(args.llm, args.tasks)
    model = AutoModelForCausalLM.from_pretrained(args.llm, dtype=torch.float32)
    if args.adapter:
        model = PeftModel.from_pretrained(model, args.adapter).merge_and_unload()
    model.eval()
    known = {}  # equal prompts have equal answers: many transcripts are right
    with open(args.out, "w", encoding="utf8") as out:
        for path in args.manifests:
            started, rows, exact, unknown = time.time(), read_rows(path)[: args.limit], 0, {}
            for row in rows:
                prompt = tuple(prompts.prompt(row))
                if prompt not in known:
                    unknown.setdefault(row["task"], {})[prompt] = row
            for of_task in unknown.values():
                for batch in cut(sorted(of_task.items(), key=lambda item: len(item[0])), args.rows):
                    known |= zip((prompt for prompt, _ in batch), generate(model, prompts, batch, args.tokens_max))
            for row in rows:
                hypothesis = known[tuple(prompts.prompt(row))]
                exact += hypothesis == row["target"]
                line = dict(system=path.parent.name, set=path.stem, id=f"{path.name}:{row['line']}", task=row["task"], reference=row["target"])
                print(json.dumps(line | dict(hypothesis=hypothesis, transcript=row["text"]), ensure_ascii=False), file=out, flush=True)
            print(f"{path}: {exact} of {len(rows)} exact, {time.time() - started:.0f} s", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--llm", type=pathlib.Path, required=True, help="folder of the language model")
    shared.add_argument("--tasks", type=pathlib.Path, default=ROOT / "configs" / "tasks", help="folder of the task files")
    shared.add_argument("--out", type=pathlib.Path, required=True)
    shared.add_argument("--threads", type=int, default=1)

    command = commands.add_parser("train", parents=[shared], help="teaches LoRA on the text of training manifests")
    command.add_argument("--train", type=pathlib.Path, nargs="+", required=True)
    command.add_argument("--valid", type=pathlib.Path, nargs="+", required=True)
    command.add_argument("--steps", type=int, default=300)
    command.add_argument("--rows", type=int, default=12, help="of a batch")
    command.add_argument("--learning-rate", type=float, default=2e-3, help="at its peak; it falls to zero in a line")
    command.add_argument("--positions-max", type=int, default=256, help="rows with longer prompts are left out")
    command.add_argument("--valid-every", type=int, default=75)
    command.add_argument("--valid-rows", type=int, default=60, help="of each task, drawn at random")
    command.add_argument("--seed", type=int, default=17)
    command.set_defaults(run=train)

    command = commands.add_parser("answer", parents=[shared], help="answers the rows of manifests")
    command.add_argument("manifests", type=pathlib.Path, nargs="+")
    command.add_argument("--adapter", type=pathlib.Path, help="what `train` wrote; absent: the language model as published")
    command.add_argument("--tokens-max", type=int, default=70)
    command.add_argument("--rows", type=int, default=16, help="of a batch")
    command.add_argument("--limit", type=int, help="only the first rows of each manifest")
    command.set_defaults(run=answer)

    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    args.run(args)


if __name__ == "__main__":
    main()
