"""The common configuration: which registers there are, and what each queue has of them.

Spec: Virtio 1.3, "Common configuration structure layout".
"""

from __future__ import annotations

from enum import Enum, IntFlag
from typing import Final

import attrs
from vnic.hookspecs import QueueAddresses

NO_VECTOR: Final = 0xFFFF
QUEUE_SIZE_MAX: Final = 1024


class Status(IntFlag):
    """How far driver and device have come.  Spec: "Device Status Field"."""

    ACKNOWLEDGE = 1 << 0
    DRIVER = 1 << 1
    DRIVER_OK = 1 << 2
    FEATURES_OK = 1 << 3
    DEVICE_NEEDS_RESET = 1 << 6
    FAILED = 1 << 7


class Isr(IntFlag):
    """Why the pin is asserted.  Spec: "ISR status capability"."""

    QUEUE = 1 << 0
    CONFIGURATION = 1 << 1


# ---- the common configuration --------------------------------------------------------------------


class Access(Enum):
    """What becomes of what the driver writes."""

    STORED = "it is kept"
    QUEUE = "it is kept with the selected queue, until that is enabled"
    METHOD = "the method named after the register takes it; without one it is read-only"
    ABSENT = "nothing: it belongs to a feature that is not offered; it reads as zero"


@attrs.frozen
class Register:
    """One register; 64-bit fields are two, as drivers access them."""

    offset: int
    size: int
    access: Access
    name: str


REGISTERS: Final = (
    Register(0x00, 4, Access.STORED, "device_feature_select"),
    Register(0x04, 4, Access.METHOD, "device_feature"),
    Register(0x08, 4, Access.STORED, "driver_feature_select"),
    Register(0x0C, 4, Access.METHOD, "driver_feature"),
    Register(0x10, 2, Access.METHOD, "config_msix_vector"),
    Register(0x12, 2, Access.METHOD, "num_queues"),
    Register(0x14, 1, Access.METHOD, "device_status"),
    Register(0x15, 1, Access.METHOD, "config_generation"),
    Register(0x16, 2, Access.STORED, "queue_select"),
    Register(0x18, 2, Access.METHOD, "queue_size"),
    Register(0x1A, 2, Access.METHOD, "queue_msix_vector"),
    Register(0x1C, 2, Access.METHOD, "queue_enable"),
    Register(0x1E, 2, Access.METHOD, "queue_notify_off"),
    Register(0x20, 4, Access.QUEUE, "queue_desc_low"),
    Register(0x24, 4, Access.QUEUE, "queue_desc_high"),
    Register(0x28, 4, Access.QUEUE, "queue_driver_low"),
    Register(0x2C, 4, Access.QUEUE, "queue_driver_high"),
    Register(0x30, 4, Access.QUEUE, "queue_device_low"),
    Register(0x34, 4, Access.QUEUE, "queue_device_high"),
    Register(0x38, 2, Access.ABSENT, "queue_notif_config_data"),
    Register(0x3A, 2, Access.ABSENT, "queue_reset"),
    Register(0x3C, 2, Access.ABSENT, "admin_queue_index"),
    Register(0x3E, 2, Access.ABSENT, "admin_queue_num"),
)
"""Spec: "Common configuration structure layout"."""

BY_PLACE: Final = {(register.offset, register.size): register for register in REGISTERS}


@attrs.define
class QueueRegisters:
    """What the driver has said of one queue."""

    index: int
    queue_size: int = QUEUE_SIZE_MAX
    queue_msix_vector: int = NO_VECTOR
    queue_enable: int = 0
    queue_desc_low: int = 0
    queue_desc_high: int = 0
    queue_driver_low: int = 0
    queue_driver_high: int = 0
    queue_device_low: int = 0
    queue_device_high: int = 0
    base: int = 0
    """Where it goes on, when it was stopped and not reset."""

    @property
    def addresses(self) -> QueueAddresses:
        """Where it lies."""
        return QueueAddresses(
            size=self.queue_size,
            desc_gpa=self.queue_desc_high << 32 | self.queue_desc_low,
            avail_gpa=self.queue_driver_high << 32 | self.queue_driver_low,
            used_gpa=self.queue_device_high << 32 | self.queue_device_low,
            base=self.base,
        )
