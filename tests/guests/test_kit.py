"""The kit itself, with QEMU's own devices and DPDK's: no vnic in sight."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from kit import debian
from kit.debian import QEMU_7, QEMU_11, Recipe
from kit.guest import Guest, GuestCommandError, TapNic, VhostUserNic
from kit.missing import Missing
from kit.netns import IperfResult, Netns
from kit.testpmd import Testpmd, TestpmdError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


def until(condition: Callable[[], bool], timeout_s: float = 30.0) -> None:
    """Ask again and again; for conditions that take a while to answer."""
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline_s, "not in time"


# -- Debian's archive --------------------------------------------------------------------------

DEB822 = """\
# A comment
Types: deb
URIs: https://other.example/debian
Suites: bookworm
Components: main
Signed-By: /usr/share/keyrings/other.gpg

Types: deb
URIs: https://off.example/debian
Suites: bookworm
Components: main
Enabled: no

Types: deb deb-src
# another
URIs: https://mirror.example/debian
Suites: bookworm
 bookworm-updates
Components: main contrib
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg
"""
ONE_LINE = """\
# deb https://off.example/debian bookworm main
deb-src https://source.example/debian bookworm main
deb [arch=amd64 signed-by=/usr/share/keyrings/other.gpg] https://other.example bookworm main
deb https://mirror.example/debian bookworm main # ours
"""


@pytest.mark.parametrize(
    ("path", "text"), [("sources.list", ONE_LINE), ("sources.list.d/debian.sources", DEB822)]
)
def test_the_archive_is_found_in_either_style_of_sources(
    tmp_path: Path, path: str, text: str
) -> None:
    (tmp_path / "apt/sources.list.d").mkdir(parents=True)
    (tmp_path / "os-release").write_text("ID=debian\nVERSION_CODENAME=bookworm\n")
    (tmp_path / "apt" / path).write_text(text)
    assert debian.system_source(tmp_path).uri == "https://mirror.example/debian"


def test_a_system_that_is_not_debian_is_named_with_a_remedy(tmp_path: Path) -> None:
    (tmp_path / "os-release").write_text("ID=fedora\n")
    with pytest.raises(Missing, match="this system is not Debian; run on Debian 12"):
        debian.system_source(tmp_path)


def test_an_interrupted_fetch_leaves_nothing_half_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VNIC_CACHE", str(tmp_path))

    def fetch(name: str, interrupted: bool) -> None:
        with debian.making("thing") as folder:
            assert folder is not None
            (folder / name).touch()
            if interrupted:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetch("half", interrupted=True)
    assert [path.name for path in tmp_path.iterdir()] == ["lock"]
    fetch("whole", interrupted=False)
    assert [path.name for path in (tmp_path / "thing").iterdir()] == ["whole"]


def test_what_another_process_has_made_meanwhile_is_not_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VNIC_CACHE", str(tmp_path))
    (tmp_path / "thing").mkdir()
    with debian.making("thing") as folder:
        assert folder is None


# -- guests ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def guest() -> Iterator[Guest]:
    with Guest() as guest:
        yield guest


@pytest.mark.guests
@pytest.mark.parametrize("qemu", [QEMU_11, QEMU_7], ids=lambda qemu: str(qemu.name))
def test_a_guest_boots_in_less_than_15_s_of_cpu_time_and_answers_a_command(qemu: Recipe) -> None:
    with Guest(qemu=qemu) as guest:
        assert guest.run("echo hello; uname -m") == "hello\nx86_64\n"
        fields = Path(f"/proc/{guest.pid}/stat").read_text().split()
        assert (int(fields[13]) + int(fields[14])) / os.sysconf("SC_CLK_TCK") < 15


@pytest.mark.guests
def test_a_failing_command_raises_with_its_status_and_output(guest: Guest) -> None:
    with pytest.raises(GuestCommandError) as failure:
        guest.run("echo some; ls /nonexistent; exit 3")
    assert failure.value.status == 3
    assert failure.value.output.startswith("some\nls: /nonexistent: No such file")


@pytest.mark.guests
def test_output_that_looks_like_the_agents_own_words_is_output(guest: Guest) -> None:
    words = "vnic-kit answer 1 0 5\nvnic-kit ready"
    assert guest.run(f"printf '{words}'") == words


@pytest.mark.guests
def test_a_command_of_many_lines_and_kilobytes_arrives_whole(guest: Guest) -> None:
    text = "".join(f"{n} $ ' \" \\ é\n" for n in range(700))
    assert guest.run(f"cat <<'END'\n{text}END\n") == text


@pytest.mark.guests
def test_a_command_that_does_not_end_is_ended_with_all_that_it_started(guest: Guest) -> None:
    with pytest.raises(GuestCommandError) as failure:
        guest.run("echo begun; sleep 1234", timeout_s=1)
    assert failure.value.output.startswith("begun\n")
    assert "sleep 1234" not in guest.run("ps")


@pytest.mark.guests
def test_a_job_runs_in_the_background_while_other_commands_run(guest: Guest) -> None:
    job = guest.start("echo one; read line </tmp/gate; echo $line")
    guest.run("mkfifo /tmp/gate; [ -p /tmp/gate ]")
    job.stop()
    job = guest.start("echo one; read line </tmp/gate; echo $line; exit 4")
    guest.run("echo two >/tmp/gate")
    with pytest.raises(GuestCommandError) as failure:
        job.wait()
    assert (failure.value.status, failure.value.output) == (4, "one\ntwo\n")


@pytest.mark.guests
def test_a_guest_that_restarts_answers_again() -> None:
    with Guest() as guest:
        for restart in (guest.reboot, guest.reset):
            guest.run("touch /tmp/before")
            restart()
            assert guest.run("ls /tmp/before 2>/dev/null || echo gone") == "gone\n"


@pytest.mark.guests
def test_a_closed_guest_leaves_no_process_and_no_file() -> None:
    before = set(Path("/tmp").glob("vnic-guest-*"))
    with Guest(files={"root/hello": b"#!/bin/sh\necho hello\n"}) as guest:
        pid = guest.pid
        assert guest.run("/root/hello") == "hello\n"
    assert not Path(f"/proc/{pid}").exists()
    assert set(Path("/tmp").glob("vnic-guest-*")) <= before


# -- namespaces --------------------------------------------------------------------------------


@pytest.mark.root
def test_a_namespace_has_interfaces_of_its_own_and_leaves_nothing_behind() -> None:
    with Netns() as one, Netns() as other:
        one.add_veth("left", "right")
        one.set_address("left", "10.0.0.1/24")
        one.up("left", mtu=9000)
        assert set(one.interfaces()) == {"lo", "left", "right"}
        assert set(other.interfaces()) == {"lo"}
        assert "left" not in Path("/proc/net/dev").read_text()
        assert "left" in one.run(["cat", "/proc/thread-self/net/dev"])
        sleeper = one.popen(["sleep", "1000"])
        path = Path(one.path)
        assert path.exists()
    assert sleeper.returncode is not None
    assert not path.exists()


@pytest.mark.root
def test_an_interface_moves_between_namespaces() -> None:
    with Netns() as one, Netns() as other:
        one.add_veth("left", "right")
        one.call(other.adopt, "right")
        assert set(one.interfaces()) == {"lo", "left"}
        assert set(other.interfaces()) == {"lo", "right"}


@pytest.mark.guests
@pytest.mark.root
@pytest.mark.parametrize("model", ["virtio-net-pci", "e1000"])
def test_a_guest_reaches_a_namespace_through_a_tap(model: str) -> None:
    with Netns() as network:
        fd = network.open_tap("tap0")
        try:
            network.set_address("tap0", "10.0.0.1/24")
            network.up("tap0")
            with Guest([TapNic(fd=fd, mac="52:54:00:00:00:01", model=model)]) as guest:
                guest.run("ip addr add 10.0.0.2/24 dev eth0; ip link set eth0 up")
                guest.run("until [ $(cat /sys/class/net/eth0/carrier) = 1 ]; do sleep 0.1; done")
                assert "3 packets received" in guest.run("ping -c 3 10.0.0.1")
                with network.iperf3_server():
                    report = guest.run("iperf3 -c 10.0.0.1 -t 1 --json")
                assert IperfResult.parse(report).n_bytes > 1_000_000
                job = guest.start("iperf3 -s --one-off")
                guest.run("until netstat -lnt | grep -q :5201; do sleep 0.1; done")
                assert network.iperf3("10.0.0.2", seconds=1).n_bytes > 1_000_000
                job.wait()
        finally:
            os.close(fd)


# -- testpmd -----------------------------------------------------------------------------------


@pytest.mark.dpdk
def test_testpmd_starts_with_two_null_ports_counts_and_quits() -> None:
    with Testpmd(["net_null0", "net_null1"]) as testpmd:
        testpmd.command("start")
        until(lambda: all(port.rx_packets and port.tx_packets for port in testpmd.stats()))
        assert "Driver name: net_null" in testpmd.command("show port info 0")
        assert "Forward statistics for port 1" in testpmd.command("stop")
        with pytest.raises(TestpmdError, match="does not take `nonsense`"):
            testpmd.command("nonsense")
        pid = testpmd.pid
        assert "Bye..." in testpmd.close()
    assert not Path(f"/proc/{pid}").exists()


@pytest.mark.dpdk
def test_testpmd_that_cannot_start_says_why() -> None:
    with pytest.raises(TestpmdError, match="net_nothing0"):
        Testpmd(["net_nothing0"])


@pytest.mark.dpdk
def test_testpmd_carries_frames_from_virtio_user_to_vhost_and_back(tmp_path: Path) -> None:
    path = tmp_path / "a.sock"
    with (
        Testpmd([f"net_vhost0,iface={path}"], options=["--auto-start"]) as device,
        Testpmd([f"virtio_user0,path={path},queues=1,queue_size=256"]) as driver,
    ):
        driver.command("start tx_first 1")
        until(lambda: driver.stats()[0].rx_packets >= 1000)
        assert device.stats()[0].tx_packets >= 1000


@pytest.mark.guests
@pytest.mark.dpdk
def test_two_guests_talk_over_vhost_user_sockets(tmp_path: Path) -> None:
    paths = [tmp_path / "a.sock", tmp_path / "b.sock"]
    # DPDK passes frames on as they are, so neither guest may leave a checksum to the other.
    options = dict.fromkeys(("csum", "guest_csum", "gso", "host_ufo", "guest_ufo"), "off")
    nics = [
        VhostUserNic(path=path, mac=f"52:54:00:00:00:0{n}", options=options)
        for n, path in enumerate(paths, 1)
    ]
    vdevs = [f"net_vhost{n},iface={path}" for n, path in enumerate(paths)]
    with (
        Testpmd(vdevs, options=["--auto-start"]),
        Guest([nics[0]], name="a") as a,
        Guest([nics[1]], name="b", qemu=QEMU_7) as b,
    ):
        for guest, address in ((a, "10.0.0.1/24"), (b, "10.0.0.2/24")):
            guest.run(f"ip addr add {address} dev eth0; ip link set eth0 up")
        assert "3 packets received" in a.run("ping -c 3 10.0.0.2")
        job = b.start("iperf3 -s --one-off")
        b.run("until netstat -lnt | grep -q :5201; do sleep 0.1; done")
        report = a.run("iperf3 -c 10.0.0.2 -t 1 --json")
        assert IperfResult.parse(report).n_bytes > 1_000_000
        job.wait()
