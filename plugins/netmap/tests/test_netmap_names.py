"""Names of ports, and what is wrong with them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from vnic.errors import ConfigError
from vnic_netmap.abi import NrFlag, NrMode
from vnic_netmap.names import PortName, parse


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("netmap:eth0", PortName(port="eth0")),
        ("netmap:veth-a", PortName(port="veth-a")),
        ("netmap:eth0.7", PortName(port="eth0.7")),
        ("netmap:eth0-3", PortName(port="eth0", mode=NrMode.ONE_NIC, ring=3)),
        ("netmap:veth-a-0", PortName(port="veth-a", mode=NrMode.ONE_NIC)),
        ("netmap:eth0^", PortName(port="eth0", mode=NrMode.SW)),
        ("netmap:eth0^1", PortName(port="eth0", mode=NrMode.ONE_SW, ring=1)),
        ("netmap:eth0*", PortName(port="eth0", mode=NrMode.NIC_SW)),
        ("netmap:eth0@7", PortName(port="eth0", mem_id=7)),
        ("netmap:eth0/x", PortName(port="eth0", flags=NrFlag.EXCLUSIVE)),
        (
            "netmap:eth0-1@7/ztr",
            PortName(
                port="eth0",
                mode=NrMode.ONE_NIC,
                ring=1,
                mem_id=7,
                flags=NrFlag.ZCOPY_MON | NrFlag.MONITOR_TX | NrFlag.MONITOR_RX,
            ),
        ),
        ("netmap:eth0/R@7", PortName(port="eth0", mem_id=7, flags=NrFlag.RX_RINGS_ONLY)),
        ("netmap:eth0/T", PortName(port="eth0", flags=NrFlag.TX_RINGS_ONLY)),
        ("netmap:p{7", PortName(port="p{7")),
        ("netmap:p}7", PortName(port="p}7")),
        ("netmap:vale0:1", PortName(port="vale0:1")),
        ("vale0:1", PortName(port="vale0:1")),
        ("netmap:vale_a:web{x", PortName(port="vale_a:web{x")),
    ],
)
def test_each_form_of_name_is_read_as_libnetmap_does(text: str, name: PortName) -> None:
    assert parse(text) == name


def test_only_ports_of_a_switch_and_pipes_take_fragments() -> None:
    names = ("netmap:vale0:1", "netmap:vale0:1{2", "netmap:eth0{2", "netmap:eth0", "netmap:eth0^")
    assert [parse(name).takes_fragments for name in names] == [True, True, True, False, False]
    assert [parse(name).is_vale for name in names] == [True, False, False, False, False]


def test_a_monitor_of_a_switchs_port_is_not_that_port() -> None:
    assert not parse("netmap:vale0:1/r").is_vale
    assert not parse("netmap:vale0:1/zt").is_vale


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("netmap:", 'write it as in "netmap:eth0"'),
        ("netmap:{1", 'write it as in "netmap:eth0"'),
        ("netmap:eth0 ", 'write it as in "netmap:eth0"'),
        ("netmap:eth0{", 'write it as in "netmap:eth0"'),
        ("netmap:eth0{1}2", 'write it as in "netmap:eth0"'),
        ("netmap:eth0^x", 'write it as in "netmap:eth0"'),
        ("netmap:ä", 'write it as in "netmap:eth0"'),
        ("netmap:\udcff", 'write it as in "netmap:eth0"'),  # a byte that was no UTF-8
        ("netmap:eth\0", 'write it as in "netmap:eth0"'),
        ("netmap:eth0^\u0663", 'write it as in "netmap:eth0"'),  # a digit, elsewhere
        ("netmap:eth0@\u0663", "@\u0663: an allocator's id"),
        ("netmap:eth0@", "@: an allocator's id is a number from 1 to 65535"),
        ("netmap:eth0@65536", "@65536: an allocator's id"),
        ("netmap:eth0@" + 5000 * "1", "an allocator's id"),
        ("netmap:eth0-" + 5000 * "1", "and 15 are the most"),
        ("netmap:eth0/", "/: no flags of a port; there are x z t r R T"),
        ("netmap:eth0/xq", "/q: no flags"),
        ("netmap:eth0/RT", "leave it out"),
        ("netmap:eth0/tT", "leave it out"),
        ("netmap:eth0/xz", "add r, t or both"),
        ("netmap:eth0-4096", "-4096: no port has so many rings"),
        ("netmap:eth:0", "colon"),
        ("netmap:vale0", 'write "vale0:1", SWITCH:PORT'),
        ("netmap:vale-0:1", 'write "vale0:1", SWITCH:PORT'),
        ("netmap:an_interface_name", "has 17 characters, and 15 are the most"),
        ("netmap:vale0:a_port_of_valeee", "a_port_of_valeee has 16 characters"),
        ("netmap:vale0:lo", "lo is an interface of this host, which VALE would take"),
    ],
)
def test_a_wrong_name_is_one_clear_error(text: str, says: str) -> None:
    with pytest.raises(ConfigError) as error:
        parse(text)
    assert says in str(error.value)


def test_all_that_is_wrong_is_said_at_once() -> None:
    with pytest.raises(ConfigError) as error:
        parse("netmap:eth:0@0/q")
    assert len(str(error.value).splitlines()) == 3


@given(st.text(alphabet="ae09:-^*@/{}xRT ", max_size=24))
def test_any_name_is_read_or_refused(text: str) -> None:
    try:
        name = parse(text)
    except ConfigError:
        return
    assert 0 < len(name.port) < 64
