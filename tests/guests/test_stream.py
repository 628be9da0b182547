"""Linux guests joined by a socket with another QEMU's own NICs, by each of its forms."""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs
import pytest
from guests.vnic_run import VnicRun
from kit.guest import Guest, VfioUserNic, VhostUserNic
from kit.netns import Netns
from kit.traffic import until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from kit.debian import Recipe

pytestmark = [pytest.mark.guests, pytest.mark.root]

FILE_MB = 2
"""UDP loses what a slow receiver has no room for, so TCP takes its time."""


@attrs.frozen(kw_only=True)
class Cable:
    """A socket with a NIC of vnic's at one end, and one of QEMU's own at the other.

    The texts may have ``{folder}`` in them.
    """

    frontend: str
    backend: str
    options: str
    """As TOML."""
    model: str
    """QEMU's model of its own NIC."""
    netdev: str

    @property
    def number(self) -> int:
        """Part of all its addresses."""
        return 1 + list(CABLES.values()).index(self)

    def mac(self, end: int) -> str:
        """Return the address of vnic's NIC, end 1, or of QEMU's, end 2."""
        return f"52:54:00:00:{end:02x}:{self.number:02x}"

    def ip(self, end: int) -> str:
        """Return the IP address of that NIC."""
        return f"10.0.{self.number}.{end}"


@attrs.frozen
class QemusNic:
    """QEMU's own NIC on a socket of QEMU's own."""

    cable: Cable
    folder: Path
    fds = ()

    def arguments(self, qemu: Recipe) -> list[str]:
        """Return the netdev and the device."""
        cable, name = self.cable, f"net{self.cable.number}"
        netdev = f"{cable.netdev.format(folder=self.folder)},id={name}"
        device = f"{cable.model},netdev={name},mac={cable.mac(2)},romfile="
        return ["-netdev", netdev, "-device", device]


CABLES = {
    "stream, UNIX, QEMU listens": Cable(
        frontend="virtio-net",
        backend="stream:{folder}/q.sock",
        options='reconnect = "0.1..1"',
        model="e1000",
        netdev="stream,server=on,addr.type=unix,addr.path={folder}/q.sock",
    ),
    "stream, UNIX, vnic listens": Cable(
        frontend="e1000",
        backend="stream:{folder}/v.sock",
        options="listen = true",
        model="virtio-net-pci",
        netdev="stream,server=off,reconnect-ms=100,addr.type=unix,addr.path={folder}/v.sock",
    ),
    "stream, TCP, QEMU listens": Cable(
        frontend="e1000",
        backend="stream:127.0.0.1:5001",
        options='reconnect = "0.1..1"',
        model="e1000",
        netdev="stream,server=on,addr.type=inet,addr.host=127.0.0.1,addr.port=5001",
    ),
    "stream, TCP, vnic listens": Cable(
        frontend="virtio-net",
        backend="stream:127.0.0.1:5002",
        options="listen = true",
        model="virtio-net-pci",
        netdev="stream,server=off,reconnect-ms=100,addr.type=inet,addr.host=127.0.0.1,addr.port=5002",
    ),
    "dgram, UNIX": Cable(
        frontend="virtio-net",
        backend="dgram:{folder}/vd.sock",
        options='peer = "{folder}/qd.sock"',
        model="e1000",
        netdev="dgram,local.type=unix,local.path={folder}/qd.sock"
        ",remote.type=unix,remote.path={folder}/vd.sock",
    ),
    "dgram, UDP": Cable(
        frontend="e1000",
        backend="dgram:127.0.0.1:5003",
        options='peer = "127.0.0.1:5004"',
        model="virtio-net-pci",
        netdev="dgram,local.type=inet,local.host=127.0.0.1,local.port=5004"
        ",remote.type=inet,remote.host=127.0.0.1,remote.port=5003",
    ),
}
SERVERS = {"virtio-net": "vhost-user", "e1000": "vfio-user"}

NIC = """
[[nic]]
name = "nic{cable.number}"
frontend = "{cable.frontend}"
backend = "{cable.backend}"
{cable.options}
{server} = "{{folder}}/nic{cable.number}.sock"
"""
E1000S_MAC = 'mac = "{mac}"'


@attrs.define
class Joined:
    """A guest with vnic's NICs, and one with QEMU's own; cables between them."""

    netns: Netns
    vnic: VnicRun
    folder: Path
    guest: Guest
    peer: Guest

    def ping(self, *frontends: str) -> None:
        """Return once each cable of these carries frames."""
        for cable in CABLES.values():
            if cable.frontend in frontends:
                until(self.guest, f"ping -c 1 -W 1 {cable.ip(2)}")


