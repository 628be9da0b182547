"""Streams: numbered frames of which every byte is known beforehand, compared as they arrive."""

from __future__ import annotations

import random
from typing import Final

NUMBER_LEN: Final = 8
_NOISE_LEN: Final = 65521
_STRIDE: Final = 7919
"""Both are primes: numbers that differ in one bit, or by a few, have different noise."""


class ShortfallError(Exception):
    """Something isn't as it must be; the text says what."""


class Stream:
    """What one end sends and the other compares: a head, a number, and noise.

    It knows what it has seen, so a frame that was lost, repeated or changed is told by its number.
    """

    def __init__(self, name: str, head: bytes, length: int) -> None:
        """``length`` is that of each frame in bytes, head and number included."""
        self.name = name
        self.head = head
        self.length = length
        self.next = 0
        """The number of the frame to come."""
        self.n_missing = 0
        """How many were left out before that."""
        self._noise_len = length - len(head) - NUMBER_LEN
        if self._noise_len < 0:
            raise ValueError(f"{name}: no room for a number in {length} bytes")
        self._noise = random.Random(name).randbytes(_NOISE_LEN + self._noise_len)

    def frame(self, number: int) -> bytes:
        """Return a frame's bytes, all of them."""
        at = number * _STRIDE % _NOISE_LEN
        noise = self._noise[at : at + self._noise_len]
        return self.head + number.to_bytes(NUMBER_LEN, "big") + noise

    def frames(self, start: int, stop: int) -> list[bytes]:
        """Return the frames with these numbers."""
        return [self.frame(number) for number in range(start, stop)]

    def check(self, data: bytes) -> None:
        """Compare a frame that arrived, every byte of it, with what was sent.

        Raises: ShortfallError, for a byte that differs, and for a frame that is out of its turn.
        """
        if data == self.frame(self.next):
            self.next += 1
            return
        at = len(self.head)
        number = int.from_bytes(data[at : at + NUMBER_LEN], "big")
        if data != self.frame(number):
            difference = _difference(data, self.frame(self.next))
            raise ShortfallError(f"{self.name}: frame {self.next}: {difference}")
        if number < self.next:
            raise ShortfallError(
                f"{self.name}: frame {number} came late or twice, after {self.next - 1}"
            )
        self.n_missing += number - self.next
        self.next = number + 1


def _difference(data: bytes, sent: bytes) -> str:
    if len(data) != len(sent):
        return f"it has {len(data)} bytes, and was sent with {len(sent)}"
    at = next(i for i, (got, was) in enumerate(zip(data, sent, strict=True)) if got != was)
    return f"byte {at} is {data[at]:#04x}, and was sent as {sent[at]:#04x}"
