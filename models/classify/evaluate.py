"""The figures of the card, on pictures of the registries: `python -m models.classify.evaluate`."""

from __future__ import annotations

import argparse
from pathlib import Path

from gateway.errors import ModelError
from gateway.infer.candidate import BACKENDS
from models import kit
from models.classify import fetch


def main() -> None:
    parser = argparse.ArgumentParser(description="Name pictures with known content and write the card's figures.")
    parser.add_argument("--bundle", type=Path, default=fetch.BUNDLE)
    parser.add_argument("--dry", action="store_true", help="print the figures, leave the card as it is")
    arguments = parser.parse_args()
    if not arguments.bundle.exists():
        raise ModelError(f"{arguments.bundle} is not there", hint="./inv models.build classify")
    first = kit.load(arguments.bundle, kit.trusted())
    pictures = fetch.known()
    rows, wrong = [], {}
    for variant in first.manifest.variants:
        backend = BACKENDS[variant.format][0]
        model = kit.load(arguments.bundle, kit.trusted(), backend=backend, file=variant.file)
        said = fetch.top(model, pictures)
        wrong[variant.file] = {
            name: said[name] for name, (_, words) in pictures.items() if not fetch.right(said[name], words)
        }
        rows.append(
            [variant.file, variant.precision, backend, f"{len(pictures) - len(wrong[variant.file])} of {len(pictures)}"]
        )
    missed = "; ".join(f"{name}: {label}" for name, label in wrong[first.variant.file].items()) or "none"
    lines = [
        f"Bundle digest: `{first.digest}` ({arguments.bundle.stat().st_size / 1e6:.1f} MB). Command: `./inv models.evaluate "
        f"classify`.",
        "",
        *kit.table(["variant", "precision", "runtime", "named rightly at once"], rows),
        "",
        f"Named wrongly by {first.variant.file}: {missed}.",
    ]
    print("\n".join(lines))
    if not arguments.dry:
        kit.write_figures(fetch.FOLDER / "README.md", lines)


if __name__ == "__main__":
    main()
