"""The device as a PCI function: registers in front of the queues that `VhostFace` has.

All structures are in one memory BAR, the notify registers on a page of their own.  The registers
decide when a queue runs: when the driver has set DRIVER_OK and lets the function be a bus master,
and neither side has given up.  What they drive has the vhost face and nothing else.

Spec: Virtio 1.3, "Virtio Over PCI Bus"; "Device Status Field".
"""

from __future__ import annotations

import logging
import struct
from collections.abc import Callable
from functools import partial
from typing import Final

from vnic.errors import PeerError
from vnic.features import NONE, Features, coherent, names
from vnic.hookspecs import Host, VhostFace
from vnic.pci import Bar, Function, Identity, MsiX, VendorSpecific

from vnic_virtio_net.pci_registers import (
    BY_PLACE,
    NO_VECTOR,
    QUEUE_SIZE_MAX,
    REGISTERS,
    Access,
    Isr,
    QueueRegisters,
    Register,
    Status,
)
from vnic_virtio_net.pci_window import VIRTIO_PCI_CAP, CfgType, ConfigWindow

log = logging.getLogger("vnic.virtio_net")

IDENTITY: Final = Identity(
    vendor=0x1AF4,
    device=0x1041,
    revision=1,
    class_code=0x020000,
    subsystem_vendor=0x1AF4,
    subsystem=0x1041,
)
"""Spec: "PCI Device Discovery"."""

BAR: Final = 0
BAR_SIZE: Final = 0x2000
COMMON: Final = range(0x0040)
ISR: Final = range(0x0100, 0x0101)
DEVICE: Final = 0x0200
TABLE: Final = 0x0800
PBA: Final = 0x0C00
NOTIFY: Final = range(0x1000, 0x2000)
"""A page of its own: what is written to it most often, and means nothing but "look"."""

NOTIFY_MULTIPLIER: Final = 4
FEATURE_WORDS: Final = 2
"""32 bits each: no feature of ours is beyond bit 63."""

_STEPS: Final = (Status.ACKNOWLEDGE, Status.DRIVER, Status.FEATURES_OK, Status.DRIVER_OK)
"""Each needs the one before.  Spec: "Driver Requirements: Device Initialization"."""

_BROKEN: Final = Status.DEVICE_NEEDS_RESET | Status.FAILED


