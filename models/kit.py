"""What the models' own scripts share: the signing key, `model.toml`, golden samples, the bundle, figures in a card."""

from __future__ import annotations

import argparse
import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from gateway.contract import Result
from gateway.errors import ModelError
from gateway.infer import golden
from gateway.infer.backend import Runner, load_each
from gateway.infer.backend import load as load_one
from gateway.infer.bundle import Bundle
from gateway.infer.candidate import defaults
from gateway.infer.manifest import Manifest, Variant
from gateway.infer.recipe import Recipe
from sdk.bundle import generate_key, load_key, pack
from sdk.optimise.cost import counted
from sdk.optimise.figures import Figure, Figures
from sdk.optimise.parity import runner, ways
from sdk.optimise.variants import Built
from sdk.registry import write_atomic

MODELS = Path(__file__).resolve().parent
BUILD = MODELS.parent / "build" / "models"
PROJECT_KEY = MODELS / "keys" / "octogate-models.pub.pem"
OWN_KEY = Path("~/.config/octogate/signing.key")

FIGURES_BEGIN = "<!-- figures: written by evaluate.py -->"
FIGURES_END = "<!-- end of figures -->"

Answerer = Callable[[bytes, str], Result]
# member below golden/ -> (bytes as they come from a source, media)
Samples = Mapping[str, tuple[bytes, str]]


# --- building -----------------------------------------------------------------------------------------------------


def add_arguments(parser: argparse.ArgumentParser, output: Path) -> None:
    """`--output` and `--key`, as every build has them."""
    parser.add_argument(
        "--output", type=Path, default=output, help=f"the bundle (default: {output.relative_to(MODELS.parent)})"
    )
    parser.add_argument(
        "--key", type=Path, default=OWN_KEY, help=f"private signing key (default: {OWN_KEY}, made at need)"
    )


def signing_key(path: Path, say: Callable[[str], None] = print) -> Ed25519PrivateKey:
    """The developer's own key; made at the first use, with word of what to do with its public half.

    Raises:
        ModelError: the file is there and is not a key.
    """
    path = path.expanduser()
    if path.exists():
        return load_key(path)
    public = path.with_name(path.name + ".pub.pem")
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    key = generate_key(path, public)
    say(f"made a signing key: {path} (keep it to yourself)")
    say(f'gateways that shall take your bundles need its public half: [trust] keys = [..., "{public}"]')
    return key


def own_public_key() -> list[Path]:
    """The public half of the developer's own key, where there is one."""
    public = OWN_KEY.expanduser().with_name(OWN_KEY.name + ".pub.pem")
    return [public] if public.is_file() else []


def trusted() -> list[Path]:
    """The keys whose bundles a model's own scripts take: the project's and the developer's."""
    return [PROJECT_KEY, *own_public_key()]


