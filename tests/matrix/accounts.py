"""The account of one direction: what one side gave, and what the other got of it."""

from __future__ import annotations

from collections.abc import Sequence

from vnic.testing.bench import compare

from matrix.frames import Given, as_plain


class Account:
    """Frames are got as they were given, in order; those that are missing, somebody has counted."""

    def __init__(self, where: str) -> None:
        self._where = where
        self._given: list[Given] = []
        self._got: list[bytes] = []
        self._forgotten: set[bytes] = set()

    def give(self, frames: Sequence[Given]) -> None:
        """Note what is given."""
        self._given += frames

    def get(self, frame: bytes, header: bytes) -> None:
        """Note what is got."""
        self._got += [part for part in as_plain(frame, header) if part not in self._forgotten]

    def forget(self) -> None:
        """Begin anew: what was given before may come now, or never."""
        self._forgotten |= {part for frame in self._given for part in frame.parts}
        self._given.clear()
        self._got.clear()

    @property
    def n_missing(self) -> int:
        """How many of the frames that were given have not been got.

        Raises: AssertionError, where something was got that was not given, or not in that order.
        """
        at, missing = 0, 0
        for frame in self._given:
            end = at + len(frame.parts)
            if tuple(self._got[at:end]) == frame.parts:
                at = end
            else:
                missing += 1
        if at < len(self._got):
            compare(self._got, [part for f in self._given for part in f.parts], self._where)
        return missing