class VirtioPci:
    """The registers of one device, and the `function` that they belong to.

    A register is written with an access of its own size: others are no driver's, and ignored.
    Whatever is written, nothing raises.
    """

    def __init__(self, device: VhostFace, host: Host, config_size: int) -> None:
        """Put registers before a device at rest, whose configuration has ``config_size`` bytes."""
        self._device = device
        self._host = host
        self._config_size = config_size
        self._config_generation = 0
        self._running = False
        self._window = ConfigWindow()
        self._reset_registers()
        self.function = Function(
            host,
            IDENTITY,
            [Bar(index=BAR, size=BAR_SIZE, registers=self)],
            [
                _capability(CfgType.COMMON, COMMON.start, len(COMMON)),
                _capability(
                    CfgType.NOTIFY, NOTIFY.start, len(NOTIFY), struct.pack("<I", NOTIFY_MULTIPLIER)
                ),
                _capability(CfgType.ISR, ISR.start, len(ISR)),
                _capability(CfgType.DEVICE, DEVICE, config_size),
                VendorSpecific(body=self._window.body, registers=self._window),
                MsiX(
                    vectors=device.n_queues + 1,
                    table_bar=BAR,
                    table_offset=TABLE,
                    pba_bar=BAR,
                    pba_offset=PBA,
                ),
            ],
            on_command=self._update,
        )
        self._window.function = self.function

    def reset(self) -> None:
        """Return to power-on state, configuration space too; the device is at rest already."""
        self._reset_registers()
        self._window.reset()
        self.function.reset()

    def _reset_registers(self) -> None:
        self._running = False
        self.status = Status(0)
        self.isr = Isr(0)
        self.device_feature_select = self.driver_feature_select = self.queue_select = 0
        self._driver_features = [0] * FEATURE_WORDS
        self._config_msix_vector = NO_VECTOR
        self._queues = [QueueRegisters(index) for index in range(self._device.n_queues)]

    # ---- what the device says

    def config_changed(self) -> None:
        """The configuration reads otherwise than before: tell the driver."""
        self._config_generation = self._config_generation + 1 & 0xFF
        if Status.DRIVER_OK in self.status:
            self._tell_of_configuration()

    def device_failed(self) -> None:
        """The driver broke a queue, and the device has stopped: ask for a reset."""
        if Status.DRIVER_OK in self.status:
            self._running = False
            self.status |= Status.DEVICE_NEEDS_RESET
            self._tell_of_configuration()

    def _tell_of_configuration(self) -> None:
        self.isr |= Isr.CONFIGURATION  # also where a message says it, and nobody has to look
        self._interrupt(self._config_msix_vector, Isr.CONFIGURATION)

    def _interrupt(self, vector: int, reason: Isr) -> None:
        function = self.function
        if vector != NO_VECTOR and function.signal(vector):
            return
        if not function.messages_enabled:
            self.isr |= reason
            function.set_irq(True)

    # ---- registers

    def read(self, offset: int, n: int) -> int:
        """Read from the BAR; between the structures it is zero."""
        if offset in ISR:
            return self._read_isr()
        if offset in COMMON:
            return self._read_common(offset, n)
        if DEVICE <= offset < DEVICE + self._config_size:
            return int.from_bytes(self._device.read_config(offset - DEVICE, n), "little")
        return 0

    def write(self, offset: int, n: int, value: int) -> None:
        """Write to the BAR."""
        if offset in NOTIFY:
            # The address says which queue: what is written there is its number again.
            index = (offset - NOTIFY.start) // NOTIFY_MULTIPLIER
            if self._running and index < self._device.n_queues:
                self._device.kick(index)
        elif (register := BY_PLACE.get((offset, n))) is not None:
            self._write_common(register, value)
        elif DEVICE <= offset < DEVICE + self._config_size:
            self._device.write_config(offset - DEVICE, value.to_bytes(n, "little"))

    def _read_isr(self) -> int:
        """Reading it answers the interrupt.  Spec: "ISR status capability"."""
        isr, self.isr = self.isr, Isr(0)
        self.function.set_irq(False)
        return int(isr)

    def _read_common(self, offset: int, n: int) -> int:
        data = bytearray(n)
        for register in REGISTERS:
            whole = self._read_register(register).to_bytes(register.size, "little")
            for i, byte in enumerate(whole, register.offset - offset):
                if 0 <= i < n:
                    data[i] = byte
        return int.from_bytes(data, "little")

    def _read_register(self, register: Register) -> int:
        value: int = 0
        if register.access is Access.STORED:
            value = getattr(self, register.name)
        elif register.access is Access.METHOD:
            value = getattr(self, f"read_{register.name}")()
        elif register.access is Access.QUEUE and self._selected is not None:
            value = getattr(self._selected, register.name)
        return value

    def _write_common(self, register: Register, value: int) -> None:
        if register.access is Access.STORED:
            setattr(self, register.name, value)
        elif register.access is Access.METHOD:
            take: Callable[[int], None] | None = getattr(self, f"write_{register.name}", None)
            if take is not None:
                take(value)
        elif register.access is Access.QUEUE and (queue := self._open_to_change) is not None:
            setattr(queue, register.name, value)

    # ---- features

    def read_device_feature(self) -> int:
        """A window of 32 bits on what the device offers."""
        if self.device_feature_select >= FEATURE_WORDS:
            return 0
        return int(self._device.get_features()) >> 32 * self.device_feature_select & 0xFFFF_FFFF

    def read_driver_feature(self) -> int:
        """A window on what the driver has chosen."""
        if self.driver_feature_select >= FEATURE_WORDS:
            return 0
        return self._driver_features[self.driver_feature_select]

    def write_driver_feature(self, value: int) -> None:
        """The driver's choice; it is fixed once FEATURES_OK stands."""
        if self.driver_feature_select < FEATURE_WORDS and Status.FEATURES_OK not in self.status:
            self._driver_features[self.driver_feature_select] = value

    def _take_features(self) -> bool:
        """Whether the device can be what the driver has chosen."""
        low, high = self._driver_features
        chosen = Features(high << 32 | low)
        if Features.VERSION_1 not in chosen or coherent(chosen) != chosen:
            log.info("the driver's features can't be: %s", names(chosen))
            return False
        try:
            self._device.set_features(chosen)
        except PeerError as error:
            log.info("the driver's features can't be: %s", error)
            return False
        return True

    # ---- status

    def read_device_status(self) -> int:
        """How far it is."""
        return int(self.status)

    def write_device_status(self, value: int) -> None:
        """Take the next steps, or reset.  No bit is ever cleared but by a reset."""
        if value == 0:
            self._driver_reset()
        elif value & Status.FAILED:
            self.status |= Status.FAILED
        elif not self.status & _BROKEN:
            for step in _STEPS:
                if step in self.status:
                    continue
                if not value & step or (step is Status.FEATURES_OK and not self._take_features()):
                    break
                self.status |= step
        self._update()

    def _driver_reset(self) -> None:
        self._stop()
        self._device.set_features(NONE)
        self._reset_registers()
        self.function.set_irq(False)

    def _update(self) -> None:
        """Start or stop the queues, as status and bus mastering have it."""
        alive = Status.DRIVER_OK in self.status and not self.status & _BROKEN
        if alive and self.function.bus_master:
            if not self._running:
                self._start()
        elif self._running:
            self._stop()

    def _start(self) -> None:
        self._running = True
        device = self._device
        try:
            for queue in self._queues:
                if queue.queue_enable:
                    notify = partial(self._queue_used, queue)
                    device.start_queue(queue.index, queue.addresses, notify)
                    device.enable_queue(queue.index, True)
        except PeerError as error:
            self._stop()
            self._host.failed(str(error))
            self.device_failed()

    def _stop(self) -> None:
        self._running = False
        for queue in self._queues:
            queue.base = self._device.stop_queue(queue.index)

    # ---- queues

    @property
    def _selected(self) -> QueueRegisters | None:
        """The queue that is selected; None, if there is no such."""
        if self.queue_select < len(self._queues):
            return self._queues[self.queue_select]
        return None

    @property
    def _open_to_change(self) -> QueueRegisters | None:
        """The selected queue, if the driver may still say where it lies."""
        queue = self._selected
        if queue is None or queue.queue_enable or Status.DRIVER_OK in self.status:
            return None
        return queue

    def read_num_queues(self) -> int:
        """How many there are."""
        return len(self._queues)

    def read_queue_size(self) -> int:
        """Its entries: at reset the most that are possible; 0 where there is no queue."""
        return self._selected.queue_size if self._selected else 0

    def write_queue_size(self, value: int) -> None:
        """Fewer entries.  What is no power of two, or too many, is not taken."""
        queue = self._open_to_change
        if queue is not None and 0 < value <= QUEUE_SIZE_MAX and not value & (value - 1):
            queue.queue_size = value

    def read_queue_enable(self) -> int:
        """Whether it has been enabled."""
        return self._selected.queue_enable if self._selected else 0

    def write_queue_enable(self, value: int) -> None:
        """From now on it is as it is.  There is no way back but a reset."""
        queue = self._open_to_change
        if queue is not None and value == 1:
            queue.queue_enable = 1

    def read_queue_notify_off(self) -> int:
        """Its place among the notify registers, in units of the multiplier."""
        return self._selected.index if self._selected else 0

    def _queue_used(self, queue: QueueRegisters) -> None:
        self._interrupt(queue.queue_msix_vector, Isr.QUEUE)

    # ---- vectors

    def read_config_msix_vector(self) -> int:
        """The vector of configuration changes."""
        return self._config_msix_vector

    def write_config_msix_vector(self, value: int) -> None:
        """Choose it; one that there isn't becomes NO_VECTOR, by which the driver knows."""
        self._config_msix_vector = self._vector(value)

    def read_queue_msix_vector(self) -> int:
        """The selected queue's vector."""
        return self._selected.queue_msix_vector if self._selected else NO_VECTOR

    def write_queue_msix_vector(self, value: int) -> None:
        """Choose it, at any time."""
        if self._selected is not None:
            self._selected.queue_msix_vector = self._vector(value)

    def _vector(self, value: int) -> int:
        return value if value <= self._device.n_queues else NO_VECTOR

    # ---- the configuration's generation

    def read_config_generation(self) -> int:
        """Another number after each change, so that a driver sees that it read half of one."""
        return self._config_generation


def _capability(cfg_type: CfgType, offset: int, length: int, more: bytes = b"") -> VendorSpecific:
    """Say where a structure lies.  Spec: "Virtio Structure PCI Capabilities"."""
    n = 2 + VIRTIO_PCI_CAP.size + len(more)
    return VendorSpecific(body=VIRTIO_PCI_CAP.pack(n, cfg_type, BAR, 0, offset, length) + more)
