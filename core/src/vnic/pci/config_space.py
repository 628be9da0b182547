"""Configuration space: bytes, and which of their bits can be written."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from vnic.pci import registers as r
from vnic.pci.description import Bar, BarKind, Capability, Identity, VendorSpecific
from vnic.pci.registers import Command, Status

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from vnic.pci.description import Registers

_WRITABLE_COMMAND: Final = (
    Command.MEMORY
    | Command.BUS_MASTER
    | Command.INVALIDATE
    | Command.PARITY
    | Command.SERR
    | Command.INTERRUPT_DISABLE
)


class ConfigSpace:
    """256 bytes.  Reads beyond them are all ones, writes are ignored; nothing raises."""

    def __init__(
        self,
        identity: Identity,
        bars: Sequence[Bar],
        capabilities: Sequence[Capability],
        *,
        interrupt_pin: bool,
    ) -> None:
        self._reset = bytearray(r.CONFIG_SIZE)
        self._writable = bytearray(r.CONFIG_SIZE)
        self._windows: list[tuple[range, int, Registers]] = []
        """Where registers answer: the range, where its capability begins, whose."""
        self.places: dict[int, int] = {}
        """Where a capability lies, by the ``id()`` of its description."""
        self._lay_out_header(identity, interrupt_pin)
        self._lay_out_bars(bars)
        self._lay_out_capabilities(capabilities)
        self.data = bytearray(self._reset)

    def reset(self) -> None:
        """Return to what it was at power-on."""
        self.data[:] = self._reset

    def get(self, offset: int, n: int) -> int:
        """Return ``n`` bytes as a number, as they are stored."""
        return int.from_bytes(self.data[offset : offset + n], "little")

    def put(self, offset: int, n: int, value: int) -> None:
        """Store a number, on the function's own behalf."""
        self.data[offset : offset + n] = value.to_bytes(n, "little")

    def read(self, offset: int, n: int) -> bytes:
        """Return exactly ``n`` bytes, as the driver sees them."""
        if offset < 0:
            return b"\xff" * n
        data = bytearray(self.data[offset : offset + n])
        data += b"\xff" * (n - len(data))
        for window, start, registers in self._windows:
            for at, size in pieces(max(offset, window.start), min(offset + n, window.stop), 4):
                value = registers.read(at - start, size) & (1 << 8 * size) - 1
                data[at - offset : at - offset + size] = value.to_bytes(size, "little")
        return bytes(data)

    def write(self, offset: int, data: bytes) -> None:
        """Take what can be written."""
        end = min(offset + len(data), r.CONFIG_SIZE)
        for at in range(max(offset, 0), end):
            mask = self._writable[at]
            self.data[at] = self.data[at] & ~mask | data[at - offset] & mask
        for window, start, registers in self._windows:
            for at, size in pieces(max(offset, window.start), min(end, window.stop), 4):
                value = int.from_bytes(data[at - offset : at - offset + size], "little")
                registers.write(at - start, size, value)

    # ---- what is where ---------------------------------------------------------------------------

    def _define(self, offset: int, n: int, value: int, writable: int = 0) -> None:
        self._reset[offset : offset + n] = value.to_bytes(n, "little")
        self._writable[offset : offset + n] = writable.to_bytes(n, "little")

    def _lay_out_header(self, identity: Identity, interrupt_pin: bool) -> None:
        self._define(r.VENDOR_ID, 4, identity.device << 16 | identity.vendor)
        self._define(r.COMMAND, 2, 0, _WRITABLE_COMMAND)
        self._define(r.REVISION_ID, 4, identity.class_code << 8 | identity.revision)
        self._define(r.CACHE_LINE_SIZE, 1, 0, 0xFF)
        self._define(r.LATENCY_TIMER, 1, 0, 0xFF)
        subsystem = identity.subsystem << 16 | identity.subsystem_vendor
        self._define(r.SUBSYSTEM_VENDOR_ID, 4, subsystem)
        self._define(r.INTERRUPT_LINE, 1, 0, 0xFF)
        self._define(r.INTERRUPT_PIN, 1, int(interrupt_pin))
        self._define(r.MIN_GRANT, 2, identity.max_latency << 8 | identity.min_grant)

    def _lay_out_bars(self, bars: Sequence[Bar]) -> None:
        taken: set[int] = set()
        for bar in bars:
            for i, (value, writable) in enumerate(bar.encode(), bar.index):
                if i in taken:
                    raise ValueError(f"BAR {i}: is described twice")
                taken.add(i)
                self._define(r.BASE_ADDRESS + 4 * i, 4, value, writable)
            if bar.kind is BarKind.IO:
                self._define(r.COMMAND, 2, 0, _WRITABLE_COMMAND | Command.IO)

    def _lay_out_capabilities(self, capabilities: Sequence[Capability]) -> None:
        pointer, free = r.CAPABILITIES, r.HEADER_END
        taken: set[int] = set()
        for capability in capabilities:
            body, writable = capability.encode()
            at = free if capability.at is None else capability.at
            n = len(body) + 2
            whole = range(at, at + n)
            if at % 4 or at < r.HEADER_END or whole.stop > r.CONFIG_SIZE or taken & {*whole}:
                raise ValueError(f"{capability}: {n} bytes have no place at {at:#x}")
            taken |= {*whole}
            free = -(-whole.stop // 4) * 4
            self._define(pointer, 1, at)
            self._define(at, n, int.from_bytes(bytes((capability.ID, 0)) + body, "little"))
            self._writable[at + 2 : whole.stop] = writable
            self.places[id(capability)] = at
            pointer = at + 1
            if isinstance(capability, VendorSpecific) and capability.registers is not None:
                self._windows.append((range(at + 3, whole.stop), at, capability.registers))
        if capabilities:
            self._define(r.STATUS, 2, Status.CAPABILITIES)


def pieces(start: int, stop: int, width: int) -> Iterator[tuple[int, int]]:
    """Cut a stretch into (offset, size) of naturally aligned accesses, at most ``width`` bytes."""
    while start < stop:
        size = width
        while start & size - 1 or start + size > stop:
            size >>= 1
        yield start, size
        start += size
