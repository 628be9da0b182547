"""Registers: the table, what reads and writes do, EEPROM, PHY, the I/O window, link."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

import pytest
from vnic.errors import ConfigError
from vnic.hookspecs import ResetKind
from vnic_e1000 import Plugin
from vnic_e1000.options import E1000Options, Model
from vnic_e1000.registers import BAR_SIZE, OFFSETS, REGISTERS, Access
from vnic_e1000.ring_kernel import STATS
from vnic_e1000.testing import HostileGuest

MAC = b"\x52\x54\x00\x12\x34\x56"
PATTERNS = (0x5A5A_5A5A, 0xA5A5_A5A5, 0, 0xFFFF_FFFF)
RST = 1 << 26
LSC = 1 << 2


def test_registers_do_not_overlap_and_lie_in_the_bar() -> None:
    offsets = [
        register.offset + i * register.stride for register in REGISTERS for i in range(register.n)
    ]
    assert len(offsets) == len(set(offsets))
    assert all(0 <= offset < BAR_SIZE and offset % 4 == 0 for offset in offsets)


def test_every_register_can_be_read_and_written_with_anything(bench: Any) -> None:
    for register in REGISTERS:
        for value in (0, 0xFFFF_FFFF, 0x5555_5555):
            if register.name != "PBM":
                bench.guest.write(register.offset, value)
                bench.guest.read(register.offset)
    bench.settle()
    bench.check_alive()


@pytest.mark.parametrize(
    ("name", "mask", "write"),
    [
        ("FCAL", 0xFFFF_FFFF, 0xFFFF_FFFF),
        ("FCAH", 0x0000_FFFF, 0xFFFF_FFFF),
        ("FCT", 0x0000_FFFF, 0xFFFF_FFFF),
        ("VET", 0x0000_FFFF, 0xFFFF_FFFF),
        ("RDTR", 0x0000_FFFF, 0xFFFF_FFFF),
        ("RDBAL", 0xFFFF_FFF0, 0xFFFF_FFFF),
        ("RDBAH", 0xFFFF_FFFF, 0xFFFF_FFFF),
        ("RDLEN", 0x000F_FF80, 0x000F_FFFF),
        ("RDH", 0x0000_FFFF, 0x0000_FFFF),
        ("RDT", 0x0000_FFFF, 0x0000_FFFF),
        ("FCRTH", 0x0000_FFF8, 0x0000_FFF8),
        ("FCTTV", 0x0000_FFFF, 0x0000_FFFF),
        ("TIPG", 0x3FFF_FFFF, 0x3FFF_FFFF),
        ("TDBAL", 0xFFFF_FFF0, 0xFFFF_FFFF),
        ("TDBAH", 0xFFFF_FFFF, 0xFFFF_FFFF),
        ("TDLEN", 0x000F_FF80, 0x000F_FFFF),
        ("TXCW", 0xC000_FFFF, 0x0000_FFFF),
        ("TIDV", 0x0000_FFFF, 0x0000_FFFF),
        ("RAH", 0x8003_FFFF, 0xFFFF_FFFF),
        ("MTA", 0xFFFF_FFFF, 0xFFFF_FFFF),
    ],
)
def test_a_register_keeps_the_bits_that_drivers_test(
    bench: Any, name: str, mask: int, write: int
) -> None:
    register = next(register for register in REGISTERS if register.name == name)
    for i in range(register.n):
        offset = register.offset + i * register.stride
        for pattern in PATTERNS:
            bench.guest.write(offset, write & pattern)
            assert bench.guest.read(offset) == write & pattern & mask


def test_receive_control_keeps_its_bits_and_no_reserved_ones(bench: Any) -> None:
    bench.guest.write("RCTL", 0xFFFF_FFFF)
    assert bench.guest.read("RCTL") == 0x06DF_B3FE
    bench.guest.write("RCTL", 0)
    assert bench.guest.read("RCTL") == 0


def test_status_cannot_be_written(bench: Any) -> None:
    assert bench.guest.read("STATUS") == 0x8008_0783
    bench.guest.write("STATUS", 0)
    assert bench.guest.read("STATUS") == 0x8008_0783


def test_a_hole_reads_as_zero_and_takes_nothing(bench: Any) -> None:
    known = {r.offset + i * r.stride for r in REGISTERS for i in range(r.n)}
    hole = next(offset for offset in range(0, BAR_SIZE, 4) if offset not in known)
    bench.guest.write(hole, 0x1234)
    assert bench.guest.read(hole) == 0


def test_a_part_of_a_register_can_be_read_and_not_written(bench: Any) -> None:
    bench.guest.write("FCAL", 0x1234_5678)
    pci, at = bench.guest.pci, OFFSETS["FCAL"]
    assert pci.read_bar(0, at, 1) == 0x78
    assert pci.read_bar(0, at + 2, 2) == 0x1234
    pci.write_bar(0, at, 2, 0)
    assert bench.guest.read("FCAL") == 0x1234_5678


def test_eight_bytes_are_two_registers(bench: Any) -> None:
    bench.guest.pci.write_bar(0, OFFSETS["RDBAL"], 8, 0x1_2345_6780)
    assert bench.guest.pci.read_bar(0, OFFSETS["RDBAL"], 8) == 0x1_2345_6780


def test_a_reset_brings_back_every_registers_value_at_reset(bench: Any) -> None:
    for register in REGISTERS:
        if register.access is Access.RW and register.name not in ("CTRL", "PBM", "ICS", "MDIC"):
            bench.guest.write(register.offset, 0x7)
    bench.guest.write("CTRL", RST)
    for register in REGISTERS:
        if register.access is Access.RW and register.name not in ("EECD", "RAL", "RAH", "PBM"):
            assert bench.guest.read(register.offset) == register.reset, register.name
    bench.check_alive()


def test_the_address_of_the_eeprom_is_the_first_that_is_received(bench: Any) -> None:
    low, high = bench.guest.read("RAL"), bench.guest.read("RAH")
    assert struct.pack("<IH", low, high & 0xFFFF) == MAC
    assert high >> 31 == 1


# ---- EEPROM --------------------------------------------------------------------------------------


def test_eerd_reads_words_and_the_last_makes_the_sum_right(bench: Any) -> None:
    words = []
    for i in range(64):
        bench.guest.write("EERD", 1 | i << 8)
        value = bench.guest.read("EERD")
        assert value & 1 << 4
        words.append(value >> 16)
    assert sum(words) & 0xFFFF == 0xBABA
    assert struct.pack("<3H", *words[:3]) == MAC
    assert words[0x0D] == 0x100E


class Microwire:
    """A driver's view of the EEPROM's pins."""

    SK, CS, DI, DO, REQ, GNT = 1, 2, 4, 8, 1 << 6, 1 << 7

    def __init__(self, guest: HostileGuest) -> None:
        self.guest = guest
        self.pins = self.REQ
        self.drive()

    def drive(self) -> None:
        self.guest.write("EECD", self.pins)

    def clock(self) -> int:
        self.pins |= self.SK
        self.drive()
        self.pins &= ~self.SK
        self.drive()
        return bool(self.guest.read("EECD") & self.DO)

    def put(self, value: int, n: int) -> None:
        for i in reversed(range(n)):
            self.pins = self.pins & ~self.DI | (self.DI if value >> i & 1 else 0)
            self.drive()
            self.clock()

    def command(self, opcode: int, address: int) -> None:
        self.pins = self.REQ
        self.drive()
        self.pins |= self.CS
        self.drive()
        self.put(opcode, 3)
        self.put(address, 6)

    def get(self) -> int:
        self.pins &= ~self.DI
        value = 0
        for _ in range(16):
            value = value << 1 | self.clock()
        return value


def test_the_eeprom_is_granted_when_it_is_asked_for(bench: Any) -> None:
    assert not bench.guest.read("EECD") & Microwire.GNT
    Microwire(bench.guest)
    assert bench.guest.read("EECD") & Microwire.GNT
    bench.guest.write("EECD", 0)
    assert not bench.guest.read("EECD") & Microwire.GNT


def test_words_are_read_bit_by_bit(bench: Any) -> None:
    wire = Microwire(bench.guest)
    words = []
    for address in range(64):
        wire.command(0b110, address)
        words.append(wire.get())
    assert sum(words) & 0xFFFF == 0xBABA
    assert struct.pack("<3H", *words[:3]) == MAC


def test_the_next_word_follows_while_the_clock_goes_on(bench: Any) -> None:
    wire = Microwire(bench.guest)
    wire.command(0b110, 63)
    wire.get()
    assert struct.pack("<2H", wire.get(), wire.get()) == MAC[:4]


def test_a_word_is_written_only_when_writing_was_allowed(bench: Any) -> None:
    wire = Microwire(bench.guest)
    wire.command(0b101, 9)
    wire.put(0x1234, 16)
    wire.command(0b110, 9)
    assert wire.get() == 0x1000
    wire.command(0b100, 0b110000)
    wire.command(0b101, 9)
    wire.put(0x1234, 16)
    wire.command(0b110, 9)
    assert bench.guest.read("EECD") & Microwire.DO == 0  # the dummy zero
    assert wire.get() == 0x1234
    wire.command(0b100, 0)
    wire.command(0b111, 9)
    wire.command(0b110, 9)
    assert wire.get() == 0x1234


def test_an_eeprom_that_was_not_granted_hears_nothing(bench: Any) -> None:
    wire = Microwire(bench.guest)
    wire.command(0b110, 0)
    before = bench.guest.read("EECD") & Microwire.DO
    for pins in (3, 2, 3, 2, 7, 6):
        bench.guest.write("EECD", pins)
    wire.pins = wire.REQ | wire.CS
    wire.drive()
    assert bench.guest.read("EECD") & Microwire.DO == before
    assert wire.get() == int.from_bytes(MAC[:2], "little")


# ---- PHY -----------------------------------------------------------------------------------------


def phy(bench: Any, register: int, value: int | None = None, address: int = 1) -> int:
    operation = 1 << 27 if value is None else 1 << 26 | value
    bench.guest.write("MDIC", operation | address << 21 | register << 16)
    result: int = bench.guest.read("MDIC")
    assert result & 1 << 28
    return result


def test_the_phy_is_an_m88e1011_at_address_1_and_nowhere_else(bench: Any) -> None:
    assert phy(bench, 2) & 0xFFFF == 0x0141
    assert phy(bench, 3) & 0xFFF0 == 0x0C20
    assert not phy(bench, 2) & 1 << 30
    for address in (0, 2, 31):
        assert phy(bench, 2, address=address) & 1 << 30


def test_the_phy_interrupts_when_the_access_asks_for_it(bench: Any) -> None:
    bench.guest.read("ICR")
    bench.guest.write("MDIC", 1 << 29 | 1 << 27 | 1 << 21 | 2 << 16)
    assert bench.guest.read("ICR") == 1 << 9


def test_phy_status_shows_the_link_and_remembers_once_that_it_was_lost(bench: Any) -> None:
    assert phy(bench, 1) & 0x24 == 0x24
    bench.wire.link.down("gone")
    bench.settle()
    assert phy(bench, 1) & 0x24 == 0
    assert phy(bench, 5) & 0xFFFF == 0
    bench.wire.link.up()
    bench.settle()
    assert phy(bench, 1) & 4 == 0
    assert phy(bench, 1) & 4 == 4


def test_phy_reset_and_renegotiation_are_over_at_once(bench: Any) -> None:
    bench.guest.read("ICR")
    phy(bench, 0, 0x9340)
    assert phy(bench, 0) & 0xFFFF == 0x1140
    assert bench.guest.read("ICR") & LSC


def test_the_mac_resets_the_phy_and_the_bit_does_not_stay(bench: Any) -> None:
    before = phy(bench, 4)
    phy(bench, 4, 0x0001)
    phy(bench, 0, 0x4140)
    bench.guest.read("ICR")
    bench.guest.write("CTRL", 1 << 31 | 1 << 6)
    assert bench.guest.read("CTRL") == 1 << 6
    assert phy(bench, 0) & 0xFFFF == 0x1140
    assert phy(bench, 4) == before
    assert bench.guest.read("ICR") == LSC  # it has negotiated anew


def test_a_phy_that_is_off_has_no_link(bench: Any) -> None:
    phy(bench, 0, 0x1940)
    assert not bench.guest.read("STATUS") & 2
    phy(bench, 0, 0x1140)
    assert bench.guest.read("STATUS") & 2


def test_registers_of_the_phy_that_are_not_there_read_as_zero(bench: Any) -> None:
    for register in range(32):
        phy(bench, register, 0xFFFF)
    assert phy(bench, 12) & 0xFFFF == 0
    assert phy(bench, 29) & 0xFFFF == 0xFFFF


# ---- link ----------------------------------------------------------------------------------------


def test_the_carrier_is_seen_with_an_interrupt_at_once(bench: Any) -> None:
    bench.guest.read("ICR")
    bench.wire.link.down("gone")
    bench.settle()
    assert bench.guest.read("ICR") == LSC
    assert not bench.guest.read("STATUS") & 2
    bench.wire.link.up()
    bench.settle()
    assert bench.guest.read("ICR") == LSC
    assert bench.guest.read("STATUS") & 2


def test_setting_link_up_brings_the_link_up_with_an_interrupt(bench: Any) -> None:
    bench.guest.write("CTRL", RST)
    assert not bench.guest.read("STATUS") & 2
    bench.guest.read("ICR")
    bench.guest.write("CTRL", 1 << 6)
    assert bench.guest.read("ICR") == LSC
    assert bench.guest.read("STATUS") & 2


# ---- statistics ----------------------------------------------------------------------------------


def test_statistics_count_both_ways_and_clear_as_they_are_read(bench: Any) -> None:
    guest = bench.guest
    guest.post(2048, 2048, 2048, 2048)
    bench.receive(MAC + bytes(54), b"\xff" * 6 + bytes(200), b"\x01" + bytes(999))
    expected = {
        "GPRC": 3, "BPRC": 1, "MPRC": 1, "PRC64": 1, "PRC255": 1, "PRC1023": 1, "TPR": 3,
        "GORCL": 64 + 210 + 1004, "TORL": 64 + 210 + 1004, "GORCH": 0, "TORH": 0,
    }  # fmt: skip
    assert {name: guest.read(name) for name in expected} == expected
    assert {guest.read(name) for name in expected} == {0}
    frame = guest.buffer(b"\xff" * 6 + bytes(300))
    bench.send((frame, 306 | 0x0B << 24), (frame + 6, 300 | 0x0B << 24))
    expected = {
        "GPTC": 2, "TPT": 2, "BPTC": 1, "MPTC": 0, "PTC511": 2,
        "GOTCL": 310 + 304, "TOTL": 310 + 304, "GOTCH": 0, "TOTH": 0,
    }  # fmt: skip
    assert {name: guest.read(name) for name in expected} == expected
    assert {guest.read(name) for name in expected} == {0}


def test_the_halves_of_a_counter_of_64_bits_belong_together(bench: Any) -> None:
    guest = bench.guest
    guest.post(2048, 2048, 2048, 2048)
    bench.receive(MAC + bytes(54))
    assert guest.read("GORCL") == 64
    bench.receive(MAC + bytes(54))
    assert guest.read("GORCH") == 0  # of the 64
    assert guest.read("GORCL") == 64


def test_counts_go_on_beyond_32_bits_where_there_are_64_and_stick_where_there_are_not(
    bench: Any,
) -> None:
    guest, stats = bench.guest, bench.nic.frontend._rx.stats
    for name in ("GORC", "GOTC", "TOR", "TOT", "GPRC", "TSCTC"):
        stats.subtract(STATS[name], (1 << 64) - 0x3_0000_0007)
    for name in ("GORC", "GOTC", "TOR", "TOT"):
        assert [guest.read(f"{name}{half}") for half in "LHLH"] == [7, 3, 0, 0]
    for name in ("GPRC", "TSCTC"):
        assert [guest.read(name) for _ in range(2)] == [0xFFFF_FFFF, 0]


def test_statistics_start_at_zero_after_a_reset(bench: Any) -> None:
    bench.guest.post(2048)
    bench.receive(MAC + bytes(54))
    bench.guest.write("CTRL", RST)
    assert bench.guest.read("GPRC") == bench.guest.read("GORCL") == 0


# ---- the PCI function ----------------------------------------------------------------------------


def test_registers_are_reached_through_the_io_bar(bench: Any) -> None:
    pci = bench.guest.pci
    pci.write_bar(2, 0, 4, OFFSETS["FCAL"])
    pci.write_bar(2, 4, 4, 0xCAFE)
    assert bench.guest.read("FCAL") == 0xCAFE
    assert pci.read_bar(2, 0, 4) == OFFSETS["FCAL"]
    assert pci.read_bar(2, 4, 4) == 0xCAFE


def test_a_global_reset_goes_through_the_io_bar(bench: Any) -> None:
    bench.guest.write("FCAL", 7)
    bench.guest.pci.write_bar(2, 0, 4, OFFSETS["CTRL"])
    bench.guest.pci.write_bar(2, 4, 4, RST)
    assert bench.guest.read("FCAL") != 7
    bench.check_alive()


@pytest.mark.parametrize("address", [BAR_SIZE, 0xFFFF_FFFF, 1, BAR_SIZE - 2])
def test_an_io_address_beyond_the_registers_reaches_nothing(bench: Any, address: int) -> None:
    pci = bench.guest.pci
    pci.write_bar(2, 0, 4, address)
    pci.write_bar(2, 4, 4, 0xFFFF_FFFF)
    assert pci.read_bar(2, 4, 4) == 0
    assert pci.read_bar(2, 8, 4) == 0


@pytest.mark.parametrize(("model", "device"), [("82540em", 0x100E), ("82545EM", 0x100F)])
def test_the_model_is_an_option(make_bench: Callable[..., Any], model: str, device: int) -> None:
    bench = make_bench(E1000Options(mac=MAC, model=model))
    config = bench.guest.pci.read_config(0, 64)
    assert struct.unpack_from("<HH", config) == (0x8086, device)
    assert config[9:12] == b"\x00\x00\x02"
    assert config[0x3D] == 1
    bench.guest.write("EERD", 1 | 0x0D << 8)
    assert bench.guest.read("EERD") >> 16 == device


def test_an_unknown_model_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="82540em, 82545em"):
        E1000Options(model="i350")
    assert E1000Options().model is Model.I82540EM
    assert issubclass(ConfigError, Exception)


def test_without_bus_mastering_nothing_moves(bench: Any) -> None:
    bench.guest.pci.write_config(4, b"\x03\x00")
    frame = bench.guest.buffer(60)
    assert bench.send((frame, 60 | 0x0B << 24)) == []
    bench.guest.post(2048)
    bench.receive(MAC + bytes(54))
    assert bench.guest.rx_word(0) == 0
    bench.guest.pci.write_config(4, b"\x07\x00")
    bench.settle()
    assert len(bench.wire.sent) == 1


@pytest.mark.parametrize("kind", list(ResetKind))
def test_the_host_can_reset_it_at_any_time(bench: Any, kind: ResetKind) -> None:
    bench.guest.post(2048)
    bench.guest.write("IMS", 0xFFFF)
    bench.receive(MAC + bytes(54))
    assert bench.host.irq_level
    bench.nic.reset(kind)
    bench.settle()
    assert not bench.host.irq_level
    assert bench.guest.read("RCTL") == 0
    assert not bench.guest.pci.bus_master
    bench.guest.pci.write_config(4, b"\x07\x00")
    bench.check_alive()


def test_cleanup_may_come_twice_and_before_init() -> None:
    plugin = Plugin()
    plugin.cleanup()
    plugin.cleanup()
