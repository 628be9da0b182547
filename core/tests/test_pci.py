from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from vnic.pci import (
    Area,
    Bar,
    BarKind,
    Command,
    Function,
    FunctionLevelReset,
    Identity,
    Mappable,
    Msi,
    MsiX,
    PowerManagement,
    VendorSpecific,
)

IDENTITY = Identity(
    vendor=0x1234,
    device=0x5678,
    revision=9,
    class_code=0x020000,
    subsystem_vendor=0xABCD,
    subsystem=0xEF01,
    min_grant=255,
)
MSIX = MsiX(vectors=70, table_bar=2, table_offset=0x400, pba_bar=2, pba_offset=0x900)
MSI = Msi(vectors=4, maskable=True)
POWER = PowerManagement()
FLR = FunctionLevelReset()
U64 = (1 << 64) - 1


class Host:
    """Writes down what it is told."""

    def __init__(self) -> None:
        self.levels: list[bool] = []
        self.vectors: list[int] = []
        self.on_level: Callable[[bool], None] = lambda level: None

    def interrupt(self, vector: int) -> None:
        self.vectors.append(vector)

    def set_irq(self, level: bool) -> None:
        self.levels.append(level)
        self.on_level(level)


class Storage:
    """Registers that keep what is written; complains of accesses that were not promised."""

    def __init__(self, size: int, width: int = 4) -> None:
        self.data = bytearray(size)
        self.width = width
        self.accesses: list[tuple[int, int]] = []

    def check(self, offset: int, n: int) -> None:
        assert n in (1, 2, 4, 8)
        assert n <= self.width
        assert offset % n == 0
        assert 0 <= offset <= len(self.data) - n
        self.accesses.append((offset, n))

    def read(self, offset: int, n: int) -> int:
        self.check(offset, n)
        return int.from_bytes(self.data[offset : offset + n], "little") | 1 << 100

    def write(self, offset: int, n: int, value: int) -> None:
        self.check(offset, n)
        self.data[offset : offset + n] = value.to_bytes(n, "little")


class Bench:
    def __init__(self, *capabilities: Any, **rest: Any) -> None:
        self.host = Host()
        self.memory, self.io, self.wide = Storage(0x20000), Storage(64), Storage(0x1000, 8)
        self.events: list[str] = []
        bars = [
            Bar(index=0, size=0x20000, registers=self.memory),
            Bar(index=1, size=64, registers=self.io, kind=BarKind.IO),
            Bar(index=2, size=0x1000, registers=self.wide, wide=True, width=8),
        ]
        self.function = Function(
            self.host,
            IDENTITY,
            bars,
            capabilities,
            on_command=lambda: self.events.append("command"),
            on_reset=lambda: self.events.append("reset"),
            **rest,
        )

    def get(self, offset: int, n: int) -> int:
        return int.from_bytes(self.function.read_config(offset, n), "little")

    def put(self, offset: int, n: int, value: int) -> None:
        self.function.write_config(offset, value.to_bytes(n, "little"))

    def command(self, bits: Command) -> None:
        self.put(4, 2, int(bits))


# ---- configuration space -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("offset", "n", "value"),
    [
        (0x00, 2, 0x1234),
        (0x02, 2, 0x5678),
        (0x04, 2, 0),
        (0x06, 2, 0x0010),
        (0x08, 1, 9),
        (0x09, 3, 0x020000),
        (0x0C, 4, 0),
        (0x10, 4, 0),
        (0x14, 4, 1),
        (0x18, 4, 0b100),
        (0x1C, 4, 0),
        (0x20, 8, 0),
        (0x2C, 2, 0xABCD),
        (0x2E, 2, 0xEF01),
        (0x30, 4, 0),
        (0x34, 1, 0x40),
        (0x3C, 4, 0x00FF0100),
        (0x40, 8, 0x00000000_0003_4801),  # power management
        (0x48, 4, 0x0045_5411),  # MSI-X, 70 vectors
        (0x4C, 8, 0x0000_0902_0000_0402),
        (0x54, 4, 0x0184_6C05),  # MSI, 4 maskable vectors
        (0x6C, 6, 0x0000_0306_0013),  # function level reset, the last one
    ],
)
def test_configuration_space_at_power_on(offset, n, value) -> None:
    assert Bench(POWER, MSIX, MSI, FLR).get(offset, n) == value


