"""Paper forms in the demo: a desk on which work orders are laid, one after the other. The pictures are rendered ones."""

from __future__ import annotations

from pathlib import Path

from sdk.registry import ROOT

FOLDER = ROOT / "models" / "workorder"
SECONDS = 6  # that a sheet lies there; reading it takes about a second of one processor

TABLES = """
[[source]]
kind = "pictures"
name = "order-desk"
folder = "{pictures}"
fps = {fps:.3f}

[[model]]
name = "workorder"
bundle = "{bundle}"

[[pipeline]]
name = "work-orders"
source = "order-desk"
model = "workorder"
form = "{template}"
"""


def with_forms(config: str, bundle: Path) -> str:
    """The demo's config with the desk, and with the key in it that signed the recogniser (`<bundle>.key.pub.pem`)."""
    key = bundle.with_suffix(".key.pub.pem")
    trusted = config.replace('\nkeys = ["', f'\nkeys = ["{key}", "', 1)
    tables = TABLES.format(pictures=FOLDER / "examples", fps=1 / SECONDS, bundle=bundle, template=FOLDER / "order.toml")
    return trusted + tables
