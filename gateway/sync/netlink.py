"""What the kernel says about network links and addresses: a way out has appeared, so try now and not when the pause ends.

One NETLINK_ROUTE socket in the groups of links and of IPv4 and IPv6 addresses; numbers and layouts are those of
<linux/netlink.h>, <linux/rtnetlink.h>, <linux/if_link.h> and <linux/if_addr.h>, in host byte order. Nothing is ever
sent, and what does not come from the kernel itself is not listened to.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

log = logging.getLogger("octogate")

RTMGRP_LINK, RTMGRP_IPV4_IFADDR, RTMGRP_IPV6_IFADDR = 0x1, 0x10, 0x100
NLMSG_NOOP, NLMSG_ERROR, NLMSG_DONE, NLMSG_OVERRUN = 1, 2, 3, 4
RTM_NEWLINK, RTM_DELLINK, RTM_NEWADDR = 16, 17, 20
IFF_UP, IFF_LOOPBACK, IFF_RUNNING = 0x1, 0x8, 0x40
IFA_F_TENTATIVE = 0x40  # duplicate address detection still goes on: it cannot be used yet

_HEADER = struct.Struct("=IHHII")  # nlmsghdr: length, type, flags, sequence, port id
_LINK = struct.Struct("=BxHiII")  # ifinfomsg: family, device type, index, flags, change mask
_ADDRESS = struct.Struct("=BBBBI")  # ifaddrmsg: family, prefix length, flags, scope, index
MAX_BYTES = 65536  # of one read; the kernel sends 8 to 32 KiB at most
MAX_LINKS = 1024  # remembered; a host with more is told of some links twice


@dataclass(frozen=True, slots=True)
class LinkState:
    """A network device as it is now; `usable` is up, with carrier, and leading out of the machine."""

    index: int
    usable: bool


@dataclass(frozen=True, slots=True)
class AddressUp:
    """A device has an address that can be used from now on."""

    index: int


def parse(data: bytes) -> Iterator[LinkState | AddressUp]:
    """The notifications in one datagram that matter here; ends at the first byte that makes no sense."""
    at = 0
    while at + _HEADER.size <= len(data):
        length, kind, _, _, _ = _HEADER.unpack_from(data, at)
        if length < _HEADER.size or at + length > len(data):
            return
        body, size = at + _HEADER.size, length - _HEADER.size
        if kind in (RTM_NEWLINK, RTM_DELLINK) and size >= _LINK.size:
            _, _, index, flags, _ = _LINK.unpack_from(data, body)
            running = flags & IFF_UP and flags & IFF_RUNNING and not flags & IFF_LOOPBACK
            yield LinkState(index, kind == RTM_NEWLINK and bool(running))
        elif kind == RTM_NEWADDR and size >= _ADDRESS.size:
            _, _, flags, _, index = _ADDRESS.unpack_from(data, body)
            if not flags & IFA_F_TENTATIVE:
                yield AddressUp(index)
        elif kind == NLMSG_DONE:
            return
        at += (length + 3) & ~3  # NLMSG_ALIGN


class Ways:
    """Which links are known to be usable: tells a link that has come up from one that only says so again."""

    def __init__(self) -> None:
        self._usable: set[int] = set()

    def opened(self, data: bytes) -> bool:
        """Whether the notifications in `data` mean that there is a new way out."""
        new = False
        for event in parse(data):
            if isinstance(event, AddressUp):
                new = True
            elif not event.usable:
                self._usable.discard(event.index)
            elif event.index not in self._usable:
                if len(self._usable) >= MAX_LINKS:
                    self._usable.clear()
                self._usable.add(event.index)
                new = True
        return new


@contextmanager
def watching(on_up: Callable[[], None]) -> Iterator[bool]:
    """Call `on_up` in the loop whenever a link or an address comes up, until the block is left.

    Gives False where the kernel does not tell (no Linux, or a sandbox without netlink): then pauses just end by time.
    """
    loop, ways = asyncio.get_running_loop(), Ways()
    try:
        sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE)
    except (OSError, AttributeError) as error:
        log.warning("uplink: the kernel does not tell when a link comes up: %s", error)
        yield False
        return
    with sock:
        sock.setblocking(False)
        sock.bind((0, RTMGRP_LINK | RTMGRP_IPV4_IFADDR | RTMGRP_IPV6_IFADDR))

        def readable() -> None:
            try:
                data, sender = sock.recvfrom(MAX_BYTES)
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                on_up()  # more than the socket holds: something among it may have been a link
                return
            if sender[0] == 0 and ways.opened(data):  # port id 0 is the kernel
                on_up()

        loop.add_reader(sock.fileno(), readable)
        try:
            yield True
        finally:
            loop.remove_reader(sock.fileno())
