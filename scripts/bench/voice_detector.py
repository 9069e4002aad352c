#!/usr/bin/env python3
"""Compares the voice activity detector with the rule by loudness: who finds speech where there is some, and where not.

  voice_detector.py MODEL NON_SPEECH.jsonl SPEECH.jsonl [--clips N]

MODEL is the folder of `speechverse models fetch silero-vad`; the manifests are in the project's form, NON_SPEECH as it is before
`data import`: its `labels.event` names the sound (`music: …`). For each kind of sound: the share of clips in which each finds
speech (as `VoiceDetector::has_speech`), and of voices with noise behind them, how late each sees that nobody speaks any more. Needs torch, safetensors, librosa, numpy.
"""

import argparse
import json
import pathlib
import random

import librosa
import numpy as np
import torch
from safetensors.torch import load_file

FRAME, CONTEXT = 512, 64
SPEECH_ABOVE, FRAMES_MIN, SILENCE, BELOW_LOUDEST, LOUDEST_KEPT = 0.5, 4, 1e-6, 10**-2.5, 10 ** (-0.1 * 0.032)


class Silero(torch.nn.Module):
    """The network of `src/models/silero_vad.rs`, from the same file."""

    def __init__(self, folder):
        super().__init__()
        self.w = load_file(str(pathlib.Path(folder) / "model.safetensors"))
        self.lstm = torch.nn.LSTM(128, 128, batch_first=True)
        names = {"weight_ih_l0": "weight_ih", "weight_hh_l0": "weight_hh", "bias_ih_l0": "bias_ih", "bias_hh_l0": "bias_hh"}
        self.lstm.load_state_dict({ours: self.w[f"lstm_cell.{theirs}"] for ours, theirs in names.items()})

    @torch.no_grad()
    def probabilities(self, samples):
        samples = np.pad(samples, (CONTEXT, -len(samples) % FRAME)).astype(np.float32)
        x = torch.from_numpy(samples).unfold(0, FRAME + CONTEXT, FRAME).unsqueeze(1)
        x = torch.nn.functional.pad(x, (0, 64), mode="reflect")
        x = torch.nn.functional.conv1d(x, self.w["stft_conv.weight"], stride=128)
        x = (x[:, :129] ** 2 + x[:, 129:] ** 2).sqrt()
        for name, stride in (("conv1", 1), ("conv2", 2), ("conv3", 2), ("conv4", 1)):
            x = torch.nn.functional.conv1d(x, self.w[f"{name}.weight"], self.w[f"{name}.bias"], stride, 1).relu()
        x = self.lstm(x.permute(2, 0, 1))[0][0].relu()
        return (x @ self.w["final_conv.weight"].view(128, 1) + self.w["final_conv.bias"]).sigmoid().view(-1).numpy()


def loud(samples):
    samples = np.pad(samples, (0, -len(samples) % FRAME)).reshape(-1, FRAME)
    powers = samples.astype(np.float64).var(axis=1)
    loudest, found = 0.0, []
    for power in powers:
        loudest = max(power, loudest * LOUDEST_KEPT)
        found.append(power >= SILENCE and power > loudest * BELOW_LOUDEST)
    return np.array(found)


def longest_run(frames):
    best = run = 0
    for frame in frames:
        run = run + 1 if frame else 0
        best = max(best, run)
    return best


def read(manifest, clips, wanted=lambda row: True):
    with open(manifest, encoding="utf-8") as file:
        rows = [row for row in map(json.loads, file) if wanted(row)]
    random.Random(7).shuffle(rows)
    found = (librosa.load(pathlib.Path(manifest).parent / row["audio_filepath"], sr=16000, mono=True)[0] for row in rows[:clips])
    return [clip for clip in found if len(clip)]


def kind(row):
    event = row["labels"]["event"]
    if event.startswith("music: "):
        return "music"
    return "animals, babies, sneezing" if event in {"dog", "rooster", "crying baby", "sneezing"} else "noise"


def power(samples):
    return float(np.mean(samples.astype(np.float64) ** 2)) + 1e-12


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("model"), parser.add_argument("non_speech"), parser.add_argument("speech")
    parser.add_argument("--clips", type=int, default=300)
    args = parser.parse_args()
    torch.set_num_threads(1)
    silero = Silero(args.model)
    by_kind = {
        name: read(args.non_speech, args.clips, lambda row: kind(row) == name)
        for name in ("noise", "music", "animals, babies, sneezing")
    }
    noises = by_kind["noise"]
    voices = read(args.speech, args.clips)

    def mixed(ratio_db):
        for at, voice in enumerate(voices):
            noise = np.resize(noises[at % len(noises)], len(voice))
            yield voice + noise * (power(voice) / power(noise) / 10 ** (ratio_db / 10)) ** 0.5

    kinds = {
        **by_kind,
        "voices": voices,
        "voices, 20 dB quieter": [voice * 0.1 for voice in voices],
        "voices, 40 dB quieter": [voice * 0.01 for voice in voices],
        "voices, 10 dB above noise": list(mixed(10)),
        "voices, as loud as noise": list(mixed(0)),
    }
    print("| sound | clips | Silero VAD finds speech | loudness finds speech |\n|---|--:|--:|--:|")
    for name, clips in kinds.items():
        one = np.mean([longest_run(silero.probabilities(clip) >= SPEECH_ABOVE) >= FRAMES_MIN for clip in clips])
        other = np.mean([loud(clip).any() for clip in clips])
        print(f"| {name} | {len(clips)} | {one:.1%} | {other:.1%} |", flush=True)

    late = {"Silero VAD": [], "loudness": []}
    for at, voice in enumerate(voices):
        spoken = silero.probabilities(voice) >= SPEECH_ABOVE
        if not spoken.any():
            continue
        end = int(np.flatnonzero(spoken)[-1]) + 1
        noise = np.resize(noises[at % len(noises)], len(voice) + 32000)
        clip = np.pad(voice, (0, 32000)) + noise * (power(voice) / power(noise) / 100) ** 0.5
        for name, found in (("Silero VAD", silero.probabilities(clip) >= SPEECH_ABOVE), ("loudness", loud(clip))):
            last = int(np.flatnonzero(found)[-1]) + 1 if found.any() else 0
            late[name].append((last - end) * 0.032)
    print("\nEnd of speech before 2 s of noise that is 20 dB weaker than the voice, seconds late (median, 90 %):")
    for name, values in late.items():
        print(f"{name}: {np.median(values):.2f}, {np.percentile(values, 90):.2f}")


if __name__ == "__main__":
    main()
