"""What the stages of an image do, in the order in which they need each other."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gateway
from firmware_tools.board import Board
from firmware_tools.imaging import debian, disk, host, kernel, papers, signing, tree, wheels
from firmware_tools.imaging.stages import Stage, digest, digest_files, scratch

HERE = Path(__file__).parent
PACKAGES = ("busybox-static",)  # unpacked, not installed, for every board
FIRST_COUNTERS = {"BOOT_ORDER": "A", "BOOT_A_LEFT": "3", "BOOT_B_LEFT": "0"}  # slot B is empty


@dataclass(frozen=True)
class Choice:
    """What is to be built.

    Attributes:
        epoch: seconds since 1970; nothing in the image is newer.
        output: the folder of the results.
    """

    board: Board
    suite: str
    epoch: int
    output: Path
    keys: signing.UpdateKeys

    @property
    def python(self) -> str:
        return debian.SUITES[self.suite]

    @property
    def image(self) -> str:
        return f"octogate-{self.board.name}"


class Recipe:
    """The stages of one image; `path` gives the result of a stage that has been run."""

    def __init__(self, choice: Choice, cache: Path) -> None:
        self.choice, self._cache = choice, cache
        board, suite = choice.board, choice.suite
        own = digest_files([path for path in HERE.iterdir() if path.suffix in (".py", ".sh", ".txt", ".cmd")], HERE)
        self._packages = sorted({*debian.BASE, *board.packages})
        self._lock = tree.REPOSITORY / f"requirements/image-{suite}.txt"
        self.debian = Stage(
            "debian",
            f"Debian {suite}, {len(self._packages)} packages and what they need",
            digest(suite, self._packages, board.non_free_firmware, debian.EPOCH, debian.EXCLUDED),
            self._make_debian,
        )
        self.kernel = Stage(
            "kernel",
            "kernel, busybox and what the board boots with",
            digest(suite, board.backports, board.boot_packages, PACKAGES),
            self._make_kernel,
        )
        self.wheels = Stage(
            "wheels",
            "Python packages for arm64, by hash",
            digest(choice.python, self._lock.read_text(), wheels.PRUNED, wheels.FROM_SOURCE),
            self._make_wheels,
        )
        self.compiler = Stage(
            "compiler",
            f"a Python {choice.python} for this machine, to compile with",
            digest(suite, debian.COMPILER),
            self._make_compiler,
        )
        patterns = (HERE / "modules.txt").read_text()
        compiled = [str(tree.REMOVED), str(tree.PYTHON_COMPILE)]
        self.base = Stage(
            "base",
            "these together, compiled",
            digest(self.debian.key, self.kernel.key, self.wheels.key, board.modules, patterns, compiled),
            self._make_base,
        )
        overlays = [digest_files(tree.tracked(tree.OVERLAYS / name), tree.OVERLAYS) for name in board.overlays]
        repository = tree.REPOSITORY
        code = digest_files(tree.tracked(repository / "gateway"), repository)
        models = digest_files(repository.glob("models/*/*.octo"), repository)
        trust = choice.keys.ca.read_text() if choice.keys.ca.exists() else ""  # made by the first build
        everything = digest(self.base.key, overlays, code, models, trust, own, choice.epoch, _settings(board))
        self.version = f"{gateway.__version__}-{everything[:12]}"
        output, image = choice.output, choice.image
        self.root = Stage("root", "the root with the gateway", everything, self._make_root, output / ".root.ext4")
        self.disk = Stage("disk", "the image", everything, self._make_disk, output / f"{image}.img")
        self.packed = Stage("packed", "compressed", everything, self._pack, output / f"{image}.img.zst")
        self.bmap = Stage("bmap", "its block map", everything, self._map, output / f"{image}.img.bmap")
        self.bundle = Stage("bundle", "the update, signed", everything, self._make_bundle, output / f"{image}.raucb")
        self.parts = Stage("sbom", "the list of its parts", everything, self._list_parts, output / "sbom.spdx.json")
        self.manifest = Stage(
            "manifest", "what is in it", everything, self._describe, output / f"{image}.img.manifest.json"
        )

    def stages(self) -> tuple[Stage, ...]:
        return (
            *(self.debian, self.kernel, self.wheels, self.compiler, self.base, self.root, self.disk),
            *(self.packed, self.bmap, self.bundle, self.parts, self.manifest),
        )

    def path(self, stage: Stage) -> Path:
        return stage.target or self._cache / f"{stage.name}-{stage.key}"

    # --- for all images ---------------------------------------------------------------------------------------

    def _make_debian(self, target: Path) -> None:
        board = self.choice.board
        debian.make_root(target, self.choice.suite, self._packages, non_free_firmware=board.non_free_firmware)

    def _make_kernel(self, target: Path) -> None:
        board, suite = self.choice.board, self.choice.suite
        with scratch(target) as work:
            kernels = debian.Archive(work / "kernel", suite, backports=board.backports)
            kernels.fetch([kernels.kernel()], target / "debs")
            others = debian.Archive(work / "others", suite) if board.backports else kernels
            others.fetch([*PACKAGES, *board.boot_packages], target / "debs")
        for package in sorted((target / "debs").iterdir()):
            place = "kernel" if package.name.startswith("linux-image-") else "others"
            debian.unpack(package, target / place)
        fields = [host.run("dpkg-deb", "--field", package).decode() for package in sorted((target / "debs").iterdir())]
        (target / "status").write_text("\n\n".join(field.strip() for field in fields) + "\n")
        shutil.rmtree(target / "debs")
        kernel.dependencies_of(target / "kernel", self._kernel_version(target))

    def _make_wheels(self, target: Path) -> None:
        with scratch(target) as work:
            wheels.install(self._lock, self.choice.python, target, work)

    def _make_compiler(self, target: Path) -> None:
        here = host.run("dpkg", "--print-architecture").decode().strip()
        with scratch(target) as work:
            archive = debian.Archive(work / "apt", self.choice.suite, architecture=here)
            archive.fetch([name.format(python=self.choice.python) for name in debian.COMPILER], work / "debs")
            for package in sorted((work / "debs").iterdir()):
                debian.unpack(package, target)

    def _make_base(self, target: Path) -> None:
        kernels = self.path(self.kernel)
        with scratch(target) as work:
            tree.make_base(
                work / "root",
                self.path(self.debian),
                self.choice.board,
                kernels / "kernel",
                self._kernel_version(kernels),
                self.path(self.wheels),
                self.choice.python,
                self.path(self.compiler),
            )
            tree.settle(work / "root", debian.EPOCH)
            host.run(
                "tar", "--create", "--file", target, "--directory", work / "root", "--numeric-owner", "--sort=name", "."
            )

    # --- for this one -----------------------------------------------------------------------------------------

    def _make_root(self, target: Path) -> None:
        choice, kernels = self.choice, self.path(self.kernel)
        board = choice.board
        with scratch(target) as work:
            root = work / "root"
            root.mkdir()
            host.run("tar", "-xf", self.path(self.base), "-C", root, "--numeric-owner")
            busybox = (kernels / "others/usr/bin/busybox").read_bytes()
            initrd = kernel.initrd(kernels / "kernel", self._kernel_version(kernels), busybox, board.initrd)
            trust = choice.keys.ca.read_bytes()
            tree.finish(root, board, choice.python, self.path(self.compiler), initrd, trust, self.version)
            size = tree.settle(root, choice.epoch)
            (target.parent / ".root.json").write_text(json.dumps({"bytes": size}))
            room = board.slot_mib * disk.MIB
            disk.make_ext4(target, room, root, label="root", board=board.name, epoch=choice.epoch, journal=False)

    def _make_disk(self, target: Path) -> None:
        choice, board = self.choice, self.choice.board
        sizes = board.sizes_mib()
        with scratch(target) as work:
            self._fill_boot(work / "boot")
            (work / "data").mkdir()
            for path in (*sorted((work / "boot").rglob("*")), work / "boot", work / "data"):
                os.utime(path, (choice.epoch, choice.epoch))
            given = {"board": board.name, "epoch": choice.epoch}
            disk.make_fat(work / "boot.fat", sizes["boot"] * disk.MIB, work / "boot", **given)  # type: ignore[arg-type]
            disk.make_ext4(
                *(work / "data.ext4", sizes["data"] * disk.MIB, work / "data"),
                label="data", board=board.name, epoch=choice.epoch, journal=True,
            )  # fmt: skip
            content: dict[str, Path | bytes] = {
                "boot": work / "boot.fat",
                "ubootenv": disk.environment(FIRST_COUNTERS),
                "rootA": self.path(self.root),
                "data": work / "data.ext4",
            }
            disk.assemble(target, board.name, self.partitions(), content, hybrid=board.hybrid_mbr)

    def partitions(self) -> tuple[disk.Partition, ...]:
        return disk.plan(self.choice.board.name, self.choice.board.sizes_mib())

    def _fill_boot(self, folder: Path) -> None:
        """boot.scr, and what the board's firmware wants."""
        board, kernels = self.choice.board, self.path(self.kernel)
        folder.mkdir()
        script = folder.parent / "boot.cmd"
        script.write_text((HERE / "boot.cmd").read_text().replace("@CMDLINE@", board.cmdline))
        host.run(
            *(
                "mkimage",
                "-A",
                "arm64",
                "-T",
                "script",
                "-C",
                "none",
                "-n",
                "octogate",
                "-d",
                script,
                folder / "boot.scr",
            ),
            env={"SOURCE_DATE_EPOCH": str(self.choice.epoch)},
        )
        trees = next(iter(sorted((kernels / "kernel/usr/lib").glob("linux-image-*"))), kernels)
        for name, pattern in sorted(board.boot_files.items()):
            source, wanted = (trees, pattern[4:]) if pattern.startswith("dtb/") else (kernels / "others", pattern)
            found = sorted(path for path in source.glob(wanted) if path.is_file())
            if not found:
                raise host.BuildError(
                    f"board '{board.name}': no file fits {pattern}", hint="see boot_files of its TOML"
                )
            for path in found:
                place = folder / name / path.name if name.endswith("/") else folder / name
                place.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, place)
        for name, text in sorted(board.boot_texts.items()):
            (folder / name).write_text(text.lstrip("\n"))

    def _pack(self, target: Path) -> None:
        host.run("zstd", "--quiet", "-T0", "-6", "--long=27", "--force", self.path(self.disk), "-o", target)

    def _map(self, target: Path) -> None:
        host.run("bmaptool", "--quiet", "create", "--output", target, self.path(self.disk))

    def _make_bundle(self, target: Path) -> None:
        choice = self.choice
        with scratch(target) as work:
            signing.make_bundle(
                target, self.path(self.root), work, board=choice.board.name, version=self.version, keys=choice.keys
            )

    def _list_parts(self, target: Path) -> None:
        installed = host.run("tar", "-xOf", self.path(self.debian), "./var/lib/dpkg/status").decode()
        parts = papers.debian_parts(debian.parse_status(installed))
        parts += papers.debian_parts(debian.parse_status((self.path(self.kernel) / "status").read_text()))
        parts += papers.wheel_parts(self.path(self.wheels))
        parts.append(papers.Part("generic", "octogate", gateway.__version__, "Apache-2.0"))
        choice = self.choice
        document = papers.sbom(parts, image=choice.image, version=self.version, suite=choice.suite, epoch=choice.epoch)
        target.write_text(papers.dumps(document))

    def _describe(self, target: Path) -> None:
        choice = self.choice
        document = papers.manifest(
            self.path(self.disk),
            self.partitions(),
            board=choice.board.name,
            suite=choice.suite,
            version=self.version,
            gateway=gateway.__version__,
            epoch=choice.epoch,
            versions={"kernel": self._kernel_version(self.path(self.kernel)), "python": choice.python},
            root_bytes=json.loads((choice.output / ".root.json").read_text())["bytes"],
        )
        target.write_text(papers.dumps(document))

    def _kernel_version(self, folder: Path) -> str:
        return next(path.name for path in sorted((folder / "kernel/usr/lib/modules").iterdir()))


def _settings(board: Board) -> Mapping[str, Any]:
    return {name: getattr(board, name) for name in board.__struct_fields__}
