"""Thumbnails of real pictures, made beside the daemon and sent through cuts and kills, over a broker that takes 20 kB."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import iotcore
import pytest

from gateway.infer.pictures import size
from sdk.pictures import PictureIngest
from tests.integration.harness import config, daemon, free_port, until
from tests.integration.proxy import Proxy
from tests.unit.test_thumbnails import REAL


@pytest.mark.timeout(120)
def test_thumbnails_arrive_through_cuts_and_kills_and_the_daemon_loads_no_decoder(tmp_path: Path) -> None:
    folder, received = tmp_path / "data" / "pictures", tmp_path / "received"
    folder.mkdir(parents=True)
    for i in range(10):
        for name, data in REAL.items():
            (folder / f"{i:08}-{name}").write_bytes(data)
    (folder / "broken.jpg").write_bytes(b"\xff\xd8 cut short")
    wanted = {f"{path.stem}-thumb.jpg" for path in folder.iterdir()} - {"broken-thumb.jpg"}

    def there() -> int:
        return len(list(received.glob("test/*.jpg")))

    async def scenario() -> None:
        port = free_port()
        with iotcore.Broker(port=port, listen="127.0.0.1"):
            async with Proxy.open(port) as link, PictureIngest.open(received, port=port) as receiver:
                text = config(tmp_path, link.port, 'pictures = "thumbnails"\nmax_packet_kib = 20\n')
                async with daemon(tmp_path, text) as gateway:
                    await until(lambda: there() > 0, "they come")
                    await gateway.kill()
                    await gateway.start()
                    at = there()
                    await until(lambda: there() > at, "they go on")
                    await link.cut()
                    await link.mend()
                    await until(lambda: there() == len(wanted), "all are there")
                    status = await gateway.until(
                        lambda s: any(e.name == "pictures.no_thumbnail" for e in s.events), "one cannot be made"
                    )
                    assert next(e for e in status.events if e.name.startswith("pictures")).message[:10] == "broken.jpg"
                    maps = Path(f"/proc/{status.process.pid}/maps").read_text()
                    assert "_sqlite3" in maps and "cv2" not in maps and "numpy" not in maps
                    assert receiver.refused == 0

    asyncio.run(scenario())
    got = {path.name: path for path in received.glob("test/*.jpg")}
    assert got.keys() == wanted
    for name, path in got.items():
        assert path.read_bytes() == (tmp_path / "data" / "thumbnails" / name).read_bytes()
        assert max(size(path.read_bytes())) == 320
    print(f"{sum(os.path.getsize(p) for p in got.values())} bytes of {sum(p.stat().st_size for p in folder.iterdir())}")
