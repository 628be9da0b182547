"""Linux's e1000 driver on the device that vnic serves over vfio-user."""

from __future__ import annotations

import re
import socket
from typing import TYPE_CHECKING, Final

import attrs
import pytest
from guests.vnic_run import VnicRun
from kit.cable import Cable
from kit.guest import Guest, VfioUserNic, VhostUserNic
from kit.netns import IperfResult, Netns
from kit.traffic import there_and_back, until
from vnic_e1000 import Plugin as E1000Plugin

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = [pytest.mark.guests, pytest.mark.root]

MAC: Final = "52:54:00:00:00:0e"
PEER_MAC: Final = "52:54:00:00:00:0b"
NOBODYS_MAC: Final = "52:54:00:00:00:ff"
GUEST, PEER, HOST = "10.0.0.1", "10.0.0.2", "10.0.0.254"
GUEST_VLAN, PEER_VLAN = "10.0.7.1", "10.0.7.2"
VLAN: Final = 7
MTU: Final = 9000
IPERF_S: Final = 1
N_BYTES: Final = 100_000_000
N_FRAMES: Final = 64
"""Injected in one go; the driver posts 256 buffers."""

NICS = f"""
[[nic]]
name = "e"
frontend = "e1000"
backend = "vale0:e"
mac = "{MAC}"
vfio-user = "{{folder}}/e.sock"

[[nic]]
name = "v"
frontend = "virtio-net"
backend = "vale0:v"
vhost-user = "{{folder}}/v.sock"

[[patch]]
between = ["vale0:up", "tap0"]
"""


@attrs.frozen
class Network:
    """Two guests and a tap in a namespace, on one switch."""

    vnic: VnicRun
    netns: Netns
    guest: Guest
    """Its eth0 is an e1000; eth1 one on a cable."""
    peer: Guest
    """Its eth0 is a virtio-net."""
    cable: Cable


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Network]:
    folder = tmp_path_factory.mktemp("network")
    toml = folder / "network.toml"
    toml.write_text(NICS.format(folder=folder))
    cable = Cable(folder / "cable.sock", E1000Plugin, "e1000,cable,model=82545em")
    try:
        with Netns() as netns, VnicRun(netns, toml) as vnic:
            netns.set_address("tap0", f"{HOST}/24")
            netns.up("tap0")
            guest, peer = boot(folder)
            with guest, peer:
                peer.run(f"ip addr add {PEER}/24 dev eth0; ip link set eth0 up mtu 1500")
                configure(guest)
                yield Network(vnic, netns, guest, peer, cable)
    finally:
        cable.close()


def boot(folder: Path) -> tuple[Guest, Guest]:
    nics = [
        VfioUserNic(path=folder / "e.sock"),
        VfioUserNic(path=folder / "cable.sock", id="nic1"),
    ]
    virtio = VhostUserNic(path=folder / "v.sock", mac=PEER_MAC, options={"host_mtu": MTU})
    return Guest(nics, name="guest"), Guest([virtio], name="peer")


def configure(guest: Guest) -> None:
    guest.run(f"ip addr add {GUEST}/24 dev eth0; ip link set eth0 up")
    until(guest, f"ping -c 1 -W 1 {HOST}")


def complaints(guest: Guest) -> list[str]:
    """Return what the kernel has said of NIC and driver at level "warning", or in such words."""
    said = guest.run("dmesg -r").splitlines()
    ours = re.compile("e1000|eth0|NETDEV WATCHDOG|nobody cared|Call Trace")
    bad = re.compile("^<[0-4]>|warn|fail|error|bug|hang|timed out|Call Trace", re.IGNORECASE)
    return [line for line in said if ours.search(line) and bad.search(line)]


def ping(guest: Guest, address: str, options: str = "") -> None:
    assert " 0% packet loss" in guest.run(f"ping -c 5 -i 0.1 {options} {address}")


def counters(guest: Guest) -> dict[str, int]:
    """Return what ``ethtool -S`` shows: the device's own registers, most of it."""
    lines = re.findall(r"^ +(\w+): (\d+)$", guest.run("ethtool -S eth0"), re.MULTILINE)
    return {name: int(count) for name, count in lines}


