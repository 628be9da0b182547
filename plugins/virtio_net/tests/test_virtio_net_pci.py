"""The device behind PCI registers: the status machine, and what can be written when."""

from __future__ import annotations

from itertools import product

import attrs
import pytest
from kit.bench import FRAME, Bench
from vnic.features import Features
from vnic_virtio_net.testing import DRIVER_FEATURES, Ring, VirtioPciDevice
from vnic_virtio_net.testing.hostile import NEXT, RX, TX
from vnic_virtio_net.testing.pci import (
    ACKNOWLEDGE,
    COMMON_CFG,
    DRIVER,
    DRIVER_OK,
    FAILED,
    FEATURES_OK,
    NEEDS_RESET,
    NO_VECTOR,
    NOTIFY,
)

# ---- where things are ----------------------------------------------------------------------------


def test_it_is_a_modern_virtio_network_device(bench: Bench) -> None:
    assert bench.device.config(0, 4) == 0x1041_1AF4
    assert bench.device.config(8, 4) == 0x020000 << 8 | 1
    assert bench.device.get("num_queues") == 2
    assert bench.device.features() & Features.VERSION_1


def test_every_structure_has_bytes_of_its_own_and_notify_pages_of_its_own(bench: Bench) -> None:
    places = bench.device.places
    table = bench.device.config(bench.device.msix_at + 4, 4)
    pba = bench.device.config(bench.device.msix_at + 8, 4)
    spans = [(place.bar, place.offset, place.size) for place in places.values()]
    spans += [(table & 7, table & ~7, 3 * 16), (pba & 7, pba & ~7, 8)]
    taken: set[tuple[int, int]] = set()
    for bar, offset, size in spans:
        mine = {(bar, offset + i) for i in range(size)}
        assert offset + size <= bench.function.bars[bar].size
        assert not taken & mine
        taken |= mine
    notify = places[NOTIFY]
    assert notify.offset % 0x1000 == notify.size % 0x1000 == 0


def test_registers_are_at_their_reset_values(bench: Bench) -> None:
    bench.start()
    bench.device.set("device_status", 0)
    for queue, (name, _) in product((RX, TX), COMMON_CFG.items()):
        reset = {"num_queues": 2, "queue_size": 1024, "queue_notify_off": queue}
        reset |= {"config_msix_vector": NO_VECTOR, "queue_msix_vector": NO_VECTOR}
        if name not in ("queue_select", "device_feature"):
            assert bench.device.get(name, queue) == reset.get(name, 0), name


# ---- the status machine: B10 ---------------------------------------------------------------------

STEPS = (ACKNOWLEDGE, DRIVER, FEATURES_OK, DRIVER_OK)
STATES = [sum(STEPS[:n]) for n in range(5)]


def after(status: int, written: int) -> int:
    """What the status is after a write, by the book."""
    if written == 0:
        return 0
    if written & FAILED:
        return status | FAILED
    if not status & (FAILED | NEEDS_RESET):
        for step in STEPS:
            if not (status | written) & step:
                break
            status |= step
    return status


@pytest.mark.parametrize("before", [*STATES, *(state | FAILED for state in STATES), 0x4F])
def test_b10_status_bits_come_in_order_and_go_by_reset_alone(bench: Bench, before: int) -> None:
    device = bench.device
    for written in range(256):
        device.set("device_status", 0)
        device.enable_messages()
        for step in STEPS:
            if before & step:
                if step == FEATURES_OK:
                    device.choose(Features.VERSION_1)
                if step == DRIVER_OK:
                    for index, ring in enumerate(bench.rings):
                        at = ring.addresses
                        at = attrs.evolve(at, desc_gpa=1 << 40) if before & NEEDS_RESET else at
                        device.set_up_queue(index, at)
                device.add_status(step)
        if before & FAILED:
            device.add_status(FAILED)
        assert device.status == before
        device.set("driver_feature_select", 1)
        device.set("driver_feature", 1)  # VERSION_1, so that FEATURES_OK can be had
        device.set("device_status", written)
        assert device.status == after(before, written), f"{before:#x}, {written:#x} written"
    bench.settle()


