"""Makes the folder of real recordings that `speechverse data import` reads, from clones of public repositories.

    python scripts/data/make_pack.py clone --clones data/clones      # git clone of each repository, some GB
    python scripts/data/make_pack.py make  --clones data/clones --out data/real-speech
    speechverse data import data/real-speech --out data/manifests

pack.jsonl.xz lists the recordings that we use, with voice, task, answer and part (train, test): the split of every voice is ours and must stay, or a test
voice would be learned. Words and slot values come from the repositories, sound too (decoded, 16 kHz mono, Ogg Vorbis). A recording that is no longer there is
counted and left out. Not in the list: the voices that we keep for measurements elsewhere.
"""

import argparse
import json
import lzma
import pathlib
import re
import subprocess
import tarfile

import av
import numpy as np
import soundfile

RATE = 16000
LIST = pathlib.Path(__file__).parent / "pack.jsonl.xz"
AUDIO = {".wav", ".flac", ".sph", ".mp3", ".ogg", ".m4a"}

stem = lambda path: path.stem
joined = lambda path: f"{path.parent.name.replace(' ', '_')}-{path.stem.replace('.', '_')}"
prefixed = lambda prefix: lambda path: f"{prefix}-{path.stem.replace('.', '_')}"

# Corpus: licence, and for each repository the folder of its recordings and the name that a recording has in the list.
CORPORA = {
    "alphanumeric-accents": ("MIT", [("Sakshee5/alphanumeric-audio-dataset", "audio_data", joined)]),
    "an4": ("CMU, BSD-like", [("cmusphinx/an4", "wav", stem)]),
    "custom-commands": ("CC BY 4.0", [("ShawnHymel/custom-speech-commands-dataset", "custom_keywords", joined)]),
    "emodb": ("CC0 1.0", [("hkveeranki/speech-emotion-recognition", "dataset", stem)]),
    "emogator": ("Apache-2.0", [("fredbuhl/EmoGator", "data/mp3", stem)]),
    "free-spoken-digits": ("CC BY-SA 4.0", [("Jakobovski/free-spoken-digit-dataset", "recordings", stem)]),
    "librispeech": (
        "CC BY 4.0",
        [("hooria-malik/speech-preprocessing-librispeech", "test-clean", stem), ("Jenny-Smolensky/LibriSpeechFilesParser", "sample_data_libriSpeech/audio", stem)],
    ),
    "mycroft-wake-words": ("public domain", [("MycroftAI/Precise-Community-Data", "", stem)]),
    "non-speech": (
        "named in each row",
        [
            ("londonreturns/ESC-50_Sound_Classification", "", prefixed("esc10")),
            ("sonic-pi-net/sonic-pi", "etc/samples", prefixed("sonicpi")),
            ("luanti-org/minetest_game", "mods", prefixed("minetest")),
            ("akx/Notifications", "OGG", prefixed("akx")),
            ("MycroftAI/Precise-Community-Data", "not-wake-words/noises", prefixed("mycroft")),
        ],
    ),
    "picovoice-barista": ("Apache-2.0", [("Picovoice/speech-to-intent-benchmark", "data/speech/clean", stem)]),
    "picovoice-wake-words": ("Apache-2.0", [("Picovoice/wake-word-benchmark", "audio", joined)]),
    "speech-commands-3": ("CC BY 4.0", [("manashmndl/DeadSimpleSpeechRecognizer", "data", joined)]),
    "speechocean762": ("free for commercial and non-commercial use (its README)", [("jimbozhang/speechocean762", "WAVE", stem)]),
}


def folder(clones, repository):
    return clones / repository.replace("/", "+")


def clone(clones):
    """Clones what is not there yet, without history."""
    clones.mkdir(parents=True, exist_ok=True)
    for repository in sorted({r for _, parts in CORPORA.values() for r, _, _ in parts}):
        if not folder(clones, repository).exists():
            subprocess.run(["git", "clone", "--depth", "1", f"https://github.com/{repository}", str(folder(clones, repository))], check=True)


