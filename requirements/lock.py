"""Makes the locks next to this file: hashes for every file, no addresses. Run by `./inv lock`.

uv resolves once for Python 3.11 to 3.13 and every platform, but for tflite.txt, train.txt and tensorflow.txt; it lives in a temporary venv, not in the project's own.
"""

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
UV = "uv==0.13.9"
UNIVERSAL = ["--universal", "--fork-strategy", "fewest"]
IMAGE = [word for extra in ("onnx", "litert", "openvino", "camera", "modbus") for word in ("--extra", extra)]
LOCKS: dict[str, list[str]] = {
    "core": UNIVERSAL,
    "dev": [*UNIVERSAL, "--extra", "dev"],
    # Linux alone: litert-torch's converter has no wheels elsewhere that agree with the others
    "train": ["--python-platform", "linux", "--extra", "train"],
    "tensorflow": ["--python-platform", "linux", "--extra", "tensorflow"],
    # for Python 3.11 and Linux alone, which is where tflite-runtime still has wheels
    "tflite": ["--python-platform", "linux", "--extra", "test-tflite"],
    # what goes into a gateway's image, for the Python and the glibc of each Debian suite
    "image-trixie": ["--python-platform", "aarch64-manylinux_2_40", *IMAGE],
    "image-bookworm": ["--python-platform", "aarch64-manylinux_2_36", *IMAGE],
}
PYTHON = {"image-trixie": "3.13"}  # of a lock that is not for 3.11
HEADER = """\
# Made by ./inv lock from pyproject.toml. Install with: pip install --require-hashes -r requirements/{name}.txt
"""
TRAIN_NOTE = """\
# On Linux torch is PyTorch's CPU build, as the public index has only the CUDA build, which needs several GB more.
# pip must see a folder or index that has torch 2.13.0+cpu; the hash here is that of the file for Python 3.11, x86-64.
"""
# The CPU build's files that were tried; a file for another Python or processor adds its line here.
TORCH_CPU_HASHES = ["sha256:6746dbcbeb526eb61330b76b41ff1b4eb848951103a892eeb080dfa2b264667b"]
GPU_ONLY = re.compile(r"(nvidia|cuda|triton)\b")
ADDRESS = re.compile(r"https?:|file:|--index-url|--extra-index|--find-links|(?<=\s)/\w+")


def compile_lock(uv: str, name: str, options: list[str]) -> None:
    """Resolve one lock; pins that still fit are kept unless `--upgrade` is among the options."""
    target = HERE / f"{name}.txt"
    # This machine's own indexes and folders must not leak into a lock that others install from.
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("UV_", "PIP_"))}
    command = [
        *(uv, "pip", "compile", "--quiet", "--no-config"),
        *(
            "--python-version",
            PYTHON.get(name, "3.11"),
            "--generate-hashes",
            "--no-emit-index-url",
            "--no-annotate",
            "--no-header",
        ),
        *(
            "--constraints",
            "requirements/constraints.txt",
            "--output-file",
            str(target.relative_to(HERE.parent)),
        ),
        *(*options, "pyproject.toml"),
    ]
    subprocess.run(command, cwd=HERE.parent, env=environment, check=True)
    text = target.read_text()
    header = HEADER.format(name=name)
    if name == "train":
        text, header = cpu_only(text), header + TRAIN_NOTE
    text = header + "".join(line for line in text.splitlines(keepends=True) if not line.startswith("#"))
    if leak := ADDRESS.search("".join(text.splitlines(keepends=True)[1:])):
        raise SystemExit(f"{target.name}: an address or path leaked into the lock: {leak.group()!r}")
    target.write_text(text)


def cpu_only(lock: str) -> str:
    """Drop what only CUDA needs and ask for the CPU build of torch where the index would give CUDA's."""
    kept = []
    for block in re.split(r"(?m)^(?=[a-z0-9])", lock):
        if GPU_ONLY.match(block):
            continue
        if found := re.match(r"torch==([\w.]+)", block):
            hashes = " \\\n".join(f"    --hash={item}" for item in TORCH_CPU_HASHES)
            kept.append(f"torch=={found[1]}+cpu ; sys_platform == 'linux' \\\n{hashes}\n")
            block = block.replace(found[0], f"{found[0]} ; sys_platform != 'linux'", 1)
        kept.append(block)
    return "".join(kept)


def main(options: list[str]) -> None:
    with tempfile.TemporaryDirectory(prefix="octogate-lock-") as folder:
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        subprocess.run([f"{folder}/bin/pip", "install", "--quiet", UV], check=True)
        for name, extras in LOCKS.items():
            print(f"octogate: locking requirements/{name}.txt", flush=True)
            compile_lock(f"{folder}/bin/uv", name, [*extras, *options])


if __name__ == "__main__":
    main(sys.argv[1:])
