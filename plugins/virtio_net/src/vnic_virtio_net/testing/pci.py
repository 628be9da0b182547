"""The driver's way through PCI: finds the structures, negotiates, chooses vectors.

Spec: Virtio 1.3, "Virtio Over PCI Bus", "PCI-specific Initialization And Device Operation".
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

import attrs
from vnic.features import Features, names
from vnic.testing import DriverError

if TYPE_CHECKING:
    from vnic.hookspecs import QueueAddresses
    from vnic.nic import Nic
    from vnic.pci import Function
    from vnic.testing import SoftwareHost

    from vnic_virtio_net.testing.transport import Handlers

COMMON_CFG: Final = {
    "device_feature_select": (0, 4),
    "device_feature": (4, 4),
    "driver_feature_select": (8, 4),
    "driver_feature": (12, 4),
    "config_msix_vector": (16, 2),
    "num_queues": (18, 2),
    "device_status": (20, 1),
    "config_generation": (21, 1),
    "queue_select": (22, 2),
    "queue_size": (24, 2),
    "queue_msix_vector": (26, 2),
    "queue_enable": (28, 2),
    "queue_notify_off": (30, 2),
    "queue_desc": (32, 8),
    "queue_driver": (40, 8),
    "queue_device": (48, 8),
}
"""``struct virtio_pci_common_cfg``: offset and size of each field."""

ACKNOWLEDGE: Final = 1
DRIVER: Final = 2
DRIVER_OK: Final = 4
FEATURES_OK: Final = 8
NEEDS_RESET: Final = 64
FAILED: Final = 128

NO_VECTOR: Final = 0xFFFF
ISR_QUEUE: Final = 1
ISR_CONFIG: Final = 2

COMMON: Final = 1
NOTIFY: Final = 2
ISR: Final = 3
DEVICE: Final = 4
_WINDOW: Final = 5
_VENDOR_CAPABILITY: Final = 9
_MSIX_CAPABILITY: Final = 17
_MSIX_ENABLE: Final = 1 << 15
_MSIX_ENTRY: Final = 16
_COMMAND: Final = 4
_MEMORY: Final = 1 << 1
_BUS_MASTER: Final = 1 << 2
_FIRST_BAR: Final = 0x10
_N_BARS: Final = 6
_FIRST_ADDRESS: Final = 0xE000_0000
"""Where the driver, its own firmware, begins to put BARs."""


@attrs.frozen
class Place:
    """A structure in a BAR."""

    bar: int
    offset: int
    size: int


class VirtioPciDevice:
    """A function as its driver sees it: its structures found, memory and bus mastering enabled."""

    def __init__(self, function: Function) -> None:
        """Raises: DriverError, for a function that lacks one of the structures."""
        self.function = function
        self.places: dict[int, Place] = {}
        self.window_at = 0
        """Where in configuration space the capability is by which BARs are reached from there."""
        self.msix_at = 0
        self.notify_multiplier = 0
        self._assign_addresses()
        self._walk_capabilities()
        missing = {COMMON, NOTIFY, ISR, DEVICE} - self.places.keys()
        if missing:
            raise DriverError(f"no virtio structure of types {sorted(missing)} is there")
        self.set_command(_MEMORY | _BUS_MASTER)

    # ---- configuration space

    def config(self, offset: int, n: int) -> int:
        """Read configuration space."""
        return int.from_bytes(self.function.read_config(offset, n), "little")

    def set_config(self, offset: int, n: int, value: int) -> None:
        """Write to it."""
        self.function.write_config(offset, value.to_bytes(n, "little"))

    def set_command(self, command: int) -> None:
        """Say what the function may do."""
        self.set_config(_COMMAND, 2, command)

    def set_bus_master(self, on: bool) -> None:
        """Let the function touch memory, or not."""
        self.set_command(_MEMORY | (_BUS_MASTER if on else 0))

    def _assign_addresses(self) -> None:
        address, at = _FIRST_ADDRESS, _FIRST_BAR
        while at < _FIRST_BAR + 4 * _N_BARS:
            wide = self.config(at, 4) & 0b110 == 0b100
            self.set_config(at, 4, 0xFFFF_FFFF)
            size = -(self.config(at, 4) & ~0xF) & 0xFFFF_FFFF
            if size:
                address = -(-address // size) * size
                self.set_config(at, 4, address)
                address += size
            at += 8 if wide else 4

    def _walk_capabilities(self) -> None:
        at = self.config(0x34, 1)
        for _ in range(48):
            if at == 0:
                return
            kind = self.config(at, 1)
            if kind == _MSIX_CAPABILITY:
                self.msix_at = at
            elif kind == _VENDOR_CAPABILITY:
                cfg_type = self.config(at + 3, 1)
                place = Place(
                    self.config(at + 4, 1), self.config(at + 8, 4), self.config(at + 12, 4)
                )
                if cfg_type == _WINDOW:
                    self.window_at = at
                else:
                    self.places.setdefault(cfg_type, place)
                if cfg_type == NOTIFY:
                    self.notify_multiplier = self.config(at + 16, 4)
            at = self.config(at + 1, 1)
        raise DriverError("the list of capabilities has no end")

    # ---- the common configuration

    def get(self, name: str, queue: int | None = None) -> int:
        """Read a field, of a queue if it is one's."""
        place = self._select(queue)
        offset, size = COMMON_CFG[name]
        value = 0
        for at in range(0, size, 4):
            word = self.function.read_bar(place.bar, place.offset + offset + at, min(size, 4))
            value |= word << 8 * at
        return value

    def set(self, name: str, value: int, queue: int | None = None) -> None:
        """Write a field; those of 64 bits as two of 32, as drivers do."""
        place = self._select(queue)
        offset, size = COMMON_CFG[name]
        for at in range(0, size, 4):
            n = min(size, 4)
            word = value >> 8 * at & (1 << 8 * n) - 1
            self.function.write_bar(place.bar, place.offset + offset + at, n, word)

    def _select(self, queue: int | None) -> Place:
        if queue is not None:
            self.set("queue_select", queue)
        return self.places[COMMON]

    @property
    def status(self) -> int:
        """The device status."""
        return self.get("device_status")

    def add_status(self, bits: int) -> int:
        """Set bits of it, and return what it is then."""
        self.set("device_status", self.status | bits)
        return self.status

    def reset(self) -> None:
        """Reset the device, and say that there is a driver."""
        self.set("device_status", 0)
        if self.status != 0:
            raise DriverError(f"device status is {self.status:#x} after a reset")
        self.add_status(ACKNOWLEDGE)
        self.add_status(DRIVER)

    def features(self) -> Features:
        """Read what is offered."""
        words = []
        for i in range(2):
            self.set("device_feature_select", i)
            words.append(self.get("device_feature"))
        return Features(words[1] << 32 | words[0])

    def choose(self, features: Features) -> bool:
        """Write the driver's choice; whether the device takes it."""
        for i in range(2):
            self.set("driver_feature_select", i)
            self.set("driver_feature", int(features) >> 32 * i & 0xFFFF_FFFF)
        return bool(self.add_status(FEATURES_OK) & FEATURES_OK)

    def set_up_queue(self, index: int, queue: QueueAddresses, vector: int = NO_VECTOR) -> None:
        """Tell where a queue lies, and enable it.

        Raises: DriverError, when the device has no such queue, or takes no such vector.
        """
        size_max = self.get("queue_size", index)
        if not queue.size <= size_max:
            raise DriverError(f"queue {index}: {queue.size} entries; the device has {size_max}")
        self.set("queue_size", queue.size, index)
        self.set("queue_desc", queue.desc_gpa)
        self.set("queue_driver", queue.avail_gpa)
        self.set("queue_device", queue.used_gpa)
        self.set("queue_msix_vector", vector)
        if self.get("queue_msix_vector") != vector:
            raise DriverError(f"queue {index}: the device has no vector {vector} for it")
        self.set("queue_enable", 1)

    # ---- the other structures

    def read_config(self, offset: int, n: int) -> bytes:
        """Read the device's configuration, whole: again, if it changed meanwhile."""
        place = self.places[DEVICE]
        for _ in range(100):
            before = self.get("config_generation")
            data = bytes(
                self.function.read_bar(place.bar, place.offset + offset + i, 1) for i in range(n)
            )
            if self.get("config_generation") == before:
                return data
        raise DriverError("the configuration changes faster than it can be read")

    def read_isr(self) -> int:
        """Read why the pin is asserted; that answers it."""
        place = self.places[ISR]
        return self.function.read_bar(place.bar, place.offset, 1)

    def notify_address(self, queue: int) -> tuple[int, int]:
        """Return BAR and offset of a queue's notify register."""
        place = self.places[NOTIFY]
        return place.bar, place.offset + self.notify_multiplier * self.get(
            "queue_notify_off", queue
        )

    def disable_messages(self) -> None:
        """Have the pin, whatever another driver had."""
        control = self.config(self.msix_at + 2, 2)
        self.set_config(self.msix_at + 2, 2, control & ~_MSIX_ENABLE)

    def enable_messages(self) -> int:
        """Have MSI-X, every vector with a message of its own; return how many there are."""
        control = self.config(self.msix_at + 2, 2)
        n = (control & 0x7FF) + 1
        table = self.config(self.msix_at + 4, 4)
        self.set_config(self.msix_at + 2, 2, control | _MSIX_ENABLE)
        for i in range(n):
            entry = (table & ~0b111) + _MSIX_ENTRY * i
            for at, word in enumerate((0xFEE0_0000, 0, 0x20 + i, 0)):
                self.function.write_bar(table & 0b111, entry + 4 * at, 4, word)
        return n


