"""``null``: takes every frame and counts it, and never has one for the guest."""

from __future__ import annotations

import re

from vnic import ConfigError, Features, hookimpl
from vnic.burst import Burst, Room
from vnic.features import HOST_OFFLOADS
from vnic.link import Joint

COUNTERS = {
    "null_frames": "frames that were taken, to be segmented or not",
    "null_bytes": "bytes of those",
}


class Null:
    """The backend behind ``null``; a number only tells several apart: ``null0``."""

    @hookimpl
    def init(self, name: str, options: None, link: Joint) -> None:
        """Keep the joint, by which a backend speaks to its link."""
        if not re.fullmatch(r"null\d*", name):
            raise ConfigError(f'{name}: takes no name; write "null", or "null0", "null1" and so on')
        self._link = link

    @hookimpl
    def cleanup(self) -> None:
        """Nothing was opened."""

    @hookimpl
    def send(self, burst: Burst) -> int:
        """Take all; it is never full."""
        self._link.count("null_frames", len(burst))
        self._link.count("null_bytes", burst.n_bytes())
        return len(burst)

    @hookimpl
    def recv(self, room: Room) -> int:
        """Return 0: nothing is ever pending."""
        return 0

    @hookimpl
    def get_capabilities(self) -> Features:
        """Accept what is still to be summed or segmented: it would be work for nobody."""
        return HOST_OFFLOADS