def write_toml(folder: Path) -> Path:
    """Describe vnic's NICs; those over vhost-user have their MAC from the VMM."""
    text = ""
    for cable in CABLES.values():
        text += NIC.format(cable=cable, server=SERVERS[cable.frontend])
        if cable.frontend == "e1000":
            text += E1000S_MAC.format(mac=cable.mac(1)) + "\n"
    toml = folder / "nics.toml"
    toml.write_text(text.format(folder=folder))
    return toml


def boot(folder: Path) -> Guest:
    nics: list[VhostUserNic | VfioUserNic] = []
    for cable in CABLES.values():
        path, name = folder / f"nic{cable.number}.sock", f"nic{cable.number}"
        if cable.frontend == "e1000":
            nics.append(VfioUserNic(path=path, id=name))
        else:
            nics.append(VhostUserNic(path=path, mac=cable.mac(1), id=name))
    return Guest(nics, name="vnic's")


def boot_peer(netns: Netns, folder: Path) -> Guest:
    # QEMU's sockets belong to the namespace of the thread that starts it.
    nics = [QemusNic(cable, folder) for cable in CABLES.values()]
    return netns.call(Guest, nics, name="QEMU's")


def configure(guest: Guest, end: int) -> None:
    """Give each NIC its IP address.  Which one is which, its MAC says."""
    for cable in CABLES.values():
        guest.run(
            f"nic=$(basename $(dirname $(grep -l {cable.mac(end)} /sys/class/net/*/address)))\n"
            f"ip addr add {cable.ip(end)}/24 dev $nic; ip link set $nic up"
        )


@pytest.fixture(scope="module")
def joined(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Joined]:
    folder = tmp_path_factory.mktemp("joined")
    with Netns() as netns, VnicRun(netns, write_toml(folder)) as vnic:
        guest, peer = boot(folder), boot_peer(netns, folder)
        both = Joined(netns, vnic, folder, guest, peer)
        try:
            for end, each in enumerate((guest, peer), 1):
                each.wait_ready()
                configure(each, end)
            yield both
        finally:
            both.guest.close()
            both.peer.close()


@pytest.fixture(scope="module")
def files(joined: Joined) -> dict[Guest, str]:
    """Random bytes in each guest: their sums."""
    make = f"dd if=/dev/urandom of=/tmp/sent bs=1M count={FILE_MB} 2>&1; sha256sum </tmp/sent"
    return {guest: guest.run(make).splitlines()[-1] + "\n" for guest in (joined.guest, joined.peer)}


@pytest.mark.parametrize("name", CABLES)
def test_guests_ping_each_other(joined: Joined, name: str) -> None:
    cable = CABLES[name]
    until(joined.guest, f"ping -c 1 -W 1 {cable.ip(2)}")
    for size in (1, 1472, 5000):
        assert " 0% packet loss" in joined.guest.run(f"ping -c 3 -i 0.1 -s {size} {cable.ip(2)}")
    assert " 0% packet loss" in joined.peer.run(f"ping -c 3 -i 0.1 {cable.ip(1)}")


@pytest.mark.parametrize("name", CABLES)
def test_tcp_arrives_as_it_was_sent_each_way(
    joined: Joined, files: dict[Guest, str], name: str
) -> None:
    cable = CABLES[name]
    for source, target, end in ((joined.guest, joined.peer, 2), (joined.peer, joined.guest, 1)):
        # nc ends when the other end closes, so it reads from a pipe that nobody closes.
        arriving = target.start("mkfifo never; nc -l -p 5000 <>never | sha256sum")
        target.run("until netstat -lnt | grep -q :5000; do usleep 50000; done")
        source.run(f"nc {cable.ip(end)} 5000 </tmp/sent", timeout_s=120)
        assert arriving.wait(60) == files[source]


def test_another_qemu_takes_the_place_of_one_that_has_ended(joined: Joined) -> None:
    joined.peer.close()
    joined.peer = boot_peer(joined.netns, joined.folder)
    joined.peer.wait_ready()
    configure(joined.peer, 2)
    joined.ping(*SERVERS)


def test_traffic_resumes_after_vnic_was_killed_and_started_again(joined: Joined) -> None:
    joined.vnic.kill()
    joined.vnic.restart()
    joined.ping("virtio-net")  # over vfio-user a guest's NIC ends with its server
    log = joined.vnic.log()
    assert "Traceback" not in log
    assert "none can have" not in log  # a length that is no frame's
