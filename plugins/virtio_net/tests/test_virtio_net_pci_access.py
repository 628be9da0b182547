"""Accesses to the PCI face of any place, size and value."""

from __future__ import annotations

from itertools import product

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from kit.bench import FRAME, Bench
from kit.wire import running
from vnic_virtio_net.testing import Ring
from vnic_virtio_net.testing.hostile import RX, TX
from vnic_virtio_net.testing.pci import (
    ACKNOWLEDGE,
    COMMON,
    COMMON_CFG,
    DEVICE,
    DRIVER,
    DRIVER_OK,
    FAILED,
    FEATURES_OK,
    NEEDS_RESET,
)

BAR_SIZE = 0x2000
STEPS = (ACKNOWLEDGE, DRIVER, FEATURES_OK, DRIVER_OK)


@pytest.mark.parametrize("structure", [COMMON, DEVICE])
def test_c9_reads_of_any_place_and_size_are_of_the_same_bytes(bench: Bench, structure: int) -> None:
    bench.start()
    place = bench.device.places[structure]
    read = bench.function.read_bar
    end = place.offset + place.size + 16
    one_by_one = bytes(read(place.bar, at, 1) for at in range(place.offset, end))
    for at, n in product(range(place.offset, end - 8), (1, 2, 3, 4, 5, 8)):
        start = at - place.offset
        want = int.from_bytes(one_by_one[start : start + n], "little")
        assert read(place.bar, at, n) == want, f"{n} bytes at {at:#x}"


def test_c9_no_write_changes_the_device_configuration(bench: Bench) -> None:
    bench.start()
    place = bench.device.places[DEVICE]
    before = bench.device.read_config(0, place.size + 16)
    assert before[:6] == bench.nic.frontend.mac
    for at, n, value in product(range(place.size + 16), (1, 2, 3, 4, 8), (0, -1)):
        value &= (1 << 8 * n) - 1
        bench.function.write_bar(place.bar, place.offset + at, n, value)
        assert bench.device.read_config(0, place.size + 16) == before
    assert bench.runs


READ_ONLY = ("device_feature", "num_queues", "config_generation", "queue_notify_off")


@pytest.mark.parametrize("value", [0, 1, 0x5555_5555_5555_5555, (1 << 64) - 1])
def test_c9_writes_of_any_place_and_size_change_no_read_only_register(
    bench: Bench, value: int
) -> None:
    bench.negotiate()
    place = bench.device.places[COMMON]
    before = {name: bench.device.get(name, TX) for name in READ_ONLY}
    for at, n in product(range(place.size), (1, 2, 3, 4, 8)):
        bench.function.write_bar(place.bar, place.offset + at, n, value & (1 << 8 * n) - 1)
        bench.device.set("device_feature_select", 0)
        assert {name: bench.device.get(name, TX) for name in READ_ONLY} == before
    bench.settle()


def test_a_register_is_written_by_accesses_of_its_own_size_alone(bench: Bench) -> None:
    bench.negotiate()
    place = bench.device.places[COMMON]
    sizes = {offset: min(size, 4) for offset, size in COMMON_CFG.values()}
    for name in ("queue_size", "queue_desc", "queue_enable", "driver_feature_select"):
        offset, _ = COMMON_CFG[name]
        before = bench.device.get(name, RX)
        for n in {1, 2, 4} - {sizes[offset]}:
            bench.function.write_bar(place.bar, place.offset + offset, n, 1)
            assert bench.device.get(name, RX) == before, f"{name}, {n} bytes"


places = st.one_of(
    st.integers(0, 0x40), st.integers(0x100, 0x210), st.integers(0x800, 0x840),
    st.integers(0x1000, 0x1010), st.integers(0, BAR_SIZE + 8),
)  # fmt: skip
values = st.one_of(st.integers(0, 15), st.integers(0, (1 << 64) - 1))
accesses = st.lists(
    st.one_of(
        st.tuples(st.just("bar"), places, st.sampled_from([1, 2, 3, 4, 8]), values),
        st.tuples(st.just("config"), st.integers(0, 260), st.sampled_from([1, 2, 4]), values),
        st.tuples(st.just("step"), st.sampled_from(STEPS), st.just(0), st.just(0)),
        st.tuples(st.just("queue"), st.sampled_from([RX, TX]), st.just(0), values),
    ),
    max_size=40,
)
START = [("step", step, 0, 0) for step in STEPS]


