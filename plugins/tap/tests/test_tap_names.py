"""What the name of a tap may be, and which interface or descriptor it means."""

from __future__ import annotations

import pytest
from vnic import ConfigError
from vnic.registry import Registry
from vnic_tap.names import Named, Passed, parse


@pytest.mark.parametrize(
    ("written", "meaning"),
    [
        ("tap0", Named("tap0")),
        ("tap-of-vm7", Named("tap-of-vm7")),
        ("vm7", Named("vm7")),  # with type=tap
        ("tap:vm7", Named("vm7")),
        ("macvtap:lan0", Named("lan0")),
        ("macvtap0", Named("macvtap0")),
        ("tap:fd=7", Passed(7)),
        ("tap:fd=007", Passed(7)),
        ("macvtap:fd=12", Passed(12)),
    ],
)
def test_each_form_of_a_name_means_one_thing(written: str, meaning: object) -> None:
    assert parse(written) == meaning


@pytest.mark.parametrize(
    ("name", "prefix"), [("tap:fd=7", "tap"), ("macvtap:lan0", "macvtap"), ("macvtap0", "macvtap")]
)
def test_each_form_finds_its_plugin(name: str, prefix: str) -> None:
    assert Registry().find("backends", name).prefix == prefix


def refused(name: str) -> str:
    with pytest.raises(ConfigError) as caught:
        parse(name)
    return str(caught.value)


@pytest.mark.parametrize("name", ["tap0123456789012", "tap" * 100, "tap:vm01234567890123"])
def test_a_name_that_is_too_long_says_by_how_much(name: str) -> None:
    n = len(name.removeprefix("tap:"))
    assert refused(name) == (
        f"'{name}': the name has {n} characters, an interface's at most 15; choose a shorter one"
    )


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("tap/0", "'/'"),
        ("tap 0", "' '"),
        ("tap0:1", "':'"),
        ("tap:vm:1", "':'"),
        ("tap%d", "'%'"),
        ("tap\n", r"'\n'"),
        ("tap:\n", r"'\n'"),
        ("tap\0x", r"'\x00'"),
        ("täp0", r"'\xe4'"),
    ],
)
def test_a_name_with_a_character_that_it_cannot_have_names_it(name: str, shown: str) -> None:
    text = refused(name)
    assert f"the name of an interface can't have {shown}; use letters" in text
    assert text.isascii()
    assert text.isprintable()


@pytest.mark.parametrize("name", ["", ".", "..", "tap:", "macvtap:"])
def test_a_name_that_is_none_is_refused(name: str) -> None:
    assert refused(name) == f"'{name}': no name for an interface; give one like tap0"


def test_a_number_alone_is_not_taken_for_an_interface() -> None:
    assert refused("tap:0") == (
        "'tap:0': a number alone names no interface; write it whole, as in tap0"
    )


@pytest.mark.parametrize("name", ["tap:fd=", "tap:fd=-1", "tap:fd=x", "tap:fd=0x7", "tap:fd=7\n"])
def test_a_descriptor_is_a_decimal_number(name: str) -> None:
    text = refused(name)
    assert text.endswith("no number of a descriptor; write it in decimal, as in tap:fd=7")
    assert text.isprintable()
