"""Messages about the device: its regions, and its interrupts."""

from __future__ import annotations

import errno

import pytest
from kit.vfio_user import BOOL, EVENTFD, MASK, NONE, REGISTERS, TRIGGER, U32, UNMASK, Script
from vnic.errors import PeerError
from vnic.pci import Area, Bar, Mappable
from vnic_vfio_user import events
from vnic_vfio_user.device_payloads import DeviceInfo, Irq, IrqInfo, RegionInfo
from vnic_vfio_user.messages import Command, Header, encode_message

# ---- what the device has -------------------------------------------------------------------------


def test_the_device_is_described() -> None:
    vmm = Script()
    _, content = vmm.ask(Command.DEVICE_GET_INFO, DeviceInfo())
    assert DeviceInfo.decode(content) == DeviceInfo(flags=3, num_regions=9, num_irqs=5)
    sizes, counts = [], []
    for index in range(9):
        _, content = vmm.ask(Command.DEVICE_GET_REGION_INFO, RegionInfo(index=index))
        info = RegionInfo.decode(content)
        assert info.flags == (3 if info.size else 0)
        sizes.append(info.size)
    assert sizes == [0x20000, 0, 0, 0, 0, 0, 0, 256, 0]
    for index in range(5):
        _, content = vmm.ask(Command.DEVICE_GET_IRQ_INFO, IrqInfo(index=index))
        counts.append((IrqInfo.decode(content).count, IrqInfo.decode(content).flags))
    assert counts == [(1, 7), (4, 1), (20, 1), (1, 1), (0, 0)]
    assert vmm.ask(Command.DEVICE_GET_REGION_INFO, RegionInfo(index=9))[0] == errno.EINVAL
    assert vmm.ask(Command.DEVICE_GET_IRQ_INFO, IrqInfo(index=U32))[0] == errno.EINVAL


@pytest.mark.parametrize("argsz", [0, 16, 31, 32, 79, 80, U32])
def test_any_room_for_the_reply_is_kept_to(argsz) -> None:  # E2
    areas = [Area(0x1000, 0x1000), Area(0x3000, 0x1000)]
    bar = Bar(index=2, size=0x4000, registers=REGISTERS, mappable=Mappable(fd=6, areas=areas))
    vmm = Script(bars=[bar], capabilities=[])
    vmm.feed(encode_message(1, Command.DEVICE_GET_REGION_INFO, RegionInfo(index=2, argsz=argsz)))
    ((data, fds),) = vmm.connection.replies()
    header, content = Header.decode(data[:16]), data[16:]
    if argsz < 32:
        assert (header.error, content, fds) == (errno.EINVAL, b"", ())
        return
    info = RegionInfo.decode(content)
    assert len(content) <= argsz
    assert info.argsz == 80
    assert info.areas == (((0x1000, 0x1000), (0x3000, 0x1000)) if argsz >= 80 else ())
    assert fds == ((6,) if argsz >= 80 else ())
    for command, payload in (
        (Command.DEVICE_GET_INFO, DeviceInfo(argsz=argsz)),
        (Command.DEVICE_GET_IRQ_INFO, IrqInfo(index=0, argsz=argsz)),
    ):
        assert len(vmm.ask(command, payload)[1]) == 16


# ---- interrupts ----------------------------------------------------------------------------------


def test_interrupts_are_set_masked_and_taken_away() -> None:
    vmm = Script()
    assert vmm.irqs(EVENTFD | TRIGGER, Irq.INTX, 0, 1, [7]) == 0
    assert vmm.irqs(EVENTFD | TRIGGER, Irq.MSIX, 3, 2, [8, 9]) == 0
    assert vmm.irqs(EVENTFD | TRIGGER, Irq.MSIX, 0, 20) == 0
    assert vmm.irqs(EVENTFD | TRIGGER, Irq.ERR, 0, 1, [5]) == 0
    assert vmm.irqs(NONE | MASK, Irq.INTX, 0, 1) == 0
    assert vmm.irqs(NONE | UNMASK, Irq.INTX, 0, 1) == 0
    assert vmm.irqs(BOOL | UNMASK, Irq.INTX, 0, 1, data=b"\0") == 0
    assert vmm.irqs(EVENTFD | UNMASK, Irq.INTX, 0, 1, [4]) == 0
    assert vmm.irqs(NONE | TRIGGER, Irq.INTX, 0, 0) == 0
    assert vmm.irqs(NONE | TRIGGER, Irq.REQ, 0, 0) == 0
    assert vmm.irqs(BOOL | TRIGGER, Irq.MSIX, 2, 3, data=b"\1\0\1") == 0
    assert vmm.taken() == [
        events.SetTriggers(0, 0, (7,)),
        events.SetTriggers(2, 3, (8, 9)),
        events.SetTriggers(2, 0, (None,) * 20),
        events.SetTriggers(3, 0, (5,)),
        events.MaskPin(True),
        events.MaskPin(False),
        events.SetUnmask(4),
        events.DisableIrqs(0),
        events.DisableIrqs(4),
        events.Trigger(2, 2),
        events.Trigger(2, 4),
    ]


@pytest.mark.parametrize(
    ("index", "start", "count"),
    [
        (Irq.INTX, 0, 2),
        (Irq.INTX, 1, 1),
        (Irq.INTX, U32, 1),
        (Irq.MSIX, U32, 2),
        (Irq.MSIX, 2, U32 - 1),
        (Irq.MSIX, 20, 1),
        (Irq.REQ, 0, 1),
        (5, 0, 0),
        (U32, U32, U32),
    ],
)
@pytest.mark.parametrize("flags", [NONE | TRIGGER, EVENTFD | TRIGGER, NONE | UNMASK])
def test_interrupts_that_do_not_exist_are_refused(index, start, count, flags) -> None:  # E3
    vmm = Script()
    assert vmm.irqs(flags, index, start, count) == errno.EINVAL
    assert vmm.taken() == []


@pytest.mark.parametrize(
    ("flags", "index", "count"),
    [
        (0, Irq.INTX, 1),
        (TRIGGER, Irq.INTX, 1),
        (NONE, Irq.INTX, 1),
        (NONE | EVENTFD | TRIGGER, Irq.INTX, 1),
        (NONE | TRIGGER | MASK, Irq.INTX, 1),
        (NONE | MASK, Irq.MSIX, 1),
        (NONE | UNMASK, Irq.INTX, 0),
        (EVENTFD | MASK, Irq.INTX, 1),
        (EVENTFD | TRIGGER, Irq.INTX, 0),
        (EVENTFD | UNMASK, Irq.MSIX, 1),
        (1 << 6 | NONE | TRIGGER, Irq.INTX, 1),
        (U32 & ~int(BOOL), Irq.INTX, 1),
    ],
)
def test_flags_that_say_nothing_clear_are_refused(flags, index, count) -> None:
    vmm = Script()
    fds = [4] if int(flags) & 0b111 == EVENTFD and count else []
    assert vmm.irqs(flags, index, 0, count, fds) == errno.EINVAL
    assert [e for e in vmm.taken() if not isinstance(e, events.Discard)] == []
    assert vmm.connection.close() == []


def test_descriptors_that_are_too_few_end_the_session() -> None:
    vmm = Script()
    with pytest.raises(PeerError, match="1 descriptors came along, 2 or none"):
        vmm.irqs(EVENTFD | TRIGGER, Irq.MSIX, 0, 2, [4])
    assert vmm.connection.close() == [4]
