"""Linux's virtio_net on a PCI function that vnic serves over vfio-user, all of it."""

from __future__ import annotations

import re
import socket
from typing import TYPE_CHECKING

import attrs
import pytest
from guests.vnic_run import VnicRun
from kit.cable import Cable
from kit.guest import Guest, VfioUserNic
from kit.netns import IperfResult, Netns
from kit.traffic import there_and_back, until
from vnic_virtio_net import Plugin as VirtioNet

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.guests, pytest.mark.root]

MAC = "52:54:00:0a:0b:0c"
MTU = 4242
GUEST, HOST = "10.0.0.1", "10.0.0.254"
IPERF_S = 2

NICS = f"""
[[nic]]
name = "a"
frontend = "virtio-net"
backend = "vale0:a"
mac = "{MAC}"
mtu = {MTU}
vfio-user = "{{folder}}/a.sock"

[[patch]]
between = ["vale0:up", "tap0"]
"""


@attrs.frozen
class Network:
    """A guest: eth0 on a switch with a tap in a namespace, eth1 on a cable."""

    vnic: VnicRun
    netns: Netns
    guest: Guest
    cable: Cable


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Network]:
    folder = tmp_path_factory.mktemp("network")
    toml = folder / "network.toml"
    toml.write_text(NICS.format(folder=folder))
    cable = Cable(folder / "cable.sock", VirtioNet, "virtio-net,cable")
    try:
        with Netns() as netns, VnicRun(netns, toml) as vnic:
            netns.set_address("tap0", f"{HOST}/24")
            netns.up("tap0", mtu=MTU)
            nics = [
                VfioUserNic(path=folder / "a.sock"),
                VfioUserNic(path=folder / "cable.sock", id="nic1"),
            ]
            with Guest(nics) as guest:
                configure(guest)
                yield Network(vnic, netns, guest, cable)
    finally:
        cable.close()


def configure(guest: Guest) -> None:
    guest.run(f"ip addr add {GUEST}/24 dev eth0; ip link set eth0 up; ip link set eth1 up")


def interrupts(guest: Guest) -> dict[str, int]:
    """Return the count of each of eth0's vectors, by what the driver calls it."""
    device = guest.run("basename $(readlink /sys/class/net/eth0/device)").strip()
    table = guest.run("cat /proc/interrupts")
    lines = re.findall(rf"^ *\d+: +(\d+) .*MSI.* {device}-(\S+)$", table, re.MULTILINE)
    return {name: int(count) for count, name in lines}


def test_linux_binds_its_driver_and_has_no_complaint(network: Network) -> None:
    assert "virtio_net" in network.guest.run("readlink -f /sys/class/net/eth0/device/driver")
    complaints = [
        line
        for line in network.guest.run("dmesg").splitlines()
        if "virtio" in line and re.search("warn|fail|error|bug", line, re.IGNORECASE)
    ]
    assert complaints == []


def test_mac_and_mtu_are_those_that_vnic_was_given(network: Network) -> None:
    shown = network.guest.run("ip link show eth0")
    assert MAC in shown
    assert f"mtu {MTU} " in shown


def test_frames_as_long_as_the_mtu_come_back(network: Network) -> None:
    until(network.guest, f"ping -c 1 -W 1 {HOST}")
    size = MTU - 28
    assert " 0% packet loss" in network.guest.run(f"ping -c 5 -i 0.2 -s {size} {HOST}")


def test_the_driver_gets_each_offload(network: Network) -> None:
    features = network.guest.run("ethtool -k eth0")
    for feature in ("tx-checksumming", "rx-checksumming", "tcp-segmentation-offload"):
        assert f"{feature}: on" in features, features


def test_tcp_both_ways_by_a_vector_per_queue(network: Network) -> None:
    before = interrupts(network.guest)
    assert before.keys() == {"config", "input.0", "output.0"}
    with network.netns.iperf3_server():
        for options in ("", "-R"):
            output = network.guest.run(
                f"iperf3 -c {HOST} -t {IPERF_S} --json {options}", timeout_s=60
            )
            assert IperfResult.parse(output).bits_per_s > 10e6
    after = interrupts(network.guest)
    for queue in ("input.0", "output.0"):
        assert after[queue] > before[queue]
    assert after["config"] == before["config"]


def test_udp_both_ways_with_no_datagram_lost(network: Network) -> None:
    # Where the guest is late, they wait in its socket.
    network.guest.run("echo 8000000 >/proc/sys/net/core/rmem_default")
    with network.netns.iperf3_server():
        for options in ("", "-R"):
            command = f"iperf3 -c {HOST} -u -b 10M -t {IPERF_S} --json {options}"
            result = IperfResult.parse(network.guest.run(command, timeout_s=60))
            assert result.bits_per_s > 5e6
            assert result.lost_packets == 0


@pytest.mark.parametrize("tso", ["on", "off"])
def test_bytes_come_back_as_they_were_sent(network: Network, tso: str) -> None:
    network.guest.run(f"ethtool -K eth0 tso {tso}")
    try:
        with network.netns.call(socket.create_server, (HOST, 0)) as listener:
            there_and_back(network.guest, HOST, listener, 20_000_000)
    finally:
        network.guest.run("ethtool -K eth0 tso on")


def test_the_guest_sees_its_cable_pulled_out_and_plugged_in(network: Network) -> None:
    until(network.guest, "[ $(cat /sys/class/net/eth1/carrier) = 1 ]")
    for inserted in (False, True, False, True):
        network.cable.plug(inserted)
        until(network.guest, f"[ $(cat /sys/class/net/eth1/carrier) = {int(inserted)} ]", 5)
    assert "NO-CARRIER" not in network.guest.run("ip link show eth0")


def test_the_driver_goes_and_comes_again(network: Network) -> None:
    for _ in range(5):
        network.guest.run("rmmod virtio_net; modprobe virtio_net", timeout_s=60)
    configure(network.guest)
    until(network.guest, f"ping -c 1 -W 1 {HOST}")


def test_a_guest_reboots_and_is_back_on_the_network(network: Network) -> None:
    for restart in (network.guest.reboot, network.guest.reset):
        restart()
        configure(network.guest)
        until(network.guest, f"ping -c 1 -W 1 {HOST}")
        assert MAC in network.guest.run("ip link show eth0")


def test_vnic_ends_cleanly_under_a_running_guest(network: Network) -> None:
    assert network.vnic.stop() == 0
    assert "Traceback" not in network.vnic.log()
    assert network.guest.run("echo still here") == "still here\n"
