"""How much memory a full-size checkpoint takes to load, against the bytes of its tensors.

    python scripts/bench/load.py [--encoder DIR] [SIZE] [PRECISION ...]      SIZE: t5-xl (default, 5.7 GB on disk), t5-large, t5-base

Makes a random sharded bf16 checkpoint of that size in a temporary folder (below $TMPDIR), opens it in a process of its own
for every precision (default: bf16), runs it once, prints what the kernel says was the peak, and removes the folder.
With --encoder a speech encoder is opened beside it in the same process, and counted in.
Needs the example built: `cargo build --release --example load` ($SPEECHVERSE_LOAD names another binary). Standard library only.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BOUND = 1.15  # of the tensors' bytes, whole process


def main(*words):
    encoder = []
    if words[:1] == ("--encoder",):
        encoder, words = [words[1]], words[2:]
    size, *precisions = words or ("t5-xl",)
    binary = os.environ.get("SPEECHVERSE_LOAD", str(ROOT / "target" / "release" / "examples" / "load"))
    worst = 0.0
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([binary, "make", folder, size], check=True)
        for precision in precisions or ["bf16"]:
            words = [binary, "open", folder, precision, *encoder]
            result = subprocess.run(words, check=True, capture_output=True, text=True)
            found = json.loads(result.stdout)
            share = found["peak_over_tensors"]
            # f32 models made from bf16 files are as large as their own tensors.
            print(f"{size} {precision}: {found['tensor_bytes'] / 1e9:.3f} GB of tensors, peak "
                  f"{found['peak_after_load'] / 1e9:.3f} GB after loading ({found['load_seconds']:.2f} s), "
                  f"{found['peak_after_run'] / 1e9:.3f} GB after running ({found['run_seconds']:.2f} s): {share:.3f} of the tensors "
                  f"({found['peak_over_tensors_without_program']:.3f} without the program itself)")
            worst = max(worst, share)
    return worst > BOUND


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