def delivered(network: Network, *frames: bytes) -> int:
    """Send frames from the tap's side; return how many frames got past the device's filters."""
    before = counters(network.guest)["rx_packets"]
    with network.netns.call(socket.socket, socket.AF_PACKET, socket.SOCK_RAW) as wire:
        wire.bind(("tap0", 0))
        for frame in frames:
            wire.send(frame)
    ping(network.guest, HOST)  # whose answers come after those frames
    return counters(network.guest)["rx_packets"] - before


def frame(to: str, vlan: int | None = None) -> bytes:
    tag = b"" if vlan is None else b"\x81\x00" + vlan.to_bytes(2, "big")
    source = bytes.fromhex("02000000000f")
    return bytes.fromhex(to.replace(":", "")) + source + tag + b"\x88\xb5" + bytes(46)


def iperf(client: Guest, server: str, options: str = "") -> IperfResult:
    command = f"iperf3 -c {server} -t {IPERF_S} --json {options}"
    return IperfResult.parse(client.run(command, timeout_s=60))


def sent_back(network: Network, n_bytes: int) -> None:
    """Send bytes to the guest and back, and compare them."""
    with network.netns.call(socket.create_server, (HOST, 0)) as listener:
        there_and_back(network.guest, HOST, listener, n_bytes)


# ---- the driver and its tools --------------------------------------------------------------------


def test_linux_binds_its_driver_and_has_no_complaint(network: Network) -> None:
    assert "e1000" in network.guest.run("readlink -f /sys/class/net/eth0/device/driver")
    assert MAC in network.guest.run("ip link show eth0")
    assert complaints(network.guest) == []


def test_guests_and_host_answer_each_other(network: Network) -> None:
    for size in (1, 56, 1472, 20000):
        ping(network.guest, HOST, f"-s {size}")
        ping(network.guest, PEER, f"-s {size}")
    ping(network.peer, GUEST)


def test_the_driver_shows_a_gigabit_link_and_its_offloads(network: Network) -> None:
    shown = network.guest.run("ethtool eth0; ethtool -k eth0")
    for line in (
        "Speed: 1000Mb/s",
        "Duplex: Full",
        "Link detected: yes",
        "tx-checksumming: on",
        "scatter-gather: on",
        "tcp-segmentation-offload: on",
        "rx-vlan-offload: on",
        "tx-vlan-offload: on",
    ):
        assert line in shown


def test_the_statistics_count_frames_and_bytes(network: Network) -> None:
    before = counters(network.guest)
    network.guest.run(f"ping -c 10 -i 0.1 -s 1000 {HOST}")
    after = counters(network.guest)
    for direction in ("tx", "rx"):
        n_frames = after[f"{direction}_packets"] - before[f"{direction}_packets"]
        n_bytes = after[f"{direction}_bytes"] - before[f"{direction}_bytes"]
        assert 10 <= n_frames < 20
        assert 10 * 1042 <= n_bytes < 10 * 1042 + 10 * 100
    assert [name for name, n in after.items() if "error" in name and n] == []


def test_rings_of_any_size_carry_frames(network: Network) -> None:
    for n in (80, 4096, 256):
        network.guest.run(f"ethtool -G eth0 rx {n} tx {n}")
        shown = network.guest.run("ethtool -g eth0").partition("Current")[2]
        assert re.findall(r"^(?:RX|TX):\s+(\d+)$", shown, re.MULTILINE) == [str(n)] * 2
        until(network.guest, f"ping -c 1 -W 1 {HOST}")
        ping(network.guest, HOST, "-s 9000")


def test_it_passes_the_drivers_own_test_of_the_hardware(network: Network) -> None:
    output = network.guest.run("ethtool -t eth0 offline", timeout_s=60)
    parts = re.findall(r"^(\w+) test .*\s(\d+)$", output, re.MULTILINE)
    assert parts == [
        (name, "0") for name in ("Register", "Eeprom", "Interrupt", "Loopback", "Link")
    ]
    until(network.guest, f"ping -c 1 -W 1 {HOST}")


# ---- traffic -------------------------------------------------------------------------------------


def test_tcp_between_guest_and_host_through_tap(network: Network) -> None:
    with network.netns.iperf3_server():
        for options in ("", "-R"):
            assert iperf(network.guest, HOST, options).bits_per_s > 5e6


