"""The labelled pictures: boxes that are boxes, pins, and a split that does not move."""

from models.detect import data


def test_every_picture_has_its_pin_and_its_own_name() -> None:
    pictures = data.pictures()
    assert len({picture.name for picture in pictures}) == len(pictures) >= 30
    for picture in pictures:
        assert picture.package in data.PACKAGES
        assert len(picture.member.sha256) == 64
        assert picture.member.size > 0


def test_the_split_is_fixed() -> None:
    assert {p.name for p in data.of("validation")} == {"camera", "footballer", "motorway", "three-in-the-dark"}
    test = {p.name for p in data.of("test")}
    assert len(test) == 13
    # frames of one film are one set, and what only calibrates is not judged by
    assert {"yard-a", "yard-b", "yard-c"} <= test
    assert all(p.split == "calibration" for p in data.pictures() if not p.truths)


def test_each_split_shows_what_the_bar_speaks_of() -> None:
    for split in ("calibration", "test"):
        labels = {truth.label for p in data.of(split) for truth in p.truths if not truth.ignore}
        assert {"person", "cat", "car"} <= labels
