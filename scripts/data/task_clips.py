"""The clips of several tasks that the repository carries, from the test part of the real recordings; see make_pack.py.

    python scripts/data/task_clips.py --pack data/real-speech --out tests/fixtures/speech/tasks

Copies the Ogg files as they are, joins two for speaker counting, and writes tasks.jsonl with licence and origin. No voice of these is ever trained on.
"""

import argparse
import json
import pathlib
import shutil

import numpy as np
import soundfile

RATE = 16000
LIBRISPEECH = dict(licence="CC BY 4.0 (LibriSpeech; V. Panayotov, G. Chen, D. Povey, S. Khudanpur)", source="LibriSpeech test-clean")
BARISTA = dict(licence="Apache-2.0 (Picovoice)", source="Picovoice/speech-to-intent-benchmark")
WAKE_WORDS = dict(licence="Apache-2.0 (Picovoice)", source="Picovoice/wake-word-benchmark")
EMODB = dict(licence="CC0 1.0 (Berlin Database of Emotional Speech)", source="EmoDB: German, acted")
SLOTS = ["coffeeDrink", "milkAmount", "numberOfShots", "roast", "size", "sugarAmount"]
WORDS = ["alexa", "computer", "jarvis", "smart mirror", "snowboy", "view glass"]
CLIPS = [
    ("librispeech", "2830-3979-0012", LIBRISPEECH | dict(task="asr", text="the word of our god shall stand forever")),
    ("librispeech", "1995-1837-0021", LIBRISPEECH | dict(task="asr", text="the hope and dream of harvest was upon the land")),
    ("picovoice-barista", "7ce74879-f830-463a-86b4-8f901c16705a", BARISTA | dict(task="slots", target="coffeeDrink = coffee; numberOfShots = single shot; sugarAmount = brown sugar;", labels=SLOTS)),
    ("picovoice-barista", "0075d273-51bb-47cb-b323-4437bd0de029", BARISTA | dict(task="slots", target="coffeeDrink = coffee; roast = light roast; size = twelve ounce;", labels=SLOTS)),
    ("librispeech", "2830-3980-0018", LIBRISPEECH | dict(task="keyword_search", keyword="importance", target="yes")),
    ("librispeech", "1995-1836-0007", LIBRISPEECH | dict(task="keyword_search", keyword="weather", target="no")),
    ("picovoice-wake-words", "view_glass-1459404f-3e06-4d35-a251-51b3588acb7d", WAKE_WORDS | dict(task="command", target="view glass", labels=WORDS)),
    ("picovoice-wake-words", "computer-95c152b6-b51b-4c26-b57f-752313176b57", WAKE_WORDS | dict(task="command", target="computer", labels=WORDS)),
    ("emodb", "03b01Wa", EMODB | dict(task="emotion", target="angry")),
    ("emodb", "03b09Tc", EMODB | dict(task="emotion", target="sad")),
    ("librispeech", ("1995-1836-0011", "2830-3980-0020"), LIBRISPEECH | dict(task="speaker_count", target="two")),
    ("non-speech", "esc10-3-140774-A-10", dict(task="speech_detection", target="non-speech")),
    ("non-speech", "sonicpi-guit_em9", dict(task="asr", text="", no_speech=True)),
]


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--pack", type=pathlib.Path, required=True)
    parser.add_argument("--out", type=pathlib.Path, required=True)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    known = {}
    for corpus in {c for c, _, _ in CLIPS}:
        for line in open(args.pack / corpus / "manifest.jsonl", encoding="utf8"):
            row = json.loads(line)
            known[corpus, pathlib.Path(row["audio_filepath"]).stem] = row
    out = []
    for corpus, names, facts in CLIPS:
        names = names if isinstance(names, tuple) else (names,)
        found = [known[corpus, name] for name in names]
        assert all(row["split"] == "test" for row in found), names
        voices = [row.get("speaker") or row.get("speaker_cluster") or row["group"] for row in found]
        paths = [args.pack / corpus / row["audio_filepath"] for row in found]
        name = f"{facts['task'].replace('_', '-')}-{names[0][:20].rstrip('-')}.ogg"
        if len(names) == 1:
            shutil.copy(paths[0], args.out / name)
            (args.out / name).chmod(0o644)
            seconds = found[0]["duration"]
        else:
            gap = np.zeros(int(0.3 * RATE), np.float32)
            samples = np.concatenate([s for path in paths for s in (gap, soundfile.read(path, dtype="float32")[0])])
            with soundfile.SoundFile(args.out / name, "w", RATE, 1, format="OGG", subtype="VORBIS", compression_level=0.8) as file:
                for begin in range(0, len(samples), RATE):
                    file.write(samples[begin : begin + RATE])
            seconds = round(len(samples) / RATE, 3)
        if corpus == "non-speech":
            freesound = found[0]["labels"].get("freesound_id")
            licence = found[0]["licence"] + (f" (ESC-10 by K. J. Piczak, freesound {freesound})" if freesound else "")
            facts = facts | dict(licence=licence, source=found[0]["origin"])
        out.append(dict(audio_filepath=name, duration=seconds) | facts | dict(voices=voices, split="test"))
    (args.out / "tasks.jsonl").write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in out), encoding="utf8")


if __name__ == "__main__":
    main()