class PciTransport:
    """The registers of a PCI function.  Stopping is a reset: it can't be started again.

    It takes the host's ``on_interrupt``.
    """

    def __init__(self, nic: Nic, host: SoftwareHost, *, messages: bool = True) -> None:
        """Reset the device and read what it offers; ``messages``: MSI-X and not the pin.

        Raises: DriverError, for a NIC that is no virtio PCI function.
        """
        if nic.pci is None:
            raise DriverError(f"{nic.name}: has no pci face for a virtio-net driver")
        self.device = VirtioPciDevice(nic.pci)
        self._host = host
        self._messages = messages
        self._handlers: Handlers | None = None
        self._notify: list[tuple[int, int]] = []
        self.device.reset()
        self.offered = self.device.features()
        self.read_config = self.device.read_config

    @property
    def broken(self) -> bool:
        """Whether the device asks for a reset."""
        return bool(self.device.status & NEEDS_RESET)

    def negotiate(self, features: Features) -> None:
        """Write the driver's choice."""
        if not self.device.choose(features):
            raise DriverError(f"the device doesn't take features {names(features)}")

    def start(self, queues: Sequence[QueueAddresses], handlers: Handlers) -> None:
        """Choose vectors, enable the queues, set DRIVER_OK."""
        device = self.device
        if not device.status & FEATURES_OK:
            raise DriverError("the device was reset; a new driver has to negotiate")
        self._handlers = handlers
        self._host.on_interrupt = self._interrupt
        if self._messages:
            device.enable_messages()
            device.set("config_msix_vector", 0)
        else:
            device.disable_messages()
        for i, queue in enumerate(queues):
            device.set_up_queue(i, queue, i + 1 if self._messages else NO_VECTOR)
        self._notify = [device.notify_address(i) for i in range(len(queues))]
        if device.add_status(DRIVER_OK) & NEEDS_RESET:
            raise DriverError("the device needs a reset as soon as it is started")

    def stop(self) -> list[int]:
        """Reset the device."""
        self.device.set("device_status", 0)
        return []

    def kick(self, index: int) -> None:
        """Write the queue's number where the device wants to see it."""
        bar, offset = self._notify[index]
        self.device.function.write_bar(bar, offset, 2, index)

    def _interrupt(self, vector: int) -> None:
        handlers = self._handlers
        if handlers is None:
            return
        if vector < 0:
            self._host.schedule(self._answer_pin)
        elif vector == 0:
            handlers.config()
        else:
            handlers.queues[vector - 1]()

    def _answer_pin(self) -> None:
        reason = self.device.read_isr()
        if self._handlers is None:
            return
        if reason & ISR_CONFIG:
            self._handlers.config()
        if reason & ISR_QUEUE:
            self._handlers.shared()