def test_a_function_without_pin_and_capabilities_says_so() -> None:
    bench = Bench(interrupt_pin=False)
    assert (bench.get(6, 2), bench.get(0x34, 1), bench.get(0x3D, 1)) == (0, 0, 0)
    bench.function.set_irq(True)
    assert bench.host.levels == []


def test_capabilities_lie_where_they_are_put() -> None:
    power, msi = PowerManagement(at=0xDC), Msi(at=0xF0)
    bench = Bench(power, msi)
    assert (bench.get(0x34, 1), bench.get(0xDC, 2), bench.get(0xF0, 2)) == (0xDC, 0xF001, 0x0005)
    assert bench.function.capability_at(msi) == 0xF0


def test_the_size_of_a_bar_is_found_by_writing_ones() -> None:
    bench = Bench()
    for at in (0x10, 0x14, 0x18, 0x1C, 0x20, 0x24, 0x30):
        bench.put(at, 4, 0xFFFF_FFFF)
    found = [bench.get(at, 4) for at in (0x10, 0x14, 0x18, 0x1C, 0x20, 0x24, 0x30)]
    assert found == [0xFFFE0000, 0xFFFFFFC1, 0xFFFFF004, 0xFFFFFFFF, 0, 0, 0]


def test_a_bar_is_where_the_driver_has_put_it_once_it_is_enabled() -> None:
    bench = Bench()
    bench.put(0x10, 4, 0xFEBC_1234)
    bench.put(0x14, 4, 0xC047)
    bench.put(0x18, 8, 0x7_0000_1000)
    function = bench.function
    assert [function.bar_address(i) for i in range(-1, 7)] == [None] * 8
    bench.command(Command.MEMORY)
    assert [function.bar_address(i) for i in range(3)] == [0xFEBC_0000, None, 0x7_0000_1000]
    bench.command(Command.IO | Command.BUS_MASTER)
    assert [function.bar_address(i) for i in range(3)] == [None, 0xC040, None]
    assert (function.io_enable, function.memory_enable, function.bus_master) == (True, False, True)


def test_the_frontend_hears_of_what_the_driver_allows_when_it_changes() -> None:
    bench = Bench()
    bench.command(Command.MEMORY)
    bench.command(Command.MEMORY)
    bench.put(0x3C, 1, 5)
    bench.put(5, 1, 0x04)
    assert bench.events == ["command"] * 2
    assert bench.function.command == Command.MEMORY | Command.INTERRUPT_DISABLE


def test_what_is_read_only_stays_and_what_does_not_exist_reads_as_zero() -> None:
    bench = Bench(POWER, MSIX)
    before = bench.function.read_config(0, 256)
    bench.function.write_config(0, b"\xff" * 256)
    after = bench.function.read_config(0, 256)
    changed = {at for at in range(256) if before[at] != after[at]}
    assert changed <= {4, 5, *range(0x0C, 0x0E), *range(0x10, 0x20), 0x3C, 0x44, 0x4B}
    assert after[0x4B] & 0x07 == 0
    assert (after[4], after[5]) == (0x57, 0x05)


@pytest.mark.parametrize("offset", [-1, -300, 256, 257, 1 << 64])
def test_beyond_its_end_everything_is_ones(offset) -> None:
    bench = Bench()
    bench.function.write_config(offset, bytes(300))
    assert bench.function.read_config(offset, 2)[-1:] == b"\xff"
    assert len(bench.function.read_config(offset, 4)) == 4
    assert bench.function.read_config(254, 4) == b"\0\0\xff\xff"
    assert bench.function.read_config(0, 0) == b""


