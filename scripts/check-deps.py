#!/usr/bin/env python3
"""Lists dependencies that a manifest declares and no source file of its package names.

    scripts/check-deps.py [FOLDER]

Looks at every package of the workspace: `[dependencies]` in what is built, `[dev-dependencies]` in tests, benches and
examples too, `[workspace.dependencies]` in the packages' manifests. A dependency that is there for another reason (a
feature of a dependency's dependency) is named, with the reason, in `[package.metadata.check-deps]` as `crate = "reason"`.
Exit status 1 when one is unused, or an exception is no longer needed.
"""
import pathlib
import re
import sys
import tomllib


def code(folders):
    """The text of all Rust files in the folders, without comments and without string contents that look like paths."""
    texts = []
    for folder in folders:
        files = [folder] if folder.is_file() else sorted(folder.rglob("*.rs"))
        for path in files:
            # A doc test is code, so `///` and `//!` lines stay.
            lines = path.read_text(encoding="utf-8").splitlines()
            texts.append("\n".join(line for line in lines if not re.match(r"\s*//(?![/!])", line)))
    return "\n".join(texts)


def is_named(crate, text):
    name = re.escape(crate.replace("-", "_"))
    return re.search(rf"(?<![\w:]){name}(::|!)|\b(use|extern crate) {name}\b|(?<![\w:])::{name}::", text)


def main():
    root = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else pathlib.Path(__file__).parent.parent)
    workspace = tomllib.loads((root / "Cargo.toml").read_text())
    faults, inherited = [], set()
    for member in workspace["workspace"]["members"]:
        folder = root / member
        manifest = tomllib.loads((folder / "Cargo.toml").read_text())
        excused = manifest["package"].get("metadata", {}).get("check-deps", {})
        built = [folder / "src"]
        tests = [folder / name for name in ("tests", "benches", "examples")]
        script = [folder / manifest["package"].get("build", "build.rs")]
        tables = [("dependencies", built), ("dev-dependencies", built + tests), ("build-dependencies", script)]
        for table, folders in tables:
            text = code([path for path in folders if path.exists()])
            for crate, how in manifest.get(table, {}).items():
                if isinstance(how, dict) and how.get("workspace"):
                    inherited.add(crate)
                used = is_named(crate, text)
                if not used and crate not in excused:
                    faults.append(f"{member}/Cargo.toml: [{table}] {crate} is used by no source file")
                if used and crate in excused:
                    faults.append(f"{member}/Cargo.toml: {crate} is excused in [package.metadata.check-deps], but used")
    for crate in workspace["workspace"]["dependencies"]:
        if crate not in inherited:
            faults.append(f"Cargo.toml: [workspace.dependencies] {crate} is inherited by no package")
    for fault in faults:
        print(fault)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
