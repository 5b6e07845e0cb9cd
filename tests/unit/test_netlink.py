"""What the kernel says about links: parsed within bounds, and only what is new counts."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.sync import netlink
from gateway.sync.netlink import AddressUp, LinkState, Ways, parse

UP = netlink.IFF_UP | netlink.IFF_RUNNING


def message(kind: int, body: bytes) -> bytes:
    raw = struct.pack("=IHHII", 16 + len(body), kind, 0, 0, 0) + body
    return raw + bytes(-len(raw) % 4)


def link(index: int, flags: int, kind: int = netlink.RTM_NEWLINK, attributes: bytes = b"") -> bytes:
    return message(kind, struct.pack("=BxHiII", 0, 1, index, flags, 0) + attributes)


def address(index: int, flags: int = 0) -> bytes:
    return message(netlink.RTM_NEWADDR, struct.pack("=BBBBI", 2, 24, flags, 0, index))


def test_links_and_addresses_are_told_apart() -> None:
    data = link(3, UP, attributes=b"odd") + address(3) + link(4, netlink.IFF_UP) + link(3, UP, netlink.RTM_DELLINK)
    assert list(parse(data)) == [LinkState(3, True), AddressUp(3), LinkState(4, False), LinkState(3, False)]


@pytest.mark.parametrize(
    "data",
    [
        link(1, UP | netlink.IFF_LOOPBACK),  # leads nowhere
        link(2, netlink.IFF_UP),  # no carrier
        address(2, netlink.IFA_F_TENTATIVE),  # cannot be used yet
        message(netlink.NLMSG_ERROR, bytes(20)),
        message(netlink.RTM_NEWLINK, b"short"),
        message(netlink.NLMSG_DONE, b"") + address(2),
    ],
)
def test_what_is_no_way_out(data: bytes) -> None:
    assert not Ways().opened(data)


def test_a_link_that_says_again_that_it_is_up_is_nothing_new() -> None:
    ways = Ways()
    assert ways.opened(link(2, UP))
    assert not ways.opened(link(2, UP))
    assert not ways.opened(link(2, netlink.IFF_UP))
    assert ways.opened(link(2, UP))
    assert ways.opened(address(2))


def test_the_memory_of_links_is_bounded() -> None:
    ways = Ways()
    for index in range(3 * netlink.MAX_LINKS):
        assert ways.opened(link(index, UP))
    assert len(ways._usable) <= netlink.MAX_LINKS


@given(st.binary(max_size=400))
def test_any_bytes_are_survived(data: bytes) -> None:
    assert len(list(parse(data))) <= len(data) // 16


@given(
    st.lists(st.tuples(st.booleans(), st.integers(1, 2**31 - 1), st.binary(max_size=9)), max_size=8),
    st.binary(max_size=40),
)
def test_good_messages_are_found_whatever_follows(events: list[tuple[bool, int, bytes]], rest: bytes) -> None:
    data, expected = b"", []
    for is_link, index, attributes in events:
        data += link(index, UP, attributes=attributes) if is_link else address(index)
        expected.append(LinkState(index, True) if is_link else AddressUp(index))
    assert list(parse(data + rest))[: len(expected)] == expected


@given(st.binary(max_size=64), st.integers(0, 2**32 - 1))
def test_a_wrong_length_ends_it(body: bytes, length: int) -> None:
    data = struct.pack("=IHHII", length, netlink.RTM_NEWADDR, 0, 0, 0) + body
    found = list(parse(data))
    if not 24 <= length <= len(data):
        assert found == []