def test_a_capability_may_have_registers_of_its_own() -> None:
    storage = Storage(20)
    window = VendorSpecific(body=bytes([20, 5]) + bytes(16), registers=storage)
    plain = VendorSpecific(body=bytes([8, 1, 2, 3, 4, 5]), writable=b"\0\0\xff\x0f")
    bench = Bench(plain, window)
    assert bench.function.read_config(0x40, 8) == bytes([9, 0x48, 8, 1, 2, 3, 4, 5])
    bench.function.write_config(0x40, b"\xaa" * 8)
    assert bench.function.read_config(0x40, 8) == bytes([9, 0x48, 8, 1, 0xAA, 0x0A, 4, 5])
    storage.data[3] = 5
    storage.accesses.clear()
    bench.put(0x48 + 16, 4, 0x1122_3344)
    assert storage.accesses == [(16, 4)]
    assert bench.function.read_config(0x48, 20) == bytes([9, 0, 20, 5, *[0] * 12]) + bytes.fromhex(
        "44332211"
    )


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: Identity(vendor=1 << 16, device=0, class_code=0), "vendor: 0x10000 does not fit"),
        (lambda: Identity(vendor=0, device=0, class_code=1 << 24), "does not fit in 24 bits"),
        (lambda: bar(index=6), "there are BARs 0 to 5"),
        (lambda: bar(index=5, wide=True), "there are BARs"),
        (lambda: bar(size=0x1001), "no power of two"),
        (lambda: bar(size=8), "no power of two"),
        (lambda: bar(size=1 << 32), "no power of two"),
        (lambda: bar(size=512, kind=BarKind.IO), "no power of two in 4 to 256"),
        (lambda: bar(size=64, kind=BarKind.IO, wide=True), "32 bits wide"),
        (lambda: bar(width=2), "width 2; 4 or 8"),
        (lambda: bar(mappable=Mappable(fd=0, areas=[Area(0x800, 0x1000)])), "of whole pages"),
        (lambda: bar(mappable=Mappable(fd=0, areas=[Area(0x1000, 0)])), "of whole pages"),
        (lambda: bar(mappable=Mappable(fd=0, areas=[Area(0x1000, 0x1000)])), "beyond 0x1000"),
        (lambda: Msi(vectors=3), "power of two up to 32"),
        (lambda: MsiX(vectors=0, table_bar=0, pba_bar=0, pba_offset=0), "1 to 2048"),
        (lambda: MsiX(vectors=1, table_bar=0, pba_bar=0, pba_offset=4), "multiples of 8"),
        (lambda: VendorSpecific(body=b"\x04ab"), "its first byte is its length, 5"),
        (lambda: VendorSpecific(body=b"\x03", writable=b"ab"), "beyond its end"),
        (lambda: function(bars=[bar(index=0, wide=True), bar(index=1)]), "BAR 1: is described"),
        (lambda: function([Msi(), Msi()]), "Msi: is described 2 times"),
        (lambda: function([Msi(at=0x3C)]), "have no place at 0x3c"),
        (lambda: function([Msi(at=0x42)]), "have no place at 0x42"),
        (lambda: function([Msi(at=0xF8)]), "have no place at 0xf8"),
        (lambda: function([Msi(at=0x50), PowerManagement(at=0x5C)]), "have no place at 0x5c"),
        (lambda: function([MSIX]), "there is no BAR 2"),
        (lambda: function([MSIX], bars=[bar(index=2, size=1024)]), "end beyond BAR 2"),
    ],
)
def test_a_description_that_cannot_be_says_why(make, text) -> None:
    with pytest.raises(ValueError, match=text):
        make()


def bar(**description: Any) -> Bar:
    return Bar(**{"index": 0, "size": 0x1000, "registers": Storage(0), **description})


def function(capabilities: Any = (), bars: Any = ()) -> Function:
    return Function(Host(), IDENTITY, bars, capabilities)


# ---- BARs ----------------------------------------------------------------------------------------


