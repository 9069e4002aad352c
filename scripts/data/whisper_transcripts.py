"""What Whisper's own decoder makes of the clips of manifests: the first half of the cascade that a speech LLM is compared with.

    pip install faster-whisper jiwer librosa && ct2-transformers-converter --model models/whisper-base --output_dir data/whisper-base-ct2 --quantization int8 --copy_files tokenizer.json preprocessor_config.json
    python scripts/data/whisper_transcripts.py --model data/whisper-base-ct2 --out data/cascade data/manifests/slots_test.jsonl ...

Writes OUT/NAME.jsonl for each manifest NAME.jsonl: the same rows, `text` replaced by the transcript, so that the row "oracle transcript" of
`speechverse eval --cascade` is the cascade Whisper -> language model; and OUT/rows.jsonl with the transcripts of `asr` rows as answers of
another program, for `speechverse eval --rows`. Prints the word error rate of each set that says what was said (jiwer, lower case without punctuation).
"""

import argparse
import json
import pathlib
import time

import jiwer
import librosa
from faster_whisper import WhisperModel

from text import normalise


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("manifests", type=pathlib.Path, nargs="+")
    parser.add_argument("--model", required=True, help="a converted model folder")
    parser.add_argument("--out", type=pathlib.Path, required=True)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    model = WhisperModel(args.model, device="cpu", compute_type="int8", cpu_threads=args.threads)
    with open(args.out / "rows.jsonl", "w", encoding="utf8") as answers:
        for path in args.manifests:
            out, said, started, seconds = [], [], time.time(), 0.0
            for number, row in enumerate(map(json.loads, open(path, encoding="utf8"))):
                audio = path.parent / row["audio_filepath"]
                samples, _ = librosa.load(audio, sr=16_000, mono=True, offset=row.get("offset", 0.0), duration=row["duration"] if "offset" in row else None)
                seconds += len(samples) / 16_000
                segments, _ = model.transcribe(samples, language="en", beam_size=1, condition_on_previous_text=False)
                transcript = " ".join(segment.text.strip() for segment in segments).strip()
                if row.get("text"):
                    said.append(tuple(normalise(text) or text.lower() for text in (row["text"], transcript)))
                if row.get("task", "asr") == "asr":
                    answer = dict(id=f"{path.stem}/{number}", task="asr", set=path.stem, reference=row["text"], hypothesis=transcript)
                    answers.write(json.dumps(answer, ensure_ascii=False) + "\n")
                out.append(row | dict(audio_filepath=str(audio.resolve()), text=transcript))
            (args.out / path.name).write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in out), encoding="utf8")
            wer = f"WER {100 * jiwer.wer([a for a, _ in said], [b for _, b in said]):.1f} over {len(said)} clips" if said else "no references"
            print(f"{path.name}: {wer}; {seconds:.0f} s of audio in {time.time() - started:.0f} s", flush=True)


if __name__ == "__main__":
    main()
