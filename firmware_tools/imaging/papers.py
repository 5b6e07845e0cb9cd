"""What goes beside an image: the manifest, and the list of its parts (SBOM) as SPDX 2.3 in JSON."""

from __future__ import annotations

import datetime
import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

from firmware_tools.imaging.disk import Partition

NO = "NOASSERTION"


@dataclass(frozen=True, order=True)
class Part:
    """One package in the image.

    Attributes:
        kind: deb, pypi or generic, as in a package URL (purl).
        licence: an SPDX expression if its own data has one, else empty.
        supplier: who made the package.
    """

    kind: str
    name: str
    version: str
    licence: str = ""
    supplier: str = ""


def debian_parts(stanzas: Iterable[Mapping[str, str]]) -> list[Part]:
    """Of dpkg's status or of packages' control files; what is not installed is left out."""
    return [
        Part("deb", item["Package"], item["Version"], "", item.get("Maintainer", ""))
        for item in stanzas
        if "Package" in item and "Version" in item and item.get("Status", "installed").endswith("installed")
    ]


def wheel_parts(site: Path) -> list[Part]:
    """Of the packages in a site-packages folder."""
    found = []
    for dist in distributions(path=[str(site)]):
        about: Any = dist.metadata
        found.append(Part("pypi", dist.name.lower(), dist.version, about.get("License-Expression") or "", ""))
    return found


def purl(part: Part, suite: str) -> str:
    """The package URL. The specification: the purl-spec project, purl-types deb and pypi."""
    name = part.name.replace("_", "-") if part.kind == "pypi" else part.name
    version = re.sub(r"[^A-Za-z0-9.~_-]", lambda found: f"%{ord(found[0]):02X}", part.version)
    scope, suffix = ("debian/", f"?arch=arm64&distro={suite}") if part.kind == "deb" else ("", "")
    return f"pkg:{part.kind}/{scope}{name}@{version}{suffix}"


def sbom(parts: Iterable[Part], *, image: str, version: str, suite: str, epoch: int) -> dict[str, Any]:
    """An SPDX document: the image, and everything that it contains, sorted."""
    packages = [{**_package("SPDXRef-image", image, version), "primaryPackagePurpose": "OPERATING-SYSTEM"}]
    related = []
    for part in sorted(set(parts)):
        name = re.sub(r"[^A-Za-z0-9.-]", "-", f"SPDXRef-{part.kind}-{part.name}-{part.version}")
        package = _package(name, part.name, part.version)
        package["licenseDeclared"] = part.licence or NO
        package["supplier"] = f"Organization: {part.supplier}" if part.supplier else NO
        package["externalRefs"] = [
            {"referenceCategory": "PACKAGE-MANAGER", "referenceType": "purl", "referenceLocator": purl(part, suite)}
        ]
        packages.append(package)
        related.append({"spdxElementId": "SPDXRef-image", "relationshipType": "CONTAINS", "relatedSpdxElement": name})
    describes = {
        "spdxElementId": "SPDXRef-DOCUMENT",
        "relationshipType": "DESCRIBES",
        "relatedSpdxElement": "SPDXRef-image",
    }
    return {
        "spdxVersion": "SPDX-2.3",
        "dataLicense": "CC0-1.0",
        "SPDXID": "SPDXRef-DOCUMENT",
        "name": f"{image}-{version}",
        "documentNamespace": f"urn:octogate:{image}:{version}",
        "creationInfo": {"created": _when(epoch), "creators": ["Tool: octogate-image"]},
        "packages": packages,
        "relationships": [describes, *related],
    }


def _package(identity: str, name: str, version: str) -> dict[str, Any]:
    return {
        "SPDXID": identity,
        "name": name,
        "versionInfo": version,
        "downloadLocation": NO,
        "filesAnalyzed": False,
        "licenseConcluded": NO,
        "licenseDeclared": NO,
        "copyrightText": NO,
        "supplier": NO,
    }


def _when(epoch: int) -> str:
    return datetime.datetime.fromtimestamp(epoch, datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def manifest(
    image: Path, partitions: tuple[Partition, ...], *, board: str, suite: str, version: str, gateway: str, epoch: int,
    versions: Mapping[str, str], root_bytes: int,
) -> dict[str, Any]:  # fmt: skip
    """What is in a raw image, and how to know it again."""
    with image.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
        size = file.seek(0, 2)
    return {
        "board": board,
        "digest": f"sha256:{found}",
        "gateway": gateway,
        "partitions": [asdict(part) for part in partitions],
        "root_bytes": root_bytes,
        "size": size,
        "slots": {"A": "rootA", "B": "rootB"},
        "source_date_epoch": epoch,
        "suite": suite,
        "version": version,
        "versions": dict(versions),
    }


def dumps(document: Mapping[str, Any]) -> str:
    return json.dumps(document, indent=1, sort_keys=True, ensure_ascii=False) + "\n"