def test_b10_queues_run_from_driver_ok_to_the_end(bench: Bench) -> None:
    bench.negotiate()
    for index, ring in enumerate(bench.rings):
        bench.device.set_up_queue(index, ring.addresses)
    assert not bench.runs
    bench.device.add_status(DRIVER_OK)
    assert bench.runs  # with what was posted before
    bench.device.add_status(DRIVER_OK)
    assert bench.runs
    bench.device.set("device_status", ACKNOWLEDGE)
    assert bench.runs
    bench.device.add_status(FAILED)
    assert not bench.runs
    bench.device.set("device_status", 0)
    assert not bench.runs
    assert bench.host.failures == []


@pytest.mark.parametrize(
    "features",
    [
        Features(0),
        DRIVER_FEATURES & ~Features.VERSION_1,
        Features.VERSION_1 | Features.HOST_TSO4,
        Features.VERSION_1 | Features.GUEST_ECN | Features.GUEST_CSUM,
        Features.VERSION_1 | 1 << 63,
        Features.VERSION_1 | 1 << 2,
    ],
    ids=["none", "legacy", "TSO without CSUM", "ECN without TSO", "bit 63", "bit 2"],
)
def test_features_that_cannot_be_are_refused_and_others_may_be_tried(
    bench: Bench, features: Features
) -> None:
    bench.device.reset()
    assert not bench.device.choose(features)
    assert bench.device.status == ACKNOWLEDGE | DRIVER
    assert bench.device.add_status(DRIVER_OK) == ACKNOWLEDGE | DRIVER
    assert bench.device.choose(Features.VERSION_1)


def test_b10_features_acknowledged_late_are_ignored(bench: Bench) -> None:
    bench.negotiate()
    for word in (0, 1):
        bench.device.set("driver_feature_select", word)
        before = bench.device.get("driver_feature")
        bench.device.set("driver_feature", 0xFFFF_FFFF)
        assert bench.device.get("driver_feature") == before


@pytest.mark.parametrize("select", [2, 3, 0x8000_0000, 0xFFFF_FFFF])
def test_feature_words_beyond_the_second_are_zero(bench: Bench, select: int) -> None:
    bench.device.reset()
    for side in ("device", "driver"):
        bench.device.set(f"{side}_feature_select", select)
        bench.device.set(f"{side}_feature", 0xFFFF_FFFF)
        assert bench.device.get(f"{side}_feature_select") == select
        assert bench.device.get(f"{side}_feature") == 0


