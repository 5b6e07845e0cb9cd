"""The page's files: whole, from this server only, and made without markup from the gateway's words."""

from __future__ import annotations

import re

import pytest

from gateway.panel import server

HTML = (server.HERE / "page.html").read_text()
FILES = {path: (server.HERE / name).read_text() for path, (name, _) in server.ASSETS.items()}
NAMESPACE = "http://www.w3.org/2000/svg"  # a name, never fetched


@pytest.mark.parametrize("path", FILES)
def test_nothing_comes_from_elsewhere(path: str) -> None:
    text = FILES[path].replace(NAMESPACE, "")
    assert re.findall(r"(?:https?:)?//[a-z0-9.-]+\.[a-z]{2,}", text, re.IGNORECASE) == []
    assert "@import" not in text
    assert re.findall(r"url\((?!#)", text) == []


def test_every_file_that_is_named_is_served() -> None:
    named = re.findall(r'(?:src|href)="([^"#:]+)"', HTML)
    named += re.findall(r'from "\./([^"]+)"', FILES["/page.js"])
    known = {*server.ASSETS, "/api/status", "/metrics"}
    assert {f"/{name}" for name in named} <= known
    assert {"/page.js", "/tools.js", "/page.css"} <= {f"/{name}" for name in named}


def test_every_element_the_script_asks_for_is_on_the_page() -> None:
    asked = set(re.findall(r'\$\("([\w-]+)"\)', FILES["/page.js"])) | set(
        re.findall(r'single\("([\w-]+)"\)', FILES["/page.js"])
    )
    ids = re.findall(r'id="([\w-]+)"', HTML)
    assert asked <= set(ids)
    assert len(ids) == len(set(ids))
    labels = re.findall(r'aria-labelledby="([\w-]+)"', HTML)
    assert set(labels) <= set(ids)


def test_the_policy_allows_the_page_as_it_is() -> None:
    assert not re.search(r"<script(?![^>]*\bsrc=)", HTML)
    assert not re.search(r"<style|\sstyle=|\son[a-z]+=", HTML)
    scripts = FILES["/page.js"] + FILES["/tools.js"]
    for word in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "new Function"):
        assert word not in scripts


def test_dark_and_light_and_narrow_are_provided_for() -> None:
    css = FILES["/page.css"]
    assert "prefers-color-scheme: dark" in css
    assert re.search(r"max-width: \d+px", css)
    assert 'name="viewport"' in HTML
    assert 'lang="en"' in HTML


def test_unsigned_models_and_unsafe_settings_are_shown() -> None:
    """What the page makes of `signed` and `warnings`; tests/integration/test_unsigned.py sees that they are sent."""
    script = FILES["/page.js"]
    assert 'x.signed ? "signed" : "unsigned", x.signed ? "ok" : "bad"' in script
    assert '$("warnings").hidden = !s.warnings?.length' in script
    assert re.search(r'<section [^>]*id="warnings" aria-label="Unsafe settings"', HTML)
