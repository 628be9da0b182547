"""The EEPROM: 64 words, read and written bit by bit over a Microwire bus.

Spec: 8254x Family Software Developer's Manual, "EEPROM Interface"; the part is a 93C46.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from typing import Final

from vnic_e1000.registers import Eecd

WORDS: Final = 64
CHECKSUM: Final = 0xBABA
"""What all words add up to.  Spec: "EEPROM Checksum"."""

_ADDRESS_BITS: Final = 6
_OPCODE_BITS: Final = 3
"""A start bit, and two more."""

_READ: Final = 0b110
_WRITE: Final = 0b101
_ERASE: Final = 0b111
_SPECIAL: Final = 0b100
"""The address' two first bits say which: 11 allows writing, 00 forbids it."""


def image(mac: bytes, device_id: int, subsystem_id: int) -> list[int]:
    """Return an EEPROM's words.  Spec: "EEPROM Address Map"."""
    words = [0xFFFF] * WORDS
    words[0x00:0x03] = [int.from_bytes(mac[i : i + 2], "little") for i in (0, 2, 4)]
    words[0x03:0x08] = [0, 0xFFFF, 0, 0, 0]
    words[0x08:0x0A] = [0x3000, 0x1000]
    words[0x0A] = 0x4403  # the signature; device and subsystem identity are loaded from here
    words[0x0B:0x0F] = [subsystem_id, 0x8086, device_id, 0x8086]
    words[0x0F] = 0x3040  # symmetric and asymmetric PAUSE is what the PHY announces
    words[0x20:0x25] = [0x1008, 0, 0x0F04, 0x7FFF, 0]
    words[WORDS - 1] = 0
    words[WORDS - 1] = (CHECKSUM - sum(words)) & 0xFFFF
    return words


class _State(Enum):
    COMMAND = "takes opcode and address"
    OUT = "shifts a word out"
    IN = "takes a word"
    DONE = "waits to be deselected"


class Eeprom:
    """The part and its shift register.  `clock` takes what the driver drives the pins to."""

    def __init__(self, words: Sequence[int]) -> None:
        self.words = list(words)
        self._pins = 0
        self._writable = False
        self._deselect()

    def _deselect(self) -> None:
        self._state = _State.COMMAND
        self._shift = 0
        self._n_bits = 0
        self._address = 0
        self.data_out = True
        """DO: a bit of a word that is read; true else, for "ready"."""

    @property
    def mac(self) -> bytes:
        """The address in the first three words."""
        return b"".join(word.to_bytes(2, "little") for word in self.words[:3])

    def clock(self, pins: int) -> None:
        """Take the pins' levels; bits move on the rising edge of the clock."""
        old, self._pins = self._pins, pins
        if not pins & Eecd.CS:
            self._deselect()
        elif pins & Eecd.SK and not old & Eecd.SK:
            self._rising(bool(pins & Eecd.DI))

    def _rising(self, bit: bool) -> None:
        if self._state is _State.OUT:
            self._shift_out()
        elif self._state is _State.COMMAND:
            if self._n_bits == 0 and not bit:
                return  # nothing begins without its start bit
            self._shift = self._shift << 1 | bit
            self._n_bits += 1
            if self._n_bits == _OPCODE_BITS + _ADDRESS_BITS:
                self._begin(self._shift >> _ADDRESS_BITS, self._shift % WORDS)
        elif self._state is _State.IN:
            self._shift = self._shift << 1 | bit
            self._n_bits += 1
            if self._n_bits == 16:
                self._store(self._shift)

    def _begin(self, opcode: int, address: int) -> None:
        self._address = address
        self._shift = self._n_bits = 0
        self._state = _State.DONE
        if opcode == _READ:
            self._state = _State.OUT
            self.data_out = False  # a dummy zero comes before the word
            self._shift = self.words[address]
            self._n_bits = 16
        elif opcode == _WRITE:
            self._state = _State.IN
        elif opcode == _ERASE:
            self._store(0xFFFF)
        elif opcode == _SPECIAL and address >> 4 in (0b00, 0b11):
            self._writable = address >> 4 == 0b11

    def _shift_out(self) -> None:
        if self._n_bits == 0:
            # The next word follows by itself, as long as the clock goes on.
            self._address = (self._address + 1) % WORDS
            self._shift = self.words[self._address]
            self._n_bits = 16
        self._n_bits -= 1
        self.data_out = bool(self._shift >> self._n_bits & 1)

    def _store(self, word: int) -> None:
        self._state = _State.DONE
        if self._writable:
            self.words[self._address] = word & 0xFFFF