def test_registers_see_what_they_were_promised() -> None:
    bench = Bench()
    for offset in range(16):
        for n in range(1, 17):
            value = int.from_bytes(bytes(range(1, n + 1)), "little")
            bench.function.write_bar(0, offset, n, value)
            assert bench.function.read_bar(0, offset, n) == value
            bench.function.write_bar(2, offset, n, value)
            assert bench.function.read_bar(2, offset, n) == value
    bench.memory.accesses.clear()
    bench.function.read_bar(0, 0x1003, 7)
    assert bench.memory.accesses == [(0x1003, 1), (0x1004, 4), (0x1008, 2)]
    bench.memory.accesses.clear()
    bench.function.write_bar(0, 8, 8, 1)
    assert bench.memory.accesses == [(8, 4), (12, 4)]
    bench.wide.accesses.clear()
    bench.function.write_bar(2, 8, 8, 1)
    assert bench.wide.accesses == [(8, 8)]


@pytest.mark.parametrize(
    ("index", "offset", "n"),
    [
        (0, 0x20000, 1),
        (0, 0x1FFFD, 4),
        (0, -1, 4),
        (0, U64, 8),
        (1, 61, 4),
        (3, 0, 4),
        (4, 0, 1),
        (6, 0, 2),
        (-1, 0, 4),
        (1 << 32, 0, 4),
    ],
)
def test_where_there_is_no_register_everything_is_ones(index, offset, n) -> None:
    bench = Bench()
    bench.function.write_bar(index, offset, n, 0)
    assert bench.function.read_bar(index, offset, n) == (1 << 8 * n) - 1
    assert bench.memory.accesses + bench.io.accesses + bench.wide.accesses == []


def test_an_access_of_no_bytes_reaches_nobody() -> None:
    bench = Bench()
    for n in (0, -1):
        bench.function.write_bar(0, 0, n, 5)
        assert bench.function.read_bar(0, 0, n) == 0
    assert not bench.memory.accesses


# ---- the pin -------------------------------------------------------------------------------------


def test_the_host_hears_of_changes_alone() -> None:
    bench = Bench()
    for level in (False, True, True, False, False, True):
        bench.function.set_irq(level)
        assert bench.get(6, 1) == (8 if level else 0)
        assert bench.function.irq is level
    assert bench.host.levels == [True, False, True]


def test_a_driver_that_disables_the_pin_sees_in_the_status_that_it_is_asked_for() -> None:
    bench = Bench()
    bench.function.set_irq(True)
    bench.command(Command.INTERRUPT_DISABLE)
    assert bench.host.levels == [True, False]
    assert bench.get(6, 1) == 8
    bench.command(Command(0))
    assert bench.host.levels == [True, False, True]


def test_unmasking_tells_the_host_again_if_the_pin_is_asked_for() -> None:
    bench = Bench()
    bench.host.on_level = lambda level: bench.function.mask_irq() if level else None
    bench.function.set_irq(True)
    assert bench.host.levels == [True, False], "masked from within"
    bench.function.set_irq(False)
    bench.function.set_irq(True)
    assert bench.host.levels == [True, False]
    bench.function.unmask_irq()
    assert bench.host.levels == [True, False] * 2
    bench.function.set_irq(False)
    bench.function.unmask_irq()
    bench.function.unmask_irq()
    assert bench.host.levels == [True, False] * 2


def test_messages_silence_the_pin() -> None:
    bench = Bench(MSI)
    bench.function.set_irq(True)
    bench.put(0x42, 2, Msi.ENABLE)
    assert bench.host.levels == [True, False]
    bench.put(0x42, 2, 0)
    assert bench.host.levels == [True, False, True]


# ---- messages ------------------------------------------------------------------------------------


def test_nothing_is_signalled_while_messages_are_off() -> None:
    bench = Bench(MSI, MSIX)
    assert not bench.function.messages_enabled
    assert bench.function.signal(0) is False
    assert bench.function.message(0) is None
    assert Bench().function.signal(0) is False