def test_tcp_between_an_e1000_and_a_virtio_net_on_one_switch(network: Network) -> None:
    network.peer.run("iperf3 -s -D; until netstat -lnt | grep -q :5201; do sleep 0.1; done")
    try:
        for options in ("", "-R"):
            assert iperf(network.guest, PEER, options).bits_per_s > 5e6
    finally:
        network.peer.run("killall iperf3")


def test_udp_both_ways_with_no_frame_missed(network: Network) -> None:
    # Where the guest is late, they wait in its socket.
    network.guest.run("echo 8000000 >/proc/sys/net/core/rmem_default")
    before = counters(network.guest)
    with network.netns.iperf3_server():
        for options in ("", "-R"):
            result = iperf(network.guest, HOST, f"-u -b 10M {options}")
            assert result.bits_per_s > 5e6
            assert result.lost_packets == 0
    assert counters(network.guest)["rx_missed_errors"] == before["rx_missed_errors"]


@pytest.mark.parametrize("tso", ["on", "off"])
def test_100_mb_come_back_as_they_were_sent_both_ways_at_once(network: Network, tso: str) -> None:
    before = counters(network.guest)["tx_tcp_seg_good"]
    network.guest.run(f"ethtool -K eth0 tso {tso}")
    try:
        sent_back(network, 100_000_000)
    finally:
        network.guest.run("ethtool -K eth0 tso on")
    assert (counters(network.guest)["tx_tcp_seg_good"] > before) == (tso == "on")


@pytest.mark.parametrize("offloads", ["tx off", "sg off", "rx on", "rxvlan off", "tx off rx on"])
def test_bytes_come_back_whatever_the_device_is_asked_to_do(
    network: Network, offloads: str
) -> None:
    before = counters(network.guest)["rx_csum_offload_good"]
    network.guest.run(f"ethtool -K eth0 {offloads}")
    try:
        sent_back(network, 5_000_000)
    finally:
        network.guest.run("ethtool -K eth0 rx off tx on sg on tso on rxvlan on")
    if "rx on" in offloads:
        assert counters(network.guest)["rx_csum_offload_good"] > before


def set_mtu(network: Network, mtu: int) -> None:
    network.netns.up("tap0", mtu=mtu)
    for guest in (network.guest, network.peer):
        guest.run(f"ip link set eth0 mtu {mtu}")
    until(network.guest, f"ping -c 1 -W 1 {HOST}")  # its e1000 was reset for that


def test_frames_as_long_as_mtu_9000_cross_whole(network: Network) -> None:
    set_mtu(network, MTU)
    try:
        before = counters(network.guest)
        for address in (HOST, PEER):
            ping(network.guest, address, f"-s {MTU - 28}")
        after = counters(network.guest)
        # One frame for each, and little besides.
        for name in ("tx_packets", "rx_packets"):
            assert after[name] - before[name] < 20
        assert after["rx_bytes"] - before["rx_bytes"] > 10 * MTU
        with network.netns.iperf3_server():
            for options in ("", "-R"):
                assert iperf(network.guest, HOST, options).bits_per_s > 5e6
    finally:
        set_mtu(network, 1500)


# ---- filters -------------------------------------------------------------------------------------


def test_frames_for_others_are_delivered_in_promiscuous_mode_alone(network: Network) -> None:
    frames = [frame(NOBODYS_MAC)] * N_FRAMES
    assert delivered(network, *frames) < N_FRAMES
    network.guest.run("ip link set eth0 promisc on")
    try:
        assert delivered(network, *frames) >= N_FRAMES
    finally:
        network.guest.run("ip link set eth0 promisc off")
    assert delivered(network, *frames) < N_FRAMES