def read_spec(path: Path) -> dict[str, Any]:
    """`model.toml`: the manifest, without the golden samples that `build` adds.

    Raises:
        ModelError: not TOML.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise ModelError(f"{path}: not valid TOML: {error}", hint="mend that line") from error


def manifest(spec: Mapping[str, Any], golden: Sequence[Mapping[str, Any]] = ()) -> Manifest:
    """What a spec says; without golden samples one to try variants with, not to pack.

    Raises:
        ModelError: the spec is no manifest.
    """
    stated = golden or [{"input": "golden/none", "media": "none", "expected": "golden/none.json", "tolerance": {}}]
    try:
        return msgspec.convert({**spec, "golden": stated}, Manifest)
    except msgspec.ValidationError as error:
        raise ModelError(f"model.toml: {error}", hint="docs/bundle.md explains the keys") from error


def build(
    spec: Mapping[str, Any],
    files: Mapping[str, bytes],
    samples: Samples,
    tolerance: Mapping[str, float],
    output: Path,
    key: Ed25519PrivateKey | None,
    reference: Built | None = None,
) -> str:
    """Compute the golden answers, with `reference` or the first variant that runs here, and pack.

    Args:
        spec: see `read_spec`.
        files: the variants, the card and the notices.
        tolerance: by precision, for every golden sample.
        reference: what is right; it need not be in the bundle, as the fp32 original of an int8 bundle.

    Returns:
        The bundle's digest.

    Raises:
        ModelError: the spec is no manifest, or no variant runs here.
    """
    goldens = [
        {
            "input": f"golden/{name}",
            "media": media,
            "expected": f"golden/{Path(name).stem}.json",
            "tolerance": tolerance,
        }
        for name, (_, media) in samples.items()
    ]
    stated = manifest(spec, goldens)
    loaded = _answering(stated, reference) if reference else _first(stated, lambda name: files[name], "")
    members = dict(files)
    for sample, (data, media) in zip(stated.golden, samples.values(), strict=True):
        members[sample.input] = data
        members[sample.expected] = msgspec.json.encode(_rounded(loaded.answer(data, media))) + b"\n"
    output.parent.mkdir(parents=True, exist_ok=True)
    return pack(output, stated, members, key)


def _rounded(result: Result) -> Result:
    """To six digits: what a golden sample is compared with needs no more, and a diff of it stays readable."""
    plain = msgspec.to_builtins(result)

    def shorten(value: Any) -> Any:
        if isinstance(value, float):
            return round(value, 6)
        if isinstance(value, dict):
            return {name: shorten(item) for name, item in value.items()}
        if isinstance(value, list | tuple):
            return [shorten(item) for item in value]
        return value

    return msgspec.convert(shorten(plain), Result)


# --- running ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Loaded:
    """A model that runs here, without a worker around it."""

    manifest: Manifest
    variant: Variant
    recipe: Recipe
    runner: Runner
    digest: str = ""

    def answer(self, data: bytes, media: str) -> Result:
        """What the worker would answer."""
        return self.recipe.run(self.runner, data, media)


def load(
    path: Path, keys: Iterable[Path] = (), *, backend: str = "", file: str = "", allow_unsigned: bool = False
) -> Loaded:
    """Verify a bundle, load its first variant that runs here and check the golden samples, as a worker does.

    Args:
        backend: the only one to consider. file: the only variant.

    Raises:
        ModelError: it is damaged, not signed by one of `keys`, or does not run here.
    """
    with Bundle(path) as bundle:
        verified = bundle.verify(keys, allow_unsigned=allow_unsigned)
        loaded = _first(bundle.manifest, lambda name: bytes(bundle.member(name)), backend, file)
        golden.check(bundle, loaded.recipe, loaded.runner, loaded.variant.precision)
        return replace(loaded, digest=verified.digest)


def prove(path: Path) -> list[str]:
    """Check the golden samples with every variant on every runtime that is installed here; gives those.

    Raises:
        ModelError: one of them answers wrongly.
    """
    ran, wrong = [], []
    with Bundle(path) as bundle:
        recipe = Recipe(bundle.manifest)
        for candidate in defaults(bundle.manifest):
            try:
                _, variant, run = load_one(bundle.manifest, bundle.member, candidate)
            except ModelError:
                continue  # not installed; the gateway tells
            try:
                golden.check(bundle, recipe, run, variant.precision)
                ran.append(f"{variant.file} on {candidate.backend}")
            except ModelError as error:
                wrong.append(f"{variant.file} on {candidate.backend}: {error}")
    if wrong or not ran:
        raise ModelError(f"{path}: {'; '.join(wrong) or 'no runtime is installed'}", hint="do not ship it")
    return ran


def _answering(manifest: Manifest, built: Built) -> Loaded:
    return Loaded(manifest, built.variant, Recipe(manifest), runner(built, ways(built)[0]))


def open_variant(manifest: Manifest, members: Mapping[str, bytes], backend: str = "") -> Loaded:
    """A model that is not in a bundle yet, by its first variant that runs here.

    Raises:
        ModelError: none does.
    """
    return _first(manifest, lambda name: members[name], backend)


def _first(manifest: Manifest, read: Callable[[str], bytes], wanted: str, file: str = "") -> Loaded:
    recipe = Recipe(manifest)
    rejected: list[str] = []
    candidates = [each for each in defaults(manifest, backend=wanted) if file in ("", each.file)]
    for _, variant, run in load_each(manifest, read, candidates, rejected):
        return Loaded(manifest, variant, recipe, run)
    raise ModelError(f"model '{manifest.name}': no variant runs here: {'; '.join(rejected)}")


# --- figures ------------------------------------------------------------------------------------------------------


def evaluated(
    path: Path, headline: Sequence[str], metric: Callable[[Loaded], Mapping[str, float]], say: Callable[[str], None]
) -> Figures:
    """What every variant of a bundle reaches on every runtime that is installed here, for the report.

    Args:
        headline: the metrics to draw, the first of them against latency.
        metric: of a variant, on the test split; by name, more is better.
        say: hears of each before it is measured.

    Raises:
        ModelError: the bundle is damaged, not trusted, or runs nowhere here.
    """
    first, found = load(path, trusted()), []
    with Bundle(path) as bundle:
        members = {name: bytes(bundle.member(name)) for name in bundle.manifest.members()}
    for variant in first.manifest.variants:
        built = Built(variant, {name: members[name] for name in (variant.file, variant.weights) if name})
        for backend in ways(built):
            try:
                loaded = load(path, trusted(), backend=backend, file=variant.file)
            except ModelError as error:
                say(f"{built} on {backend} does not run here: {error}")
                continue
            say(f"{built} on {backend}")
            found.append(Figure(
                stage="base" if variant.precision == "fp32" else variant.precision, file=variant.file,
                precision=variant.precision, backend=backend, size=built.size, macs=counted(built),
                metrics={name: float(value) for name, value in metric(loaded).items()},
            ))  # fmt: skip
    return Figures(
        model=first.manifest.name, bundle=first.digest, bundle_bytes=path.stat().st_size, headline=tuple(headline),
        figures=tuple(found),
    )  # fmt: skip


# --- the card -----------------------------------------------------------------------------------------------------


def bundled_card(readme: Path) -> bytes:
    """The README as it goes into the bundle: without the figures, which name the digest of the finished bundle."""
    before, _, rest = readme.read_text(encoding="utf-8").partition(FIGURES_BEGIN)
    _, _, after = rest.partition(FIGURES_END)
    return f"{before}Beside this bundle's digest in the README of the model's folder.{after}".encode()


def write_figures(readme: Path, lines: Sequence[str]) -> None:
    """Replace what stands between the two marks of a card.

    Raises:
        ModelError: the marks are not there.
    """
    text = readme.read_text(encoding="utf-8")
    before, begin, rest = text.partition(FIGURES_BEGIN)
    _, end, after = rest.partition(FIGURES_END)
    if not begin or not end:
        raise ModelError(f"{readme}: no place for the figures", hint=f"add the lines {FIGURES_BEGIN} and {FIGURES_END}")
    block = "\n".join(["", *lines, ""])
    write_atomic(readme, f"{before}{begin}\n{block}\n{end}{after}".encode())


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """A Markdown table: the first column to the left, numbers to the right."""
    marks = ["---", *["---:"] * (len(head) - 1)]
    return ["| " + " | ".join(row) + " |" for row in [head, marks, *rows]]