def test_msi_shares_the_vectors_that_the_driver_allows() -> None:
    bench = Bench(MSI)
    bench.put(0x44, 8, 0xFEE0_1004)
    bench.put(0x4C, 2, 0x4123)
    for allowed, expected in (
        (0, [0, 0, 0, 0]),
        (1, [0, 1, 0, 1]),
        (2, [0, 1, 2, 3]),
        (7, [0, 1, 2, 3]),
    ):
        bench.put(0x42, 2, Msi.ENABLE | allowed << 4)
        bench.host.vectors.clear()
        assert all(bench.function.signal(vector) for vector in range(4))
        assert bench.host.vectors == expected
    message = bench.function.message(2)
    assert message is not None
    assert (message.address, message.data) == (0xFEE0_1004, 0x4122)
    assert bench.function.message(4) is None


def test_a_masked_msi_is_sent_when_it_is_unmasked() -> None:
    bench = Bench(MSI)
    bench.put(0x42, 2, Msi.ENABLE | 2 << 4)
    bench.put(0x50, 4, 0b1010)
    for vector in (0, 1, 1, 3):
        bench.function.signal(vector)
    assert bench.host.vectors == [0]
    assert bench.get(0x54, 4) == 0b1010
    bench.put(0x54, 4, 0)
    bench.put(0x50, 4, 0b1000)
    assert bench.host.vectors == [0, 1]
    assert bench.get(0x54, 4) == 0b1000


def enable_msix(bench: Bench, control: int = MsiX.ENABLE) -> None:
    bench.put(0x42, 2, control)


def test_msix_vectors_are_masked_at_first_and_sent_when_unmasked() -> None:
    bench = Bench(MSIX)
    table, pba = 0x400, 0x900
    enable_msix(bench)
    assert bench.function.read_bar(2, table + 12, 4) == 1
    for vector in (0, 5, 69, 70, 5000):
        assert bench.function.signal(vector)
    assert bench.host.vectors == []
    assert bench.function.read_bar(2, pba, 8) == 1 | 1 << 5
    assert bench.function.read_bar(2, pba + 8, 4) == 1 << 5
    bench.function.write_bar(2, pba, 8, U64)
    bench.function.write_bar(2, table + 16 * 5, 8, 0xFEE0_0000_1234)
    bench.function.write_bar(2, table + 16 * 5 + 8, 4, 77)
    assert bench.host.vectors == []
    bench.function.write_bar(2, table + 16 * 5 + 12, 4, 0)
    assert bench.host.vectors == [5]
    assert bench.function.read_bar(2, pba, 8) == 1
    message = bench.function.message(5)
    assert message is not None
    assert (message.address, message.data) == (0xFEE0_0000_1234, 77)
    bench.function.signal(5)
    assert bench.host.vectors == [5, 5]
    assert not bench.wide.accesses, "table and pending bits are the function's"
    bench.function.write_bar(2, table - 8, 8, 1)
    bench.function.write_bar(2, table + 16 * 70, 4, 1)
    bench.function.read_bar(2, pba + 16, 4)
    assert bench.wide.accesses == [(table - 8, 8), (table + 16 * 70, 4), (pba + 16, 4)]


def test_the_mask_of_all_vectors_holds_what_is_signalled_back() -> None:
    bench = Bench(MSIX)
    enable_msix(bench, MsiX.ENABLE | MsiX.FUNCTION_MASK)
    for vector in range(3):
        bench.function.write_bar(2, 0x400 + 16 * vector + 12, 4, 0)
        bench.function.signal(vector)
    assert bench.host.vectors == []
    enable_msix(bench)
    assert bench.host.vectors == [0, 1, 2]
    enable_msix(bench, 0)
    assert bench.function.signal(0) is False


def test_a_host_with_masks_of_its_own_is_asked_at_once() -> None:
    bench = Bench(MSIX)
    bench.function.host_keeps_vectors = True
    assert bench.function.signal(3) is False
    enable_msix(bench)
    assert bench.function.signal(3) is True
    assert bench.host.vectors == [3]


# ---- reset ---------------------------------------------------------------------------------------


