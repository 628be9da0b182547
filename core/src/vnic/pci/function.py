"""The function itself: the driver's accesses on one side, the host's interrupts on the other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol, TypeVar

from vnic.pci import registers as r
from vnic.pci.config_space import ConfigSpace, pieces
from vnic.pci.description import (
    N_BARS,
    Bar,
    BarKind,
    Capability,
    FunctionLevelReset,
    Identity,
    Msi,
    MsiX,
    PowerManagement,
)
from vnic.pci.registers import Command, Status
from vnic.pci.vectors import MsiVectors, MsiXVectors, MsiXWindow

if TYPE_CHECKING:
    from vnic.pci.description import Registers
    from vnic.pci.vectors import Message

_T = TypeVar("_T")


class Interrupts(Protocol):
    """The part of a `vnic.hookspecs.Host` that a function needs."""

    def interrupt(self, vector: int) -> None:
        """Raise a message-signalled interrupt."""

    def set_irq(self, level: bool) -> None:
        """Set the level of the pin."""


class Function:
    """One PCI function, for as long as its NIC lives.  All calls come with the loop's lock.

    The frontend describes it, sets the level of its pin (`set_irq`) or signals vectors
    (`signal`), and looks at `bus_master` before it touches guest memory.  The host passes it the
    guest's accesses; numbers and bytes are little-endian, as on the bus.

    ``on_command`` is called when the driver has changed what it allows (`command`), ``on_reset``
    when it has reset the function through configuration space; the function is at its power-on
    state by then, and what lies behind the BARs is the frontend's to reset.  A reset that the host
    wants goes to `vnic.nic.Nic.reset`, and comes here from the frontend.
    """

    def __init__(
        self,
        host: Interrupts,
        identity: Identity,
        bars: Sequence[Bar] = (),
        capabilities: Sequence[Capability] = (),
        *,
        interrupt_pin: bool = True,
        on_command: Callable[[], None] | None = None,
        on_reset: Callable[[], None] | None = None,
    ) -> None:
        """Build it at power-on state.

        Raises: ValueError, for a description that can't be.
        """
        self.host = host
        self.identity = identity
        self.bars = {bar.index: bar for bar in bars}
        self.capabilities = tuple(capabilities)
        self.interrupt_pin = interrupt_pin
        self.msi = _find(self.capabilities, Msi)
        self.msix = _find(self.capabilities, MsiX)
        self.host_keeps_vectors = False
        """The host has MSI-X table and masks of its own, as VFIO's have, and the guest's accesses
        to them never come here: `signal` asks only whether messages are enabled."""
        self._on_command = on_command
        self._on_reset = on_reset
        self._config = ConfigSpace(identity, bars, capabilities, interrupt_pin=interrupt_pin)
        self._power = _find(self.capabilities, PowerManagement)
        self._level_reset = _find(self.capabilities, FunctionLevelReset)
        self._vectors: list[MsiXVectors | MsiVectors] = []
        self._registers: list[Registers | None] = [None] * N_BARS
        for bar in bars:
            self._registers[bar.index] = bar.registers
        self._sizes = [self.bars[i].size if i in self.bars else 0 for i in range(N_BARS)]
        self._widths = [self.bars[i].width if i in self.bars else 4 for i in range(N_BARS)]
        self._set_up_vectors()
        self._level = False
        self._masked = False
        self._asserted = False
        self._pin_allowed = interrupt_pin

    # ---- the guest's accesses, through the host --------------------------------------------------

    def read_config(self, offset: int, n: int) -> bytes:
        """Read ``n`` bytes of configuration space; beyond its end they are 0xff."""
        return self._config.read(offset, n)

    def write_config(self, offset: int, data: bytes) -> None:
        """Write to it; what is read-only, or beyond its end, stays as it is."""
        command, d3hot = self.command, self._is_d3hot
        self._config.write(offset, data)
        woken = d3hot and not self._is_d3hot
        if self._take_level_reset() or (woken and self._power and not self._power.no_soft_reset):
            self._guest_reset()
            return
        for vectors in self._vectors:
            vectors.config_written()
        self._config_changed()
        if self.command != command and self._on_command is not None:
            self._on_command()

    def read_bar(self, index: int, offset: int, n: int) -> int:
        """Return ``n`` bytes of a BAR; where there is none, and beyond its end, they are 0xff.

        Whether the driver has enabled memory and I/O space is for whoever decodes addresses to
        look at: `command`, `bar_address`.
        """
        if not 0 <= index < N_BARS or n <= 0:
            return (1 << 8 * max(n, 0)) - 1
        registers, size = self._registers[index], self._sizes[index]
        all_ones = (1 << 8 * n) - 1
        if registers is None or offset < 0 or offset + n > size:
            return all_ones
        if n & (n - 1) == 0 and n <= self._widths[index] and not offset & (n - 1):
            return registers.read(offset, n) & all_ones
        value = 0
        for at, m in pieces(offset, offset + n, self._widths[index]):
            value |= (registers.read(at, m) & (1 << 8 * m) - 1) << 8 * (at - offset)
        return value

    def write_bar(self, index: int, offset: int, n: int, value: int) -> None:
        """Write ``n`` bytes to a BAR; where there is none, and beyond its end, nothing happens."""
        if not 0 <= index < N_BARS or n <= 0:
            return
        registers, size = self._registers[index], self._sizes[index]
        if registers is None or offset < 0 or offset + n > size:
            return
        if n & (n - 1) == 0 and n <= self._widths[index] and not offset & (n - 1):
            registers.write(offset, n, value & (1 << 8 * n) - 1)
            return
        for at, m in pieces(offset, offset + n, self._widths[index]):
            registers.write(at, m, value >> 8 * (at - offset) & (1 << 8 * m) - 1)

    # ---- what the driver allows ------------------------------------------------------------------

    @property
    def command(self) -> Command:
        """The command register."""
        return Command(self._config.get(r.COMMAND, 2))

    @property
    def bus_master(self) -> bool:
        """Whether the function may touch guest memory and send messages."""
        return bool(self._config.data[r.COMMAND] & Command.BUS_MASTER)

    @property
    def memory_enable(self) -> bool:
        """Whether memory BARs answer."""
        return bool(self._config.data[r.COMMAND] & Command.MEMORY)

    @property
    def io_enable(self) -> bool:
        """Whether I/O BARs answer."""
        return bool(self._config.data[r.COMMAND] & Command.IO)

    def bar_address(self, index: int) -> int | None:
        """Return where the driver has put a BAR; None while its address space is not enabled."""
        bar = self.bars.get(index)
        if bar is None:
            return None
        io = bar.kind is BarKind.IO
        if not (self.io_enable if io else self.memory_enable):
            return None
        value = self._config.get(r.BASE_ADDRESS + 4 * index, 8 if bar.wide else 4)
        return value & (~0b11 if io else ~0b1111)

    def capability_at(self, capability: Capability) -> int:
        """Return where in configuration space a capability lies."""
        return self._config.places[id(capability)]

    # ---- the pin ---------------------------------------------------------------------------------

    @property
    def irq(self) -> bool:
        """Whether the pin is asserted: what the host was last told."""
        return self._asserted

    def set_irq(self, level: bool) -> None:
        """Set what the function asks of its pin; the host is told when the pin itself changes."""
        if level != self._level:
            self._level = level
            data = self._config.data
            data[r.STATUS] = data[r.STATUS] & ~int(Status.INTERRUPT) | Status.INTERRUPT * level
            self._update_pin()

    def mask_irq(self) -> None:
        """Keep the pin down, whatever the function asks, until `unmask_irq`.

        A host whose interrupts are edges masks after each, and unmasks when the guest has
        answered it: if the function still asks then, there is another edge.
        """
        self._masked = True
        self._update_pin()

    def unmask_irq(self) -> None:
        """Undo `mask_irq`; the host is told at once if the function asks for its pin."""
        self._masked = False
        self._update_pin()

    # ---- messages --------------------------------------------------------------------------------

    @property
    def messages_enabled(self) -> bool:
        """Whether the driver has chosen MSI or MSI-X instead of the pin."""
        return any(vectors.enabled for vectors in self._vectors)

    def signal(self, vector: int) -> bool:
        """Interrupt by message; one that is masked is sent when it is unmasked.

        False, and nothing done: messages are not enabled, and the pin is what the driver hears.
        """
        for vectors in self._vectors:
            if vectors.enabled:
                if self.host_keeps_vectors:
                    self.host.interrupt(vector)
                else:
                    vectors.signal(vector)
                return True
        return False

    def message(self, vector: int) -> Message | None:
        """Return what a vector's interrupt writes and where, for hosts that write it.

        None: messages are not enabled, or there is no such vector.
        """
        for vectors in self._vectors:
            if vectors.enabled and 0 <= vector < vectors.n:
                return vectors.message(vector)
        return None

    # ---- reset -----------------------------------------------------------------------------------

    def reset(self) -> None:
        """Return configuration space, vectors and the pin to power-on state."""
        self._config.reset()
        for vectors in self._vectors:
            vectors.reset()
        self._level = self._masked = False
        self._config_changed()

    # ---- the parts of these ----------------------------------------------------------------------

    def _set_up_vectors(self) -> None:
        if self.msix is not None:
            msix = MsiXVectors(self.msix, self._config, self._tell)
            self._vectors.append(msix)
            for index in {self.msix.table_bar, self.msix.pba_bar}:
                if index not in self.bars:
                    raise ValueError(f"MSI-X: there is no BAR {index}")
                self._registers[index] = MsiXWindow(self.bars[index], self.msix, msix)
        if self.msi is not None:
            self._vectors.append(MsiVectors(self.msi, self._config, self._tell))

    def _tell(self, vector: int) -> None:
        self.host.interrupt(vector)

    def _config_changed(self) -> None:
        messages = self.messages_enabled
        disabled = self._config.get(r.COMMAND, 2) & Command.INTERRUPT_DISABLE
        self._pin_allowed = self.interrupt_pin and not messages and not disabled
        self._update_pin()

    def _update_pin(self) -> None:
        asserted = self._level and self._pin_allowed and not self._masked
        if asserted != self._asserted:
            # Before the host is told: it may mask from within, and is told of that in turn.
            self._asserted = asserted
            self.host.set_irq(asserted)

    @property
    def _is_d3hot(self) -> bool:
        if self._power is None:
            return False
        control = self._config.get(self.capability_at(self._power) + PowerManagement.CONTROL, 2)
        return control & PowerManagement.STATE_MASK == PowerManagement.D3HOT

    def _take_level_reset(self) -> bool:
        """Return whether the driver has just asked for it; the bit reads as zero."""
        if self._level_reset is None:
            return False
        at = self.capability_at(self._level_reset) + FunctionLevelReset.CONTROL
        asked = bool(self._config.get(at, 1) & FunctionLevelReset.INITIATE)
        if asked:
            self._config.put(at, 1, 0)
        return asked

    def _guest_reset(self) -> None:
        self.reset()
        if self._on_reset is not None:
            self._on_reset()


def _find(capabilities: Sequence[Capability], kind: type[_T]) -> _T | None:
    found = [capability for capability in capabilities if isinstance(capability, kind)]
    if len(found) > 1:
        raise ValueError(f"{kind.__name__}: is described {len(found)} times")
    return found[0] if found else None
