"""Two Linux guests on the network, through virtio-net over vhost-user, vale and tap."""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs
import pytest
from guests.vnic_run import VnicRun
from kit.debian import QEMU_7, QEMU_11
from kit.guest import Guest, VhostUserNic
from kit.netns import IperfResult, Netns
from kit.traffic import until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = [pytest.mark.guests, pytest.mark.root]

MACS = {"a": "52:54:00:00:00:0a", "b": "52:54:00:00:00:0b"}
ADDRESSES = {"a": "10.0.0.1", "b": "10.0.0.2", "host": "10.0.0.254"}
IPERF_S = 2
OFFLOADS = ("tx", "rx", "sg", "tso", "gso", "gro")

NICS = """
[[nic]]
name = "{name}"
frontend = "virtio-net"
backend = "vale0:{name}"
mtu = 9000
vhost-user = "{folder}/{name}.sock"
"""

UPLINK = """
[[patch]]
between = ["vale0:up", "tap0"]
"""


@attrs.frozen
class Network:
    """Guests a and b and a tap in a namespace, on one switch."""

    vnic: VnicRun
    netns: Netns
    a: Guest
    b: Guest


def plug_in_tap(netns: Netns) -> None:
    netns.set_address("tap0", f"{ADDRESSES['host']}/24")
    netns.up("tap0", mtu=9000)


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Network]:
    folder = tmp_path_factory.mktemp("network")
    toml = folder / "network.toml"
    toml.write_text("".join(NICS.format(name=n, folder=folder) for n in MACS) + UPLINK)
    with Netns() as netns, VnicRun(netns, toml) as vnic:
        plug_in_tap(netns)
        a, b = (boot(folder, name) for name in MACS)
        with a, b:
            for name, guest in (("a", a), ("b", b)):
                guest.run(f"ip addr add {ADDRESSES[name]}/24 dev eth0; ip link set eth0 up")
            yield Network(vnic, netns, a, b)


def boot(folder: Path, name: str) -> Guest:
    nic = VhostUserNic(path=folder / f"{name}.sock", mac=MACS[name], options={"host_mtu": 9000})
    # One of each: what both ask of a server is what it must do.
    return Guest([nic], name=name, qemu=QEMU_11 if name == "a" else QEMU_7)


def until_ping(guest: Guest, address: str) -> None:
    until(guest, f"ping -c 1 -W 1 {address}")


def iperf(server: Guest, client: Guest, address: str, options: str = "") -> IperfResult:
    server.run("iperf3 -s -D -1; until netstat -lnt | grep -q :5201; do sleep 0.1; done")
    return IperfResult.parse(
        client.run(f"iperf3 -c {address} -t {IPERF_S} --json {options}", timeout_s=60)
    )


def test_guests_ping_each_other_and_the_host(network: Network) -> None:
    for guest, addresses in ((network.a, ("b", "host")), (network.b, ("a", "host"))):
        for name in addresses:
            output = guest.run(f"ping -c 5 -i 0.2 {ADDRESSES[name]}")
            assert " 0% packet loss" in output


def test_the_driver_gets_each_offload(network: Network) -> None:
    for guest in (network.a, network.b):
        features = guest.run("ethtool -k eth0")
        for feature in (
            "rx-checksumming",
            "tx-checksumming",
            "tcp-segmentation-offload",
            "tx-tcp6-segmentation",
        ):
            assert f"{feature}: on" in features, features


def test_tcp_between_the_guests(network: Network) -> None:
    for server, client, address in (
        (network.b, network.a, ADDRESSES["b"]),
        (network.a, network.b, ADDRESSES["a"]),
    ):
        result = iperf(server, client, address)
        assert result.bits_per_s > 10e6


def test_tcp_between_guest_and_host_through_tap(network: Network) -> None:
    with network.netns.iperf3_server():
        for options in ("", "-R"):
            output = network.a.run(
                f"iperf3 -c {ADDRESSES['host']} -t {IPERF_S} --json {options}", timeout_s=60
            )
            assert IperfResult.parse(output).bits_per_s > 10e6


@pytest.fixture(scope="module")
def files(network: Network) -> dict[Guest, str]:
    """100 MB of random bytes in each guest: their sums."""
    jobs = {
        guest: guest.start("dd if=/dev/urandom of=/tmp/sent bs=1M count=100; sha256sum </tmp/sent")
        for guest in (network.a, network.b)
    }
    return {guest: job.wait(120).splitlines()[-1] + "\n" for guest, job in jobs.items()}


@pytest.mark.parametrize("offloads", ["on", "off", "a only"])
def test_100_mb_arrive_as_they_were_sent_each_way(
    network: Network, files: dict[Guest, str], offloads: str
) -> None:
    for guest in (network.a, network.b):
        on = "on" if offloads == "on" or (offloads == "a only" and guest is network.a) else "off"
        guest.run(f"ethtool -K eth0 {' '.join(f'{name} {on}' for name in OFFLOADS)} 2>&1")
    try:
        # Both ways at once.  nc ends when the other end closes, so each receiver reads from a pipe
        # that nobody closes.
        pairs = ((network.a, network.b, "b"), (network.b, network.a, "a"))
        arriving = [
            target.start("mkfifo never; nc -l -p 5000 <>never | sha256sum")
            for _, target, _ in pairs
        ]
        sending = [
            source.start(f"sleep 0.5; nc {ADDRESSES[to]} 5000 </tmp/sent")
            for source, _, to in pairs
        ]
        for (source, _, _), sent, arrived in zip(pairs, sending, arriving, strict=True):
            sent.wait(120)
            assert arrived.wait(60) == files[source]
    finally:
        for guest in (network.a, network.b):
            guest.run(f"ethtool -K eth0 {' '.join(f'{name} on' for name in OFFLOADS)} 2>&1")


def test_mtu_9000_end_to_end(network: Network) -> None:
    for guest in (network.a, network.b):
        assert "mtu 9000" in guest.run("ip link show eth0")
    for address in (ADDRESSES["b"], ADDRESSES["host"]):
        # 8972 + 8 + 20 = 9000, and nobody may cut it.
        output = network.a.run(
            f"ping -c 3 -i 0.2 -s 8972 -M do {address} 2>&1 || ping -c 3 -s 8972 {address}"
        )
        assert " 0% packet loss" in output


def test_a_guest_reboots_and_is_back_on_the_network(network: Network) -> None:
    for restart in (network.b.reboot, network.b.reset):
        restart()
        network.b.run(f"ip addr add {ADDRESSES['b']}/24 dev eth0; ip link set eth0 up")
        until_ping(network.a, ADDRESSES["b"])
        until_ping(network.b, ADDRESSES["host"])


def test_traffic_resumes_after_vnic_was_killed_and_started_again(network: Network) -> None:
    until_ping(network.a, ADDRESSES["b"])
    for _ in range(2):
        network.vnic.kill()
        network.vnic.restart()
        plug_in_tap(network.netns)
        until_ping(network.a, ADDRESSES["b"])
        until_ping(network.b, ADDRESSES["a"])
        until_ping(network.b, ADDRESSES["host"])
    assert iperf(network.b, network.a, ADDRESSES["b"]).bits_per_s > 10e6


def test_vnic_ends_cleanly_under_running_guests(network: Network) -> None:
    assert network.vnic.stop() == 0
    assert "Traceback" not in network.vnic.log()
    assert network.netns.interfaces().keys() == {"lo"}
    network.vnic.restart()
    plug_in_tap(network.netns)
    until_ping(network.a, ADDRESSES["b"])