def test_frames_for_a_group_are_delivered_to_those_who_joined(network: Network) -> None:
    # Each address joins the group of its last three bytes; more than there are exact filters, so
    # that some go into the hash table.
    suffixes = [f"{i:02x}" for i in range(0x10, 0x30)]
    groups = [frame(f"33:33:ff:00:00:{suffix}") for suffix in suffixes]
    twice = N_FRAMES // len(groups) * groups
    others = [frame("01:00:5e:7f:55:aa")] * N_FRAMES
    assert delivered(network, *twice) < N_FRAMES
    add = "; ".join(f"ip addr add fd00::{suffix}/64 dev eth0" for suffix in suffixes)
    network.guest.run(add)
    until(network.guest, f"[ $(grep -c 3333ff0000 /proc/net/dev_mcast) -ge {len(groups)} ]")
    try:
        assert delivered(network, *twice) >= N_FRAMES
        assert delivered(network, *others) < N_FRAMES
        network.guest.run("ifconfig eth0 allmulti")
        assert delivered(network, *others) >= N_FRAMES
    finally:
        network.guest.run(f"ifconfig eth0 -allmulti; {add.replace(' add ', ' del ')}")


@pytest.fixture
def vlans(network: Network) -> Iterator[None]:
    """An interface of one VLAN on each guest's NIC."""
    ends = ((network.guest, GUEST_VLAN), (network.peer, PEER_VLAN))
    for guest, address in ends:
        guest.run(
            f"modprobe 8021q; ip link add link eth0 name vlan type vlan id {VLAN};"
            f" ip addr add {address}/24 dev vlan; ip link set vlan up"
        )
    yield
    for guest, _ in ends:
        guest.run("ip link del vlan")


@pytest.mark.parametrize("offload", ["on", "off"])
def test_a_vlan_carries_tcp_with_the_tag_put_in_by_device_or_driver(
    network: Network, vlans: None, offload: str
) -> None:
    shown = network.guest.run(f"ethtool -K eth0 rxvlan {offload}; ethtool -k eth0")
    for direction in ("rx", "tx"):  # the driver has both or neither
        assert f"{direction}-vlan-offload: {offload}" in shown
    network.peer.run("iperf3 -s -D")
    try:
        until(network.guest, f"ping -c 1 -W 1 {PEER_VLAN}")
        ping(network.guest, PEER_VLAN, "-s 5000")
        for options in ("", "-R"):
            assert iperf(network.guest, PEER_VLAN, options).bits_per_s > 5e6
    finally:
        network.peer.run("killall iperf3")
        network.guest.run("ethtool -K eth0 rxvlan on")


def test_frames_of_other_vlans_are_filtered(network: Network, vlans: None) -> None:
    assert delivered(network, *[frame(MAC, VLAN)] * N_FRAMES) >= N_FRAMES
    assert delivered(network, *[frame(MAC, VLAN + 1)] * N_FRAMES) < N_FRAMES


# ---- comings and goings --------------------------------------------------------------------------


def test_the_guest_sees_its_cable_pulled_out_and_plugged_in(network: Network) -> None:
    carrier = "[ $(cat /sys/class/net/eth1/carrier) = {} ]"
    network.guest.run("ip link set eth1 up")
    until(network.guest, carrier.format(1))
    for inserted in (False, True, False, True):
        network.cable.plug(inserted)
        until(network.guest, carrier.format(int(inserted)), 5)
    said = network.guest.run("dmesg | grep 'eth1.* NIC Link is'").splitlines()
    assert [line.split("Link is ")[1].split()[0] for line in said] == [
        "Up",
        "Down",
        "Up",
        "Down",
        "Up",
    ]
    assert "NO-CARRIER" not in network.guest.run("ip link show eth0")


def test_the_driver_goes_and_comes_again_20_times(network: Network) -> None:
    # The other NIC is left alone: a probe takes a second.
    device = network.guest.run("readlink -f /sys/class/net/eth1/device").strip()
    network.guest.run(f"echo none >{device}/driver_override")
    network.guest.run(
        "for i in $(seq 20); do rmmod e1000 && modprobe e1000 && ip link show eth0 || exit 1; done",
        timeout_s=300,
    )
    configure(network.guest)
    ping(network.guest, PEER)
    assert complaints(network.guest) == []


def test_a_guest_reboots_and_is_back_on_the_network(network: Network) -> None:
    for restart in (network.guest.reboot, network.guest.reset):
        restart()
        configure(network.guest)
        ping(network.guest, PEER)
        assert complaints(network.guest) == []


def test_vnic_ends_cleanly_under_running_guests(network: Network) -> None:
    assert network.vnic.stop() == 0
    log = network.vnic.log()
    assert "Traceback" not in log
    assert "ERROR" not in log