def recordings(clones, corpus):
    """Files by the name that they have in the list."""
    found = {}
    for repository, inside, name in CORPORA[corpus][1]:
        root = folder(clones, repository) / inside
        for archive in root.rglob("bg_noise*.tar.gz"):  # the only recordings that are packed
            unpacked = archive.parent / "unpacked"
            if not unpacked.exists():
                with tarfile.open(archive) as tar:
                    tar.extractall(unpacked, filter="data")
        for path in sorted(root.rglob("*")):
            if path.suffix.lower() in AUDIO:
                found.setdefault(name(path), path)
    return found


def transcripts(clones, corpus):
    """Words by the name of the recording, for the corpora that keep them in files of their own."""
    words = {}
    roots = [folder(clones, repository) for repository, _, _ in CORPORA[corpus][1]]
    if corpus == "librispeech":
        lines = [line for root in roots for path in root.rglob("*.trans.txt") for line in path.read_text().splitlines()]
        words = dict(line.split(" ", 1) for line in lines)
    elif corpus == "speechocean762":
        lines = [line for part in ("train", "test") for line in (roots[0] / part / "text").read_text().splitlines()]
        words = dict(line.split("\t", 1) for line in lines)
    elif corpus == "an4":
        lines = [line for part in ("train", "test") for line in (roots[0] / f"etc/an4_{part}.transcription").read_text().splitlines()]
        words = {m[2]: re.sub(r"</?s>", "", m[1]).strip() for line in lines if (m := re.match(r"(.*)\((.*)\)\s*$", line))}
    return {name: text.lower() for name, text in words.items()}


def decode(path):
    """float32 samples, 16 kHz mono."""
    resampler = av.AudioResampler(format="flt", layout="mono", rate=RATE)
    with av.open(str(path)) as container:
        frames = [out for frame in container.decode(audio=0) for out in resampler.resample(frame)]
        frames += resampler.resample(None)
    return np.concatenate([f.to_ndarray().reshape(-1) for f in frames])


def make(clones, out, corpora):
    rows = [json.loads(line) for line in lzma.open(LIST, "rt", encoding="utf8")]
    table = ["| folder | source repositories | licence |", "|---|---|---|"]
    for corpus in corpora:
        licence, parts = CORPORA[corpus]
        table.append(f"| {corpus} | {'; '.join(r for r, _, _ in parts)} | {licence} |")
        found, words = recordings(clones, corpus), transcripts(clones, corpus)
        orders = json.loads((folder(clones, parts[0][0]) / "data/label/label.json").read_text()) if corpus == "picovoice-barista" else {}
        kept, missing = [], 0
        for row in rows:
            source, _, name = row["audio_filepath"].split("/")
            name = name.removesuffix(".ogg")
            if source != corpus:
                continue
            if name not in found:
                missing += 1
                continue
            row = row | dict(audio_filepath=f"audio/{name}.ogg")
            if name in words:
                row["text"] = words[name]
            elif row["task"] == "keyword-spotting":
                row.setdefault("text", row["target"])
            elif corpus == "picovoice-barista":
                order = orders[f"{name}.wav"]
                order["slots"] = {slot: value.strip() for slot, value in order["slots"].items()}
                row |= dict(target=json.dumps(order, sort_keys=True), labels=order)
            samples = decode(found[name])
            path = out / corpus / row["audio_filepath"]
            path.parent.mkdir(parents=True, exist_ok=True)
            with soundfile.SoundFile(path, "w", RATE, 1, format="OGG", subtype="VORBIS", compression_level=0.8) as file:
                for begin in range(0, len(samples), RATE):  # libsndfile needs small pieces
                    file.write(samples[begin : begin + RATE])
            kept.append(row | dict(duration=round(len(samples) / RATE, 3)))
        (out / corpus / "manifest.jsonl").write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in kept), encoding="utf8")
        print(corpus, len(kept), "recordings", round(sum(r["duration"] for r in kept) / 60, 1), "min;", missing, "not found", flush=True)
    (out / "README.md").write_text("# Real human recordings\n\n" + "\n".join(table) + "\n", encoding="utf8")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("what", choices=["clone", "make"])
    parser.add_argument("--clones", type=pathlib.Path, required=True)
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("data/real-speech"))
    parser.add_argument("--corpora", nargs="*", choices=list(CORPORA), default=list(CORPORA))
    args = parser.parse_args()
    if args.what == "clone":
        clone(args.clones)
    else:
        make(args.clones, args.out, args.corpora)


if __name__ == "__main__":
    main()
