"""Coverage-guided fuzzing of every parser that reads from a wire, by atheris (libFuzzer): each in a process of its own.

    python3.11 -m venv build/fuzz && build/fuzz/bin/pip install atheris -e '.[modbus]'
    build/fuzz/bin/python -m bench.fuzz                        60 s for each
    build/fuzz/bin/python -m bench.fuzz --seconds 600 --only framing,uf2 --json

atheris is no dependency of the project. A parser may refuse bytes with the errors of its docstring; anything else that it
raises, a run that takes longer than 10 s, or 1 GiB of memory ends its run: the input is written into the current folder,
and the exit status is 1. The parsers and what each may raise are in `bench/fuzz_targets.py`.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

MAX_BYTES = 4096
RUNS = re.compile(r"Done (\d+) runs in (\d+) second")
COVERED = re.compile(r"cov: (\d+) ft: (\d+) corp: (\d+)")


def fuzz(name: str, arguments: list[str]) -> None:
    """This process becomes the fuzzer of one parser; it ends with libFuzzer's exit status."""
    atheris: Any = importlib.import_module("atheris")
    with atheris.instrument_imports(include=["gateway", "firmware_tools", "tomllib"]):
        targets = importlib.import_module("bench.fuzz_targets")
    atheris.Setup([sys.argv[0], *arguments], targets.TARGETS[name])
    atheris.Fuzz()


def run(name: str, seconds: int, seed: bytes) -> dict[str, Any]:
    """One parser, in a process of its own."""
    with tempfile.TemporaryDirectory(prefix="octofuzz") as corpus:
        (Path(corpus) / "seed").write_bytes(seed)
        limits = [f"-max_total_time={seconds}", f"-max_len={MAX_BYTES}", "-timeout=10", "-rss_limit_mb=1024"]
        done = subprocess.run(
            [sys.executable, "-m", "bench.fuzz", "--target", name, *limits, corpus],
            stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, timeout=seconds + 120,
        )  # fmt: skip
    covered = COVERED.findall(done.stderr)
    runs = RUNS.search(done.stderr)
    edges, features, kept = map(int, covered[-1]) if covered else (0, 0, 0)
    found = {"target": name, "runs": int(runs[1]) if runs else 0, "edges": edges, "features": features, "inputs": kept}
    return found | {"status": done.returncode, "said": done.stderr[-3000:] if done.returncode or not runs else ""}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=int, default=60, help="for each parser")
    parser.add_argument("--only", default="", help="some of them, with commas")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--target", default="", help=argparse.SUPPRESS)
    args, rest = parser.parse_known_args()
    if args.target:
        fuzz(args.target, rest)
    if rest:
        parser.error(f"what is {rest[0]}?")
    if importlib.util.find_spec("atheris") is None:
        print("octogate: atheris is not installed here; `python -m bench.fuzz --help` says how", file=sys.stderr)
        return 2
    from bench.fuzz_targets import SEEDS, TARGETS

    names = args.only.split(",") if args.only else list(TARGETS)
    if unknown := [name for name in names if name not in TARGETS]:
        parser.error(f"no parser {unknown[0]!r}; there are: {', '.join(TARGETS)}")
    bad = 0
    for name in names:
        row = run(name, args.seconds, SEEDS.get(name, b""))
        bad += bool(row["status"] or not row["runs"])
        if args.json:
            print(json.dumps(row), flush=True)
        else:
            end = f"FAILED\n{row['said']}" if row["said"] else "clean"
            print(
                f"{name:14} {row['runs']:12,} runs  {row['edges']:5} edges  {row['inputs']:4} inputs kept  {end}",
                flush=True,
            )
    return int(bool(bad))


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    sys.exit(main())
