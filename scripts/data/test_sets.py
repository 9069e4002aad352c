"""The test sets of the model's table, and the validation sets by which settings are chosen, drawn from the imported manifests.

    python scripts/data/test_sets.py --manifests data/manifests --demo data/demo --out data/tests --choice data/choice

Writes OUT/NAME.jsonl and CHOICE/NAME.jsonl. A set that is larger than its limit is a random sample of it, always the same one of the same rows.
`scripts/eval_shipped.sh` asks the shipped version about all of OUT.
"""

import argparse
import json
import pathlib
import random

from real_speech import write_manifest

# name: manifests (`demo/` marks those of the synthetic domains), its domain where it is one of several, most rows
TESTS = {
    "asterisk": (["demo/asterisk"], None, None),
    "librispeech": (["asr_test"], "librispeech", 120),
    "librivox": (["demo/librivox"], None, None),
    "learners": (["asr_test"], "speechocean762", 120),
    "home": (["demo/test_home"], None, None),
    "everyday": (["demo/test_everyday"], None, None),
    "open": (["demo/test_open"], None, None),
    "padded": (["asr_padded_test"], None, None),
    "slots": (["slots_test"], None, None),
    "slots_slurp": (["slots_slurp_test"], None, 60),
    "intent": (["intent_test"], None, None),
    "intent_all": (["intent_all_test"], None, 150),
    "command": (["command_test"], None, 150),
    "keyword_search": (["keyword_search_asterisk_test"], None, None),
    "keywords": (["keywords_asterisk_test"], None, None),
    "speech_detection": (["speech_detection_test"], None, None),
    "speaker_count": (["speaker_count_test"], None, None),
    "emotion": (["emotion_test"], None, None),
    "vocal_burst": (["vocal_burst_test"], None, None),
    "age_group": (["age_group_test"], None, 100),
    "native_english": (["native_english_test"], None, 60),
    "question": (["question_test"], None, None),
    "nothing_said": (["asr_empty_test", "asr_silence_test"], None, None),
}
CHOICES = {
    "librispeech": (["asr_valid"], "librispeech", 60),
    "learners": (["asr_valid"], "speechocean762", 100),
    "synthetic": (["demo/valid"], None, None),
    "padded": (["asr_padded_valid"], None, 40),
    "slots": (["slots_valid"], None, None),
    "intent": (["intent_valid"], None, None),
    "command": (["command_valid"], None, None),
    "keyword_search": (["keyword_search_read_valid"], None, 80),
    "speech_detection": (["speech_detection_valid"], None, None),
    "speaker_count": (["speaker_count_valid"], None, None),
    "emotion": (["emotion_valid"], None, None),
    "age_group": (["age_group_valid"], None, None),
    "native_english": (["native_english_valid"], None, None),
    "nothing_said": (["asr_empty_valid", "asr_silence_valid"], None, None),
}


def rows(path):
    """The rows of a manifest, their recordings by absolute paths."""
    with open(path, encoding="utf8") as file:
        found = [json.loads(line) for line in file]
    return [row | dict(audio_filepath=str((path.parent / row["audio_filepath"]).resolve())) for row in found]


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--manifests", type=pathlib.Path, required=True)
    parser.add_argument("--demo", type=pathlib.Path, required=True)
    parser.add_argument("--out", type=pathlib.Path, required=True)
    parser.add_argument("--choice", type=pathlib.Path, required=True)
    args = parser.parse_args()
    for sets, out, kind in ((TESTS, args.out, "final"), (CHOICES, args.choice, "choice")):
        out.mkdir(parents=True, exist_ok=True)
        for name, (manifests, domain, most) in sets.items():
            folders = [(args.demo if m.startswith("demo/") else args.manifests) / f"{m.removeprefix('demo/')}.jsonl" for m in manifests]
            missing = [str(path) for path in folders if not path.exists()]
            if missing:
                print(f"{name}: left out, {', '.join(missing)} is not there")
                continue
            found = [row for path in folders for row in rows(path) if domain in (None, row.get("domain"))]
            if most is not None and len(found) > most:
                random.Random(f"{kind}/{name}").shuffle(found)
                found = found[:most]
            write_manifest(out / f"{name}.jsonl", found)
            print(f"{name}: {len(found)} rows, {sum(row['duration'] for row in found) / 60:.1f} min")


if __name__ == "__main__":
    main()
