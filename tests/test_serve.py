"""``vnic serve`` as a process: servers, frontends and backends meet by the registry alone."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from vnic_vfio_user.messages import Command
from vnic_vfio_user.payloads import Empty
from vnic_vfio_user.testing import Vmm

VNIC = Path(sys.executable).with_name("vnic")


def until_there(path: Path, process: subprocess.Popen[str]) -> None:
    deadline_s = time.monotonic() + 20
    while not path.exists():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline_s, "no socket"
        time.sleep(0.01)


@pytest.mark.parametrize(
    ("spec", "ids"),
    [("e1000,vale0:1", "8680 0e10"), ("e1000,vale0:1,model=82545em", "8680 0f10")],
)
def test_a_pci_frontend_is_served_over_vfio_user(tmp_path: Path, spec: str, ids: str) -> None:
    path = tmp_path / "vfio.sock"
    process = subprocess.Popen(
        [VNIC, "serve", spec, "--vfio-user", str(path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        until_there(path, process)
        for _ in range(2):
            with Vmm.connect(path) as vmm:
                vmm.start(1 << 20)
                assert vmm.read_config(0, 4) == bytes.fromhex(ids)
                assert vmm.region_info(0).size == 0x20000
                vmm.ask(Command.DEVICE_RESET, Empty())
    finally:
        process.send_signal(signal.SIGTERM)
        output = process.communicate(timeout=20)[0]
    assert process.returncode == 0, output
    assert f"serving e1000 on vale0:1 at {path}" in output
    assert not path.exists()