def test_a_reset_takes_the_offloads_back_from_the_link(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[Features] = []
    monkeypatch.setattr(bench.nic.link, "set_features", told.append)
    bench.start(Features.VERSION_1 | Features.CSUM)
    bench.device.set("device_status", 0)
    assert [features & Features.CSUM for features in told[-2:]] == [Features.CSUM, 0]


# ---- queues --------------------------------------------------------------------------------------


@pytest.mark.parametrize("select", [2, 3, 0x7FFF, 0xFFFF])
def test_b14_a_queue_that_there_is_not_reads_as_none_and_takes_nothing(
    bench: Bench, select: int
) -> None:
    bench.negotiate()
    for name in COMMON_CFG:
        if name.startswith("queue_") and name != "queue_select":
            bench.device.set(name, 1, select)
            none = NO_VECTOR if name == "queue_msix_vector" else 0
            assert bench.device.get(name, select) == none
            for queue in (RX, TX):
                assert bench.device.get("queue_enable", queue) == 0


def queue_registers(device: VirtioPciDevice, queue: int) -> dict[str, int]:
    names = ("queue_size", "queue_enable", "queue_desc", "queue_driver", "queue_device")
    return {name: device.get(name, queue) for name in names}


def test_b9_queue_registers_are_fixed_once_it_is_enabled(bench: Bench) -> None:
    bench.negotiate()
    bench.device.set_up_queue(RX, bench.rings[RX].addresses)
    before = queue_registers(bench.device, RX)
    for name, value in product(before, (0, 2, 4, 0xFFFF_F000)):
        bench.device.set(name, value, RX)
        assert queue_registers(bench.device, RX) == before


def test_b9_queue_registers_are_fixed_once_the_driver_is_ok(bench: Bench) -> None:
    bench.negotiate()
    bench.device.set_up_queue(TX, bench.rings[TX].addresses)
    bench.device.add_status(DRIVER_OK)
    before = [queue_registers(bench.device, queue) for queue in (RX, TX)]
    for name, value, queue in product(before[0], (0, 1, 2, 0xFFFF_F000), (RX, TX)):
        bench.device.set(name, value, queue)
        assert [queue_registers(bench.device, queue) for queue in (RX, TX)] == before
    bench.send()
    assert len(bench.wire.sent) == 1


@pytest.mark.parametrize("size", [0, 3, 1023, 2048, 0x8000, 0xFFFF])
def test_b12_a_queue_size_that_cannot_be_is_not_taken(bench: Bench, size: int) -> None:
    bench.negotiate()
    bench.device.set("queue_size", size, RX)
    assert bench.device.get("queue_size", RX) == 1024


def test_b12_any_notification_is_a_look_at_a_queue_or_nothing(bench: Bench) -> None:
    place = bench.device.places[NOTIFY]
    for started in (False, True):
        if started:
            bench.start()
        for offset in (*range(64), *range(place.size - 8, place.size)):
            for n, value in product((1, 2, 4, 8), (0, 1, 2, 0xFFFF, -1 & 0xFFFF_FFFF)):
                bench.function.write_bar(place.bar, place.offset + offset, n, value)
        bench.settle()
    assert bench.runs
    assert bench.host.failures == []


@pytest.mark.parametrize("part", ["desc_gpa", "avail_gpa", "used_gpa"])
@pytest.mark.parametrize(
    "gpa", [1 << 19, (1 << 19) - 16, (1 << 64) - 16, 0xFFFF_FFFF_0000_0000, 1 << 63]
)
def test_a_queue_outside_memory_never_starts(bench: Bench, part: str, gpa: int) -> None:
    bench.negotiate()
    bench.device.enable_messages()
    bench.device.set("config_msix_vector", 0)
    bench.device.set_up_queue(RX, bench.rings[RX].addresses)
    where = attrs.evolve(bench.rings[TX].addresses, **{part: gpa})
    bench.device.set_up_queue(TX, where)
    assert bench.device.add_status(DRIVER_OK) & NEEDS_RESET
    assert len(bench.host.failures) == 1
    assert bench.host.interrupts == {0: 1}
    assert not bench.runs
    bench.start()
    assert bench.runs


def test_a_misaligned_queue_never_starts(bench: Bench) -> None:
    bench.negotiate()
    where = bench.rings[RX].addresses
    bench.device.set_up_queue(RX, attrs.evolve(where, desc_gpa=where.desc_gpa + 8))
    assert bench.device.add_status(DRIVER_OK) & NEEDS_RESET
    assert "not aligned to 16" in bench.host.failures[0]


def test_a_broken_ring_asks_for_a_reset_by_the_configuration_interrupt(bench: Bench) -> None:
    bench.start()
    bench.rings[TX].desc(0, 0, 64, NEXT, 0)
    bench.rings[TX].publish(0)
    bench.notify(TX)
    assert bench.device.status & NEEDS_RESET
    assert bench.host.interrupts == {0: 1}
    assert "loops" in bench.host.failures[0]
    assert bench.device.add_status(DRIVER_OK) & NEEDS_RESET
    assert not bench.runs
    bench.rings = (Ring(bench.host, 8), Ring(bench.host, 8))
    bench.start()
    assert bench.runs
    assert len(bench.host.failures) == 1


def test_without_bus_mastering_no_memory_is_touched(bench: Bench) -> None:
    bench.start()
    assert bench.runs
    bench.device.set_bus_master(False)
    before = [ring.used_idx for ring in bench.rings]
    bench.send()
    bench.post()
    bench.wire.deliver(FRAME)
    bench.settle()
    assert [ring.used_idx for ring in bench.rings] == before
    bench.device.set_bus_master(True)
    bench.settle()
    assert bench.rings[TX].used_idx == before[TX] + 1  # it went on where it was
    assert bench.runs
    assert bench.host.failures == []
