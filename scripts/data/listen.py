"""Lets Whisper transcribe clips of a manifest and prints the word error rate per voice: a check of the voices, not of our model.

    python scripts/data/listen.py data/demo/test_home.jsonl --model models/whisper-base --count 30

Whisper writes numbers as digits and spells some words the British way; both sides are brought to one form first.
"""

import argparse
import collections
import json
import pathlib
import random
import re
import wave

import jiwer
import numpy as np
import torch
from transformers import WhisperForConditionalGeneration, WhisperProcessor, logging
from transformers.models.whisper.english_normalizer import EnglishTextNormalizer

from text import normalise


def read_wav(path):
    with wave.open(str(path)) as w:
        return np.frombuffer(w.readframes(w.getnframes()), "<i2").astype(np.float32) / 32768


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("manifests", nargs="+", type=pathlib.Path)
    parser.add_argument("--model", required=True)
    parser.add_argument("--count", type=int, default=30, help="clips of each manifest, drawn at random")
    parser.add_argument("--show", type=int, default=0, help="print this many of the worst clips")
    args = parser.parse_args()
    torch.set_num_threads(1)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    model = WhisperForConditionalGeneration.from_pretrained(args.model).float().eval()
    processor = WhisperProcessor.from_pretrained(args.model)
    prompt = torch.tensor([processor.tokenizer.convert_tokens_to_ids(["<|startoftranscript|>", "<|en|>", "<|transcribe|>", "<|notimestamps|>"])])
    one_form = EnglishTextNormalizer({"color": "colour", "program": "programme", "neighbor": "neighbour", "favorite": "favourite"})
    for manifest in args.manifests:
        rows = [json.loads(l) for l in open(manifest, encoding="utf8")]
        rows = random.Random(0).sample(rows, min(args.count, len(rows)))
        voices, worst = collections.defaultdict(lambda: ([], [])), []
        for row in rows:
            features = processor(read_wav(manifest.parent / row["audio_filepath"]), sampling_rate=16000, return_tensors="pt").input_features
            with torch.no_grad():
                ids = model.generate(features, decoder_input_ids=prompt, max_new_tokens=80)
            recognised = processor.batch_decode(ids, skip_special_tokens=True)[0]
            want, got = one_form(row["text"]), one_form(normalise(recognised) or recognised)
            want, got = re.sub(r"'", "", want), re.sub(r"'", "", got)
            for key in (row["voice"], "all"):
                voices[key][0].append(want)
                voices[key][1].append(got)
            worst.append((jiwer.wer(want, got), row["voice"], row["text"], recognised.strip()))
        print(manifest.name, {v: f"{100 * jiwer.wer(*pair):.1f}% of {len(pair[0])}" for v, pair in sorted(voices.items())}, flush=True)
        for score, voice, want, recognised in sorted(worst, reverse=True)[: args.show]:
            print(f"   {score:.2f} {voice}: {want} | {recognised}")


if __name__ == "__main__":
    main()
