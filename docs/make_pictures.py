"""Makes the README's pictures from a real run of the demo: docs/images/demo.svg and docs/images/panel.png.

    python docs/make_pictures.py

Needs a Chromium (Debian: chromium) for the page; it is started headless and spoken to over its DevTools socket.
"""

from __future__ import annotations

import asyncio
import base64
import json
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import aiohttp

ROOT = Path(__file__).resolve().parents[1]
IMAGES = ROOT / "docs" / "images"
SECONDS = 60
LOOKED_S = 14.0  # the page is open for so long after the outage: its sparklines need time
WIDTH, HEIGHT = 1280, 1160
CHROMIUM = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--remote-debugging-port=0",
)  # fmt: skip


async def main() -> int:
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        print("docs/make_pictures.py: no Chromium; on Debian: apt-get install chromium", file=sys.stderr)
        return 1
    demo = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "sdk.demo", "--plain", "--seconds", str(SECONDS), "--record", str(IMAGES)),
        cwd=ROOT,
        stderr=asyncio.subprocess.PIPE,
    )
    assert demo.stderr is not None
    address, shot = "", False
    async for raw in demo.stderr:
        line = raw.decode().rstrip()
        print(line, file=sys.stderr)
        if "the page is on http" in line:
            address = line.partition("the page is on ")[2].partition(",")[0]
        if "catching up" in line and not shot:
            shot = True
            (IMAGES / "panel.png").write_bytes(await photograph(chromium, address))
    return await demo.wait()


async def photograph(chromium: str, address: str) -> bytes:
    """The page as PNG, after it has been looked at for a while."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        browser = await asyncio.create_subprocess_exec(
            *(chromium, *CHROMIUM, f"--user-data-dir={profile}", f"--window-size={WIDTH},{HEIGHT}", address),
            stderr=asyncio.subprocess.PIPE,
        )
        try:
            assert browser.stderr is not None
            async for raw in browser.stderr:
                if b"DevTools listening on " in raw:
                    break
            port = raw.decode().partition("127.0.0.1:")[2].partition("/")[0]
            return await _capture(f"http://127.0.0.1:{port}")
        finally:
            browser.terminate()
            await browser.wait()


async def _capture(devtools: str) -> bytes:
    async with aiohttp.ClientSession() as session:
        async with session.get(f"{devtools}/json/list") as answer:
            pages = await answer.json()
        target = next(page for page in pages if page["type"] == "page")["webSocketDebuggerUrl"]
        async with session.ws_connect(target, max_msg_size=64 << 20) as socket:
            light = {"features": [{"name": "prefers-color-scheme", "value": "light"}]}
            await _ask(socket, 1, "Emulation.setEmulatedMedia", light)
            size = {"width": WIDTH, "height": HEIGHT, "deviceScaleFactor": 1, "mobile": False}
            await _ask(socket, 2, "Emulation.setDeviceMetricsOverride", size)
            await asyncio.sleep(LOOKED_S)
            return base64.b64decode((await _ask(socket, 3, "Page.captureScreenshot", {"format": "png"}))["data"])


async def _ask(
    socket: aiohttp.ClientWebSocketResponse, number: int, method: str, params: dict[str, Any]
) -> dict[str, Any]:
    await socket.send_json({"id": number, "method": method, "params": params})
    async for message in socket:
        answer = json.loads(message.data)
        if answer.get("id") == number:
            result: dict[str, Any] = answer["result"]
            return result
    raise ConnectionError(f"Chromium closed the connection at {method}")


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
