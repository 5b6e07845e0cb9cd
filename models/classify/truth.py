"""Which of ImageNet's words are right for pictures of the registries: written by looking at them (2026-11).

Word -> the beginning of a label is enough. Pictures as in models/detect/labels.toml, by name, and others by package and path.
"""

from __future__ import annotations

from models.detect.data import Picture
from sdk.registry import Member

# name in labels.toml -> labels that are right
LABELLED: dict[str, tuple[str, ...]] = {
    "chelsea": ("Egyptian cat", "tiger cat", "tabby"),
    "coffee": ("espresso", "cup", "coffee mug"),
    "motorcycle": ("moped", "motor scooter"),
    "rocket": ("missile", "projectile"),
    "kitten": ("Egyptian cat", "tiger cat", "tabby"),
    "shepherd-dog": ("German shepherd",),
    "small-dog": ("Pekinese",),
    "bus": ("trolleybus", "minibus"),
    "cow-and-calf": ("ox",),
    "footballer": ("soccer ball",),
    "squirrel-cls": ("fox squirrel",),
    "fruits": ("lemon", "orange", "banana", "fig", "pineapple", "strawberry"),
    "000": ("robin", "brambling"),
}
_DATA = "usr/share/doc/opencv-doc/examples/data/"
MORE: dict[str, tuple[Picture, tuple[str, ...]]] = {
    name: (Picture(name, "opencv-doc", Member(f"{_DATA}{file}", size, sha), ()), words)
    for name, file, size, sha, words in (
        (
            "baboon",
            "baboon.jpg",
            179920,
            "1a1dd18d78eec44420af3b0b7f08ee3d41c982916cae3ce203d7ff35d754cc0f",
            ("baboon",),
        ),
        (
            "apple",
            "apple.jpg",
            51705,
            "e86879de3d9a807dedc742a8f464f39e6b74bbb531a1fba3583155d94997d1cd",
            ("Granny Smith",),
        ),
        (
            "orange",
            "orange.jpg",
            50036,
            "152c20d2f380ac985de25e474e1a5f06ed34b932191342099b8272a63a15a079",
            ("orange",),
        ),
        (
            "butterfly",
            "butterfly.jpg",
            44746,
            "34a99716b78ded10eae87b4880de739d3e68cc7dd1a96812bb28f469d5eeaea8",
            ("monarch",),
        ),
    )
}