def spoil(bench: Bench) -> None:
    bench.function.write_config(0, b"\xff" * 64)
    bench.put(0x4A, 2, MsiX.ENABLE)
    bench.function.write_bar(2, 0x400, 8, 0)
    bench.function.signal(1)
    bench.function.mask_irq()
    bench.events.clear()


def test_a_reset_brings_everything_back_to_power_on() -> None:
    bench = Bench(POWER, MSIX, FLR)
    before = bench.function.read_config(0, 256)
    spoil(bench)
    bench.function.reset()
    assert bench.function.read_config(0, 256) == before
    assert bench.function.read_bar(2, 0x900, 8) == 0
    assert bench.function.read_bar(2, 0x400 + 12, 4) == 1
    assert bench.events == [], "whoever resets knows of it"
    bench.function.set_irq(True)
    assert bench.host.levels == [True]
    bench.function.reset()
    assert bench.host.levels == [True, False]


def test_the_driver_resets_the_function_through_its_capability() -> None:
    bench = Bench(POWER, MSIX, FLR)
    before = bench.function.read_config(0, 256)
    spoil(bench)
    bench.put(bench.function.capability_at(FLR) + FunctionLevelReset.CONTROL, 1, 0xFE)
    assert bench.events == []
    bench.put(bench.function.capability_at(FLR) + FunctionLevelReset.CONTROL, 1, 1)
    assert bench.events == ["reset"]
    assert bench.function.read_config(0, 256) == before


@pytest.mark.parametrize("no_soft_reset", [False, True])
def test_waking_from_d3_resets_unless_it_is_said_not_to(no_soft_reset) -> None:
    bench = Bench(PowerManagement(no_soft_reset=no_soft_reset))
    bench.command(Command.MEMORY)
    bench.events.clear()
    bench.put(0x44, 2, 3)
    assert bench.get(0x44, 2) == 3 | (8 if no_soft_reset else 0)
    assert bench.events == []
    bench.put(0x44, 2, 0)
    assert bench.events == ([] if no_soft_reset else ["reset"])
    assert bench.function.memory_enable is no_soft_reset


# ---- anything ------------------------------------------------------------------------------------

OFFSETS = st.one_of(st.integers(0, 0x200), st.integers(0x400, 0xA00), st.sampled_from([-1, U64]))
ACCESS = st.one_of(
    st.tuples(st.just("config"), OFFSETS, st.binary(max_size=9)),
    st.tuples(st.just("bar"), st.integers(-1, 7), OFFSETS, st.binary(max_size=9)),
    st.tuples(st.just("irq"), st.booleans()),
    st.tuples(st.just("mask"), st.booleans()),
    st.tuples(st.just("signal"), st.integers(0, 5000)),
    st.tuples(st.just("reset")),
)


@given(st.lists(ACCESS, max_size=40), st.booleans())
def test_no_access_raises_and_what_is_read_is_as_long_as_was_asked_for(accesses, delegated) -> None:
    bench = Bench(POWER, MSIX, MSI, FLR, VendorSpecific(body=b"\x03"))
    function = bench.function
    function.host_keeps_vectors = delegated
    fixed = function.read_config(0, 4)
    for kind, *arguments in accesses:
        match kind:
            case "config":
                offset, data = arguments
                function.write_config(offset, data)
                assert len(function.read_config(offset, len(data))) == len(data)
            case "bar":
                index, offset, data = arguments
                value = int.from_bytes(data, "little")
                function.write_bar(index, offset, len(data), value)
                read = function.read_bar(index, offset, len(data))
                assert read.bit_length() <= 8 * len(data)
            case "irq":
                function.set_irq(arguments[0])
            case "mask":
                function.mask_irq() if arguments[0] else function.unmask_irq()
            case "signal":
                assert function.signal(arguments[0]) is function.messages_enabled
            case "reset":
                function.reset()
        assert function.read_config(0, 4) == fixed
        assert function.irq is (bench.host.levels[-1] if bench.host.levels else False)
    levels = bench.host.levels
    assert all(one is not other for one, other in pairwise(levels))
    assert all(0 <= vector < 70 for vector in bench.host.vectors) or delegated
