"""Linux guests whose network is Debian's passt, with no privilege: a stream, and nothing else."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import TYPE_CHECKING

import attrs
import pytest
from guests.vnic_run import VnicRun
from kit.guest import Guest, VfioUserNic, VhostUserNic
from kit.netns import IperfResult, Netns
from kit.passt import GUEST, NOBODY, ROUTER, Passt
from kit.traffic import there_and_back, until

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Iterator

pytestmark = [pytest.mark.guests, pytest.mark.root]

MAC = "52:54:00:00:00:0a"
N_BYTES = 20_000_000
SERVERS = {"virtio-net": "vhost-user", "e1000": "vfio-user"}

NIC = """
[[nic]]
name = "nic0"
frontend = "{frontend}"
backend = "stream:{passt}"
reconnect = "0.1..1"
{server} = "{socket}"
"""

UDHCPC = """
cat >/tmp/bound <<'END'
#!/bin/sh
case $1 in bound)
    ip addr add $ip/$mask dev $interface
    ip link set $interface mtu ${mtu:-1500}
    ip route add default via $router
    echo "address $ip router $router"
esac
END
chmod +x /tmp/bound
ip link set eth0 up
udhcpc -i eth0 -n -q -f -O mtu -s /tmp/bound 2>&1
"""


@attrs.frozen
class OnPasst:
    """A guest behind passt, and the namespace that it reaches through it."""

    netns: Netns
    passt: Passt
    vnic: VnicRun
    guest: Guest
    said: str
    """By the guest's DHCP client."""


@pytest.fixture(scope="module", params=SERVERS)
def on_passt(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[OnPasst]:
    frontend: str = request.param
    folder = tmp_path_factory.mktemp("passt")
    toml, path = folder / "nic.toml", folder / "nic.sock"
    with Netns() as netns, Passt(netns) as passt:
        server = SERVERS[frontend]
        toml.write_text(NIC.format(frontend=frontend, passt=passt.path, server=server, socket=path))
        nic = VhostUserNic(path=path, mac=MAC) if server == "vhost-user" else VfioUserNic(path=path)
        with VnicRun(netns, toml, privileged=False) as vnic, Guest([nic]) as guest:
            said = guest.run(UDHCPC)
            yield OnPasst(netns, passt, vnic, guest, said)


def status(process: subprocess.Popen[str], key: str) -> list[str]:
    text = Path(f"/proc/{process.pid}/status").read_text()
    (values,) = (line.split()[1:] for line in text.splitlines() if line.startswith(f"{key}:"))
    return values


def test_the_guest_has_an_address_by_dhcp_though_neither_vnic_nor_passt_may_do_anything(
    on_passt: OnPasst,
) -> None:  # F2: a user stack is a process of its own, and may do nothing
    assert status(on_passt.passt.process, "Uid") == [str(NOBODY)] * 4
    assert int(*status(on_passt.vnic.process, "CapEff"), 16) == 0
    assert f"address {GUEST} router {ROUTER}" in on_passt.said


def test_bytes_come_back_from_the_guest_as_a_server_in_the_namespace_sent_them(
    on_passt: OnPasst,
) -> None:
    with on_passt.netns.call(socket.create_server, ("127.0.0.1", 0)) as listener:
        there_and_back(on_passt.guest, ROUTER, listener, N_BYTES)


def test_tcp_to_a_server_in_the_namespace_and_from_it(on_passt: OnPasst) -> None:
    with on_passt.netns.iperf3_server():
        for options in ("", "-R"):
            output = on_passt.guest.run(f"iperf3 -c {ROUTER} -t 1 --json {options}", timeout_s=60)
            assert IperfResult.parse(output).bits_per_s > 10e6


def test_the_guest_goes_on_after_passt_was_killed_and_started_again(on_passt: OnPasst) -> None:
    for _ in range(2):
        on_passt.passt.kill()
        on_passt.passt.start()
        with on_passt.netns.iperf3_server():
            until(on_passt.guest, f"iperf3 -c {ROUTER} -n 1M --connect-timeout 1000")
    log = on_passt.vnic.log()
    assert log.count("link down: stream:") == 2
    assert log.count("the peer has hung up; calling again until it answers") == 2
    assert "Traceback" not in log
