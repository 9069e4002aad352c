"""Adapter versions made of others, without training: means of weights, parts of several versions, LoRA of another rank.

    python scripts/adapters.py make data/adapters/mean-9 --from data/adapters/demo-0008 --mean adapter data/adapters/tasks-9 0.5
    python scripts/adapters.py make data/adapters/demo-0009 --from data/adapters/tasks-10 --take summary data/adapters/demo-0008 --mean summary data/adapters/summary-7 0.5
    python scripts/adapters.py make data/adapters/wide --from data/adapters/demo-0009 --rank 64

`make OUT --from BASE` copies BASE, then changes parts in the order given. Parts: `adapter` (convolutions, layer mix and CTC head), `summary`, `sentence`,
`lora`. `--take PART OTHER` takes the part of OTHER, `--mean PART OTHER SHARE` the mean with it, SHARE of which is OTHER's. `--rank R` is LoRA of rank R: more
rows that do nothing yet, or the best approximation of each product with fewer (its largest singular values). Values become bf16, but for scalars and the layer mix. Digests in the
manifest are made anew. Needs torch and safetensors.
"""

import argparse
import hashlib
import json
import pathlib
import shutil
import sys

import torch
from safetensors import safe_open
from safetensors.torch import save_file

FILES = {"adapter": "adapter.safetensors", "summary": "adapter.safetensors", "sentence": "adapter.safetensors", "lora": "lora/adapter_model.safetensors"}
SMALL = 100
CONFIG = "lora/adapter_config.json"


def read(path):
    """Tensors and metadata of a file."""
    with safe_open(path, "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, dict(file.metadata() or {})


def rounded(x):
    """As a published version keeps it: bf16, but for integers, scalars and the layer mix."""
    return x.to(torch.bfloat16) if x.is_floating_point() and x.numel() >= SMALL else x


def belongs(name, part):
    """Whether a tensor is of the part."""
    head = name.split(".")[0]
    return part == "lora" or (head == part if part != "adapter" else head not in ("summary", "sentence"))


def mix(out, part, other, share):
    """Puts the mean of a part with that of `other` into the version at `out`."""
    tensors, metadata = read(out / FILES[part])
    theirs, _ = read(other / FILES[part])
    names = [name for name in tensors if belongs(name, part)]
    if not names or any(name not in theirs or theirs[name].shape != tensors[name].shape for name in names):
        sys.exit(f"{other}: its {part} is not of the form that {out} has")
    for name in names:
        if not tensors[name].is_floating_point():
            if not torch.equal(tensors[name], theirs[name]):
                sys.exit(f"{other}: its `{name}` differs, and has no mean")
            continue
        tensors[name] = rounded(share * theirs[name].float() + (1 - share) * tensors[name].float())
    save_file(tensors, out / FILES[part], metadata=metadata)


def with_rank(out, rank):
    """LoRA of rank `rank`."""
    tensors, metadata = read(out / FILES["lora"])
    config = json.loads((out / CONFIG).read_text())
    old, scale = config["r"], config["lora_alpha"] / config["r"]
    random = torch.Generator().manual_seed(17)
    for name in [name for name in tensors if "lora_A" in name]:
        a, pair = tensors[name].double(), name.replace("lora_A", "lora_B")  # [r, in], [out, r]
        b = tensors[pair].double()
        if rank >= old:
            more = (torch.rand(rank - old, a.shape[1], generator=random, dtype=torch.double) * 2 - 1) / a.shape[1] ** 0.5
            a, b = torch.cat([a, more]), torch.cat([b, b.new_zeros(b.shape[0], rank - old)], 1)
        else:
            (qb, rb), (qa, ra) = torch.linalg.qr(b), torch.linalg.qr(a.T)
            u, values, v = torch.linalg.svd(rb @ ra.T)
            root = values[:rank].sqrt()
            b, a = qb @ u[:, :rank] * root, (root[:, None] * v[:rank]) @ qa.T
        tensors[name], tensors[pair] = (x.to(torch.bfloat16).contiguous() for x in (a, b))
    alpha = scale * rank
    config |= dict(r=rank, lora_alpha=int(alpha) if float(alpha).is_integer() else alpha)
    (out / CONFIG).write_text(json.dumps(config, indent=2) + "\n")
    save_file(tensors, out / FILES["lora"], metadata=metadata)


class Step(argparse.Action):
    """Keeps the steps in the order in which they stand."""

    def __call__(self, parser, namespace, values, option=None):
        namespace.steps = [*(namespace.steps or []), (self.dest, values)]


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    make = parser.add_subparsers(required=True).add_parser("make", help="a version out of others")
    make.add_argument("out", type=pathlib.Path)
    make.add_argument("--from", dest="base", type=pathlib.Path, required=True)
    make.add_argument("--take", nargs=2, metavar=("PART", "OTHER"), action=Step)
    make.add_argument("--mean", nargs=3, metavar=("PART", "OTHER", "SHARE"), action=Step)
    make.add_argument("--rank", type=int, action=Step)
    make.set_defaults(steps=None)
    args = parser.parse_args()
    if args.out.exists():
        sys.exit(f"{args.out} is there already")
    shutil.copytree(args.base, args.out)
    made_of = [args.base.name]
    for kind, values in args.steps or []:
        if kind == "rank":
            with_rank(args.out, values)
            made_of.append(f"rank {values}")
            continue
        part, other, share = values[0], pathlib.Path(values[1]), float(values[2]) if kind == "mean" else 1.0
        if part not in FILES:
            sys.exit(f"`{part}` is no part: {', '.join(FILES)}")
        mix(args.out, part, other, share)
        made_of.append(f"{part} {share} of {other.name}")
    # Whatever is not mixed is rounded too, as all values of a published version are.
    for file in sorted(set(FILES.values())):
        if (args.out / file).exists():
            tensors, metadata = read(args.out / file)
            save_file({name: rounded(x) for name, x in tensors.items()}, args.out / file, metadata=metadata)
    manifest = json.loads((args.out / "manifest.json").read_text())
    manifest["version"] = args.out.name
    manifest["files"] = {
        str(path.relative_to(args.out)): {"bytes": path.stat().st_size, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
        for path in sorted(args.out.rglob("*"))
        if path.is_file() and path.name != "manifest.json"
    }
    (args.out / "manifest.json").write_text(json.dumps(manifest, indent=1, ensure_ascii=False) + "\n")
    print(args.out, "=", "; ".join(made_of), sum(path.stat().st_size for path in args.out.rglob("*") if path.is_file()) / 1e6, "MB")


if __name__ == "__main__":
    main()