@settings(deadline=None)
@given(accesses)
@example([*START[:2], ("queue", RX, 0, 1 << 40), *START[2:], ("bar", 0x1000, 2, 0)])
@example([*START[:2], ("queue", TX, 0, (1 << 64) - 64), *START[2:], ("bar", 0x1004, 2, 1)])
def test_any_accesses_raise_nothing_and_no_queue_runs_outside_memory(
    script: list[tuple[str, int, int, int]],
) -> None:
    with running() as loop:
        bench = Bench.on(loop)
        function, device, memory = bench.function, bench.device, bench.host.memory
        device.set_bus_master(True)
        device.set("driver_feature_select", 1)
        device.set("driver_feature", 1)
        for kind, at, n, value in script:
            if kind == "bar":
                function.write_bar(0, at, n, value & (1 << 8 * n) - 1)
                function.read_bar(0, at, n)
            elif kind == "config":
                function.write_config(at, (value & (1 << 8 * n) - 1).to_bytes(n, "little"))
                function.read_config(at, n)
            elif kind == "step":
                device.set("device_status", device.status | at)
            else:
                device.set("queue_size", 8, at)
                for name in ("queue_desc", "queue_driver", "queue_device"):
                    device.set(name, value & ~15, at)
                device.set("queue_enable", 1, at)
            status = device.status
            if function.bus_master and status & DRIVER_OK and not status & (FAILED | NEEDS_RESET):
                for queue in (RX, TX):
                    if device.get("queue_enable", queue):
                        size = device.get("queue_size")
                        assert memory.covers(device.get("queue_desc"), 16 * size)
                        assert memory.covers(device.get("queue_driver"), 6 + 2 * size)
                        assert memory.covers(device.get("queue_device"), 6 + 8 * size, True)
            bench.settle()
        bench.wire.deliver(FRAME)
        bench.settle()
        device.set_bus_master(True)
        bench.rings = (Ring(bench.host, 8), Ring(bench.host, 8))
        bench.start()
        assert bench.runs
        bench.nic.close()
        bench.guards.check()


def test_the_window_in_configuration_space_reaches_every_register(bench: Bench) -> None:
    bench.start()
    device, at = bench.device, bench.device.window_at
    place = device.places[COMMON]
    for offset, n in product(range(place.size), (1, 2, 4)):
        if offset % n:
            continue
        device.set_config(at + 4, 1, place.bar)
        device.set_config(at + 8, 4, place.offset + offset)
        device.set_config(at + 12, 4, n)
        want = bench.function.read_bar(place.bar, place.offset + offset, n)
        assert device.config(at + 16, n) == want
    device.set_config(at + 8, 4, place.offset + COMMON_CFG["device_status"][0])
    device.set_config(at + 12, 4, 1)
    device.set_config(at + 16, 4, 0)
    assert device.status == 0
    device.set_config(at + 16, 1, ACKNOWLEDGE)  # it looks at the same place still
    assert device.status == ACKNOWLEDGE


@given(
    bar=st.integers(0, 255),
    offset=st.one_of(st.integers(0, BAR_SIZE), st.integers(0, (1 << 32) - 1)),
    length=st.one_of(st.integers(0, 8), st.integers(0, (1 << 32) - 1)),
    data=st.integers(0, (1 << 32) - 1),
)
@settings(deadline=None)
def test_the_window_takes_anything(bar: int, offset: int, length: int, data: int) -> None:
    with running() as loop:
        bench = Bench.on(loop)
        device, at = bench.device, bench.device.window_at
        device.set_config(at + 4, 1, bar)
        device.set_config(at + 8, 4, offset)
        device.set_config(at + 12, 4, length)
        device.set_config(at + 16, 4, data)
        device.config(at + 16, 4)
        bench.function.read_config(0, 256)
        bench.settle()
        bench.nic.close()
