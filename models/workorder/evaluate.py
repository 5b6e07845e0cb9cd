"""The figures of the card, on forms of the test split: `python -m models.workorder.evaluate`.

Nothing else reads the test split's fonts and seeds. Every form goes the whole way of the device: JPEG, registration,
cells, the bundle's recogniser, constrained fields, checks.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from models import kit
from models.workorder import digits, fetch, fonts
from models.workorder.measure import Measured, Seen, measure

FORMS = 40
DIGIT_FORMS = 20
COMMAND = "./inv models.evaluate workorder"


def share(right: int, of: int) -> str:
    return f"{right} of {of} ({right / of:.1%})" if of else "none"


def row(name: str, fields: Sequence[Seen]) -> list[str]:
    """All fields of a kind: exact before review, accepted, exact among those."""
    accepted = [field for field in fields if not field.read.doubt]
    return [
        name,
        share(sum(field.right for field in fields), len(fields)),
        share(len(accepted), len(fields)),
        share(sum(field.right for field in accepted), len(accepted)),
    ]


def figures(model: kit.Loaded, bundle: Path, measured: Measured, real: Sequence[tuple[str, str, bool]]) -> list[str]:
    """The lines of the card's figures."""
    fields = measured.fields
    styles = (("printed", "print"), ("handwriting-like", "hand"), ("tick boxes", "tick"))
    rows = [row(name, [field for field in fields if field.style == style]) for name, style in styles]
    rows += [
        row(f"in {font}", [f for f in fields if f.font == font]) for font in sorted({f.font for f in fields if f.font})
    ]
    rows.append(row("all", fields))
    took = sorted(measured.took)
    wrong = [f for f in fields if not f.right]
    told = ", ".join(
        f"{f.kind} `{f.truth}` as `{f.read.text}` ({f.font}, {'review' if f.read.doubt else 'accepted'})" for f in wrong
    )
    accepted = [(truth, read) for truth, read, sure in real if sure]
    return [
        f"Bundle digest: `{model.digest}` ({bundle.stat().st_size / 1e6:.1f} MB). Command: `{COMMAND}`, backend "
        f"{model.runner.description}.",
        f"{len(measured.took)} rendered forms, {measured.lost} of them not found on their pictures. Print in "
        f"{', '.join(fonts.PRINT['test'])}; handwriting-like in {', '.join(fonts.HAND['test'])}: fonts that neither the build "
        "nor the threshold has seen.",
        "",
        *kit.table(["fields", "exact before review", "accepted", "exact among accepted"], rows),
        "",
        f"Forms accepted as a whole: {share(measured.outcomes.count('accepted'), len(measured.outcomes))}.",
        f"Read wrongly: {told or 'none'}.",
        "",
        f"Real handwriting (MNIST, strings of {digits.LENGTH} digits in number cells): "
        f"{share(sum(truth == read for truth, read, _ in real), len(real))} exact before review; "
        f"{share(len(accepted), len(real))} accepted, of these {share(sum(t == r for t, r in accepted), len(accepted))} exact.",
        "",
        f"Time of a form of {len(fields) // max(1, len(took))} fields, 1920 x 1440 JPEG, one thread: median "
        f"{took[len(took) // 2]:.2f} s, slowest {took[-1]:.2f} s (x86_64, shared machine: an order of magnitude).",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description="Read the test split's forms and write the card's figures.")
    parser.add_argument("--bundle", type=Path, default=fetch.BUNDLE)
    parser.add_argument("--backend", default="", help="onnx or openvino (default: the bundle's first that runs here)")
    parser.add_argument("--dry", action="store_true", help="print the figures, leave the card as it is")
    arguments = parser.parse_args()
    model = kit.load(arguments.bundle, [kit.PROJECT_KEY, *kit.own_public_key()], backend=arguments.backend)
    measured = measure(model, "test", FORMS, say=print)
    lines = figures(model, arguments.bundle, measured, digits.measure(model, DIGIT_FORMS, say=print))
    print("\n".join(lines))
    if not arguments.dry:
        kit.write_figures(fetch.FOLDER / "README.md", lines)


if __name__ == "__main__":
    main()
