"""The examples run, and do what they say."""

from __future__ import annotations

import json
import os
import re
import struct
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"

PCAP_HEADER = struct.Struct("=IHHiIII")
PACKET_HEADER = struct.Struct("=IIII")


def run(*command: str | Path, path: Path | None = None) -> str:
    environment = dict(os.environ) | ({"PYTHONPATH": str(path)} if path else {})
    done = subprocess.run(
        [sys.executable, *command],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def frames_of(pcap: Path) -> list[tuple[int, bytes]]:
    """The frames in a capture, each with the length that it had."""
    data = pcap.read_bytes()
    magic, major, minor, *_, link_type = PCAP_HEADER.unpack_from(data)
    assert (magic, major, minor, link_type) == (0xA1B2C3D4, 2, 4, 1)
    frames, at = [], PCAP_HEADER.size
    while at < len(data):
        _, _, kept, length = PACKET_HEADER.unpack_from(data, at)
        at += PACKET_HEADER.size
        frames.append((length, data[at : at + kept]))
        at += kept
    return frames


def test_a_program_hosts_two_nics_in_asyncio_and_they_reach_each_other() -> None:
    lines = run(EXAMPLES / "hosting.py").splitlines()
    assert len(lines) == 3
    assert all(re.fullmatch(r"10\.0\.0\.2 answered after \d+ µs", line) for line in lines)


def test_a_backend_of_forty_lines_writes_what_it_is_sent(tmp_path: Path) -> None:
    assert run(EXAMPLES / "backend.py", tmp_path / "out.pcap") == "2 frames\n"
    frames = frames_of(tmp_path / "out.pcap")
    assert [(length, frame[14:].rstrip()) for length, frame in frames] == [
        (60, b"first"),
        (60, b"second"),
    ]


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A folder where the example is installed, as the text at its top says."""
    source = (EXAMPLES / "backend.py").read_text()
    toml = re.search(r"(?:^    \S.*\n|^\n(?=    ))+", source, re.MULTILINE)
    assert toml
    project = tomllib.loads(toml[0].replace("\n    ", "\n").strip())["project"]
    info = tmp_path / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n"
    )
    lines = [
        line
        for group, points in project["entry-points"].items()
        for line in (f"[{group}]", *(f"{name} = {value}" for name, value in points.items()))
    ]
    (info / "entry_points.txt").write_text("\n".join(lines) + "\n")
    (tmp_path / "backend.py").write_text(source)
    return tmp_path


def test_the_entry_point_that_it_names_is_all_that_installing_it_takes(site: Path) -> None:
    rows = json.loads(run("-c", "from vnic.cli import main; main()", "list", "--json", path=site))
    assert ("pcap", "vnic-pcap") in [(row["prefix"], row["distribution"]) for row in rows]


SEND_ONE = """
import sys
from vnic.loop import Loop
from vnic.nic import open_spec
from vnic.registry import Registry
from vnic.testing import SoftwareHost

loop = Loop()
host = SoftwareHost(loop)
nic = open_spec(f"virtio-net,pcap:{sys.argv[1]},snaplen=64", host)
driver = Registry().load("drivers", "virtio-net").cls(nic, host)
driver.send([bytes(range(200))])
loop.dispatch()
nic.close()
"""


def test_a_guest_on_it_has_its_frames_captured_as_far_as_was_asked(site: Path) -> None:
    run("-c", SEND_ONE, site / "out.pcap", path=site)
    assert frames_of(site / "out.pcap") == [(200, bytes(range(64)))]
