"""`octogate form new | print | read`: a paper form's template made, printed, and tried on pictures at a desk."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from gateway.errors import ModelError, OctogateError

if TYPE_CHECKING:
    from gateway.contract import Result
    from gateway.infer.steps import Array

OK, FAILED = 0, 1
WHAT = "Paper forms: make a template from a blank one, print it, read filled-in ones"
NEW = """\
Write a template from a scan or photo of a blank form: markers, boxes and ruled lines are found; with --model the printed
labels name the fields. A draft: edit names, kinds and patterns, then try it with `octogate form read`.
"""
PRINT = "Write the form as a PDF with its markers, to be printed at 100 %."
READ = """\
Read pictures of filled-in forms as a gateway would, without one. Exit status: 0 every form is accepted, 1 one is to be
reviewed or is not on its picture, or an error; 2 misused or a template that cannot be used.
"""


def add_commands(commands: Any, epilog: str) -> None:
    """`octogate form` with its subcommands."""
    form = commands.add_parser("form", help=WHAT, description=WHAT, epilog=epilog)
    subs = form.add_subparsers(required=True, metavar="COMMAND")
    new = subs.add_parser("new", help="a template from a blank form's picture", description=NEW, epilog=epilog)
    new.add_argument("picture", type=Path, help="JPEG or PNG of the blank form")
    new.add_argument("template", type=Path, help="the TOML file to write; an existing one is kept")
    new.add_argument("--page", default="210x297", metavar="WxH", help="of the paper in mm; default: %(default)s")
    new.add_argument("--model", type=Path, metavar="BUNDLE", help="reads the labels")
    new.add_argument("--look", type=Path, metavar="FILE.png", help="write a picture of what was found")
    new.set_defaults(command=_new)
    printed = subs.add_parser("print", help="the form as PDF", description=PRINT, epilog=epilog)
    printed.add_argument("template", type=Path)
    printed.add_argument("-o", "--output", type=Path, help="default: beside the template, .pdf")
    printed.set_defaults(command=_print)
    read = subs.add_parser("read", help="read filled-in forms", description=READ, epilog=epilog)
    read.add_argument("template", type=Path)
    read.add_argument("pictures", type=Path, nargs="+", metavar="picture")
    read.add_argument("--model", type=Path, required=True, metavar="BUNDLE", help="the recogniser")
    read.add_argument("--key", type=Path, action="append", default=[], help="must have signed it; default: unverified")
    read.add_argument("--json", action="store_true", help="one JSON line a picture")
    read.set_defaults(command=_read)


def _new(args: argparse.Namespace) -> int:
    from gateway import form_scan, forms
    from gateway.infer import pictures

    if args.template.exists():
        raise OctogateError(f"{args.template} is there already", hint="name another file")
    width, _, height = args.page.partition("x")
    try:
        page = float(width), float(height)
    except ValueError as error:
        raise OctogateError(f"not a size of paper: '{args.page}'", hint="--page 210x297, in mm") from error
    if not all(20 <= side <= 2000 for side in page):
        raise OctogateError(f"not a size of paper: '{args.page}'", hint="20 to 2000 mm")
    picture = pictures.decode(_bytes(args.picture), 1 << 26)
    name = "".join(c if c.isascii() and c.isalnum() else "-" for c in args.template.stem.lower()).strip("-")[:40]
    template = form_scan.draft(picture, name or "form", page, _label_reader(args.model) if args.model else None)
    notes = (
        f"Drafted from {args.picture.name} by octogate form new. Edit names, kinds and patterns: docs/workorders.md."
    )
    args.template.write_text(forms.dumps(template, notes), encoding="utf-8")
    forms.load(args.template)
    if args.look:
        import cv2

        cv2.imwrite(str(args.look), form_scan.overlay(picture, template))
    markers = "four markers" if template.markers else "no markers: the paper's corners must be seen"
    print(f"{args.template}: {len(template.field)} fields, {markers}")
    return OK


def _print(args: argparse.Namespace) -> int:
    from gateway import form_print, forms

    output = args.output or args.template.with_suffix(".pdf")
    output.write_bytes(form_print.pdf(forms.load(args.template)))
    print(f"{output}: print it at 100 %")
    return OK


def _read(args: argparse.Namespace) -> int:
    from gateway import forms
    from gateway.analyse import workorder

    template = forms.load(args.template)
    answer = _answerer(args.model, args.key)
    accepted = True
    for path in args.pictures:
        data = _bytes(path)
        media = "image/png" if data[:1] == b"\x89" else "image/jpeg"
        result = workorder.judge(template, answer(data, media + forms.as_media(template)))
        accepted = accepted and result.label == workorder.ACCEPTED
        if args.json:
            print(msgspec.json.encode({"picture": str(path), "result": result}).decode())
        else:
            print(told(path, result))
    return OK if accepted else FAILED


def told(path: Path, result: Result) -> str:
    """A reading for people."""
    lines = [f"{path}: {result.label}"]
    for field in result.fields:
        doubt = f"  <- {field.doubt}" if field.doubt else ""
        lines.append(f"  {field.name:<16} {field.value or field.text or '-':<20} {field.confidence:4.2f}{doubt}")
    return "\n".join(lines)


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise OctogateError(f"{path}: cannot read it: {error.strerror}", hint="name a JPEG or PNG file") from error


def _answerer(bundle: Path, keys: list[Path]) -> Callable[[bytes, str], Result]:
    """The model of a bundle in this process: at a desk nothing else depends on it."""
    from gateway.infer.backend import load_each
    from gateway.infer.bundle import Bundle
    from gateway.infer.candidate import defaults
    from gateway.infer.recipe import Recipe, batch_of

    with Bundle(bundle) as opened:
        opened.verify(keys, allow_unsigned=not keys)
        manifest = opened.manifest
        recipe = Recipe(manifest)
        rejected: list[str] = []
        for candidate, _, runner in load_each(manifest, opened.member, defaults(manifest), rejected):
            batch = batch_of(manifest, candidate)
            return lambda data, media: recipe.run(runner, data, media, batch)
    raise ModelError(f"{bundle}: no variant runs here: {'; '.join(rejected)}", hint="install a runtime for it")


def _label_reader(bundle: Path) -> Callable[[Array], str]:
    import cv2

    answer = _answerer(bundle, [])

    def read(cut: Array) -> str:
        return answer(bytes(cv2.imencode(".png", cut)[1]), "image/png").text

    return read
