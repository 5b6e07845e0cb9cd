"""The fonts that forms are filled in with: fetched, pinned, and each for one split only.

Fixed before anything was measured. All are under the SIL Open Font Licence or Apache-2.0 (LICENSE_FONT in each package).
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import Literal

import cv2

from gateway.errors import ModelError
from sdk.registry import CACHE, Member, Package, Say, fetch, quiet

Split = Literal["validation", "test"]

# `validation` fits the threshold of acceptance; nothing but evaluate.py reads `test`
HAND: dict[Split, tuple[str, ...]] = {
    "validation": (
        "comic-neue", "finger-paint", "gloria-hallelujah", "gochi-hand", "indie-flower", "kalam", "la-belle-aurore",
        "marck-script", "nanum-pen-script", "permanent-marker", "playpen-sans", "shadows-into-light", "shantell-sans",
    ),
    "test": ("caveat", "patrick-hand", "reenie-beanie", "schoolbell"),
}  # fmt: skip
PRINT: dict[Split, tuple[str, ...]] = {
    "validation": (
        "courier-prime", "lato", "merriweather", "noto-serif", "open-sans", "oswald", "pt-serif", "roboto", "roboto-slab",
        "source-code-pro",
    ),
    "test": ("ibm-plex-sans", "inconsolata", "source-serif-4", "special-elite", "ubuntu"),
}  # fmt: skip

# name, version, sha256 of the npm package @expo-google-fonts/<name>, file, its size and sha256
_PINS = """\
caveat 0.4.2 83d530c10d893c03c5d2e2c1a7c52532ffb4de7eb8d8cfcf81bad0dfedfc959f Caveat 256968 271ee7c4a60b1be2ba13a66990e7475c76c982ac6e906c9db25139976282f6b8
comic-neue 0.4.1 9069ead52657d6ed80471db53167c73035c3fdf12790c1f596b189436bde41f6 ComicNeue 54844 63690a24f0ded1a87858c22a4abe69f07765661d3b0ac7284f90235c5dbd9539
courier-prime 0.4.1 c85b63713b7c69dc371de8985ad1f89f5a66c4ffe35b9944e8ab579dd8beeb07 CourierPrime 68304 b4da920fa50d874bce2cab0517e4732384a6eef8fe7e1e653d2befcb8aac1aa6
finger-paint 0.4.1 242a09e0d4927bfe690f88589cd660df4a0a9c5592b409f7919e374cc56b428f FingerPaint 105716 580552bf266e633450a6d78ca68d408ef14de8638fb707f461c112ed2f610659
gloria-hallelujah 0.4.1 746e19cc7517435917944188f31f4e4d4fb6a4df4fa98f33e2cd5370fa2fc224 GloriaHallelujah 54232 4206cbda828ccde275f6d8b406ad80a29d2f5d9bc1a39a86e56a1c9c7691ed8c
gochi-hand 0.4.2 73d059a6b50f622031ad529a91bbb97abed6eaa3f45b13d8ace6d8078b103876 GochiHand 35948 57e17aabd8bfa36f9ce790f26a64176abd01f89df2fac8263aa50003daaf81b5
ibm-plex-sans 0.4.1 8b0e86cb17fbcf46a1b3ee9fcf339ebb552938cc5b753eb28671725aa3f66671 IBMPlexSans 218236 8685116dfbcfa639621631c4af0ad62e52ddeb9979acbec0007ccef2e4801a27
inconsolata 0.4.2 cecaa19aa94719f59b82cdfd4be8897cdbe5ffc2b703496a6d9f11ebcf89805d Inconsolata 101748 e0267abf9d734e2b9f766f8cb7a496b552c57cdfeacfa0efdc5bfd21940ae145
indie-flower 0.4.1 f51493cb301ac7a8b61e86bea3cd59694c0c900dd9c4ba3caf30f1cfc134471d IndieFlower 55416 e6a139213baa54b2ff51d300f98cc1c16d690b5046a4b0e42435cbf791767853
kalam 0.4.1 d26f2d3932bf75cb065a6ef900a0f76609099a22b487a04e31459626abf97932 Kalam 427336 c2a5822e35bd9826735baf8cea549534fd300c979129299d327a155ed9ef667f
la-belle-aurore 0.4.1 228efe9ea11eedb0d401190a1cc1cf8644687ec24f26d8c6a6447f7ac04be558 LaBelleAurore 53548 366ab6209c5f16a503dde1ec7d1cc02a67da2d1a37eafe75f5f7eccfb125ecec
lato 0.4.1 5cb54872e0134d491496bf10fa0afa305894f752f3ed6d4fa2f3f46a93545ed4 Lato 75152 e82542aed8293f49fc83c4aaea566b1f6b4fc7a9ab5da11e6fb9bc0973b5324b
marck-script 0.4.1 f7099cea8a0ad56c486cb43115b028a6b6d61206016dd53fca92ec105d686560 MarckScript 81816 672b58f8d9e4bc32123b3ccd9957ca3e41877d156e0788937a1b852699fbeeff
merriweather 0.4.2 4a2b090c3b585f0257bc3f8d362151e90a4975f420899e2db058ae89a9d691d3 Merriweather 1064500 f1541057f1765ffa5ee7eb873f01bec1dd2238c85a8b1602c462fd8eda92b6df
nanum-pen-script 0.4.0 27887f834576a001389efff82442a776a54f3ab93693c42442f7873f5b929501 NanumPenScript 3200444 a0bc8ec50075e11496defe34eb9036d56907d44f880b80b2032ac0dbff140e88
noto-serif 0.4.2 78810a8143112a326def7ec976601ecb9855a9e79082c727246beec4f0531d0c NotoSerif 504932 a7e8ea1ab7e7d368b001c892d6148325fffc849a46e030e55e1bdc597bbe939d
open-sans 0.4.2 95d4fdbbb2862c4cc05dff55212730394d9af312b685cab740811c1ce7c4e5be OpenSans 130832 33e93bec67d91c396876db50694213802a39e43a911bb5c22322f0dbdf4d5e43
oswald 0.4.2 0cc1d71781b4a5c6c0e6f8b346a71e3f898529e5343ffe34911f98232af2e78c Oswald 87248 147373bfe10a9b1e0eb649bcf6408566d0cb7334271845f24d4c224cca1c4412
patrick-hand 0.4.1 94b76c78752c8c11c36802eeac282c4c467599150800065e426f94e37212b0c5 PatrickHand 212112 496937dafcb18bf2c2f624ed02c8f7f4d47bd1e4e6e5646c42b6cfd873c6b13c
permanent-marker 0.4.0 2c79cf1dec015491b41a15a9225af8ce1c0051474a9d94e5cc87baee9ad82041 PermanentMarker 73620 4a613a4e0a67ad9c48ee6bbf664a59f73450069ad27c08d4ed21e1b9b1893590
playpen-sans 0.4.1 b8093cd79db5ec1912ed35ea74ef06226424c45fc4aa72a0de542b0a4e90ce68 PlaypenSans 744432 65fdaad5a3aee5ee4d0835957fdb4e0b6941890f198143c9a4ec36040026b44f
pt-serif 0.4.1 e389c34deddccd1db2ee8fb320bd301155a7820301240bf6e195e46b374a85f2 PTSerif 215516 13d9f82f41fcd7d2813dc0a44a9639dec0c1e9a922ab96c7de8dec467c3dec55
reenie-beanie 0.4.1 de2ce3e022304c5de19f0710d31a03bc74038a25224d8b14214304e729e700ff ReenieBeanie 140764 f3b0fc248a510101281bfc2f81815b9758ff9bcc7400c42827791a8d36d14698
roboto 0.4.3 d5fabe7f5e706dc3c6b4e39687c5a45f1b25975dd689d8d850a97f41a00fa85f Roboto 159108 15256405ecb0d880678833a582760efad538ab2932318b52c8105b267d159459
roboto-slab 0.4.2 113090e3309bf54357abdfad7f921ab36ed4918bfbce13f2785f5faa5fe76dee RobotoSlab 126188 1617414d9f759050b2339b58ca53d1a2d005561d8896ab0a6fb77a50f41954a7
schoolbell 0.4.0 b75e9a90a098260fcd9dc7c71a7c2f6e585a0d4568f8914bfe93fa3b5f5366f3 Schoolbell 47912 5c95c4513ba2908d82ae7f2205dabb6c3e887181bd7ee4d78e1fb5f8b618d701
shadows-into-light 0.4.1 c99a4994ff32cd899750a3e2af36dd539b7eeeeac3637c6670997108e0bc7dda ShadowsIntoLight 48468 2d697208b133a900ab1f5607e437d039b19a0f956fc3d998760cabb3c11ad3b0
shantell-sans 0.4.1 851fb38fb282d7b4b68673d8d25be606596f76307de9a4d3a4a2c0eccede8eae ShantellSans 397656 84c3c95a452fbeb3819ed0bb3cd1190adec43595601d13b4b7c9f603731685ed
source-code-pro 0.4.1 e00a889c711535f7662ed2e8158560c5dba0c36cffd4f1f2cd30d1b07e89ade1 SourceCodePro 133596 1bd0bb61d974f62f9cc208a162fd3a7a13f95ba0b56b88b870730bf3ae1ba358
source-serif-4 0.4.1 84f0b412fbc9b0b666d6fe04620b2cd2e54bfd49ca61fe0663a9e5beb30afcc4 SourceSerif4 329948 d47da11c5f55f031d9ec54c3172865d76009b2cbab5c706dfa73866b00096639
special-elite 0.4.1 7a612f3dfa4257e563aec0a6ec26b9f3b669ee9246968c690e0856a3fe6f96c6 SpecialElite 151068 14780ea85064dcb150c23c9a87e2b870439c38668b6d8f1dad5c6db701ab9520
ubuntu 0.4.1 596bc62e40fb9fe85747873939557614ef85847f3de09f3fab1671ee44ac71b0 Ubuntu 299684 540f19be11a368130641d00ec1c354b535c0803560f598d7d062486c9278387a
"""


def files(names: Iterable[str], cache: Path = CACHE, say: Say = quiet) -> dict[str, Path]:
    """name -> TTF file, fetched at need.

    Raises:
        RegistryError: a package cannot be fetched, or is not what was pinned.
    """
    pins = {line.split()[0]: line.split() for line in _PINS.splitlines()}
    found = {}
    for name in names:
        _, version, sha256, file, size, digest = pins[name]
        member = Member(f"package/400Regular/{file}_400Regular.ttf", int(size), digest)
        package = Package("npm", f"@expo-google-fonts/{name}", version, sha256)
        found[name] = fetch(package, [member], cache=cache, say=say)[member.path]
    return found


@lru_cache(maxsize=64)
def face(path: Path) -> cv2.FontFace:
    """The font in a TTF file, for `cv2.putText`.

    Raises:
        ModelError: OpenCV cannot read it, or is older than 5.
    """
    if not hasattr(cv2, "FontFace"):
        raise ModelError("OpenCV draws no TrueType fonts", hint="install opencv-python-headless 5 or newer")
    found = cv2.FontFace()
    if not found.set(str(path)):
        raise ModelError(f"{path}: OpenCV cannot read this font", hint="delete build/cache and try again")
    return found
