"""The vfio-user server in front of QEMU, with a PCI function that is no NIC."""

from __future__ import annotations

import json
import threading
import time
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from kit.guest import Guest, GuestLostError
from vnic.loop import Loop
from vnic.pci import Bar, BarKind, Function, Identity, MsiX, PowerManagement
from vnic_vfio_user import Plugin, ServerOptions

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.guests

IDENTITY = Identity(vendor=0x1234, device=0x5678, revision=3, class_code=0xFF0000, subsystem=9)
DEVICE = "/sys/bus/pci/devices/0000:00:05.0"


class Storage:
    """A function that keeps what is written to it, and counts how often it is reset."""

    def __init__(self, host: Any) -> None:
        self.name = "storage"
        self.options = SimpleNamespace()
        self.resets: list[str] = []
        self.data = bytearray(0x20000)
        bars = [
            Bar(index=0, size=0x20000, registers=self),
            Bar(index=2, size=64, kind=BarKind.IO, registers=self),
            Bar(index=4, size=0x4000, registers=self, wide=True, prefetchable=True, width=8),
        ]
        msix = MsiX(vectors=3, table_bar=4, table_offset=0x2000, pba_bar=4, pba_offset=0x3000)
        self.pci = Function(host, IDENTITY, bars, [PowerManagement(), msix])

    def read(self, offset: int, n: int) -> int:
        return int.from_bytes(self.data[offset : offset + n], "little")

    def write(self, offset: int, n: int, value: int) -> None:
        self.data[offset : offset + n] = value.to_bytes(n, "little")

    def reset(self, kind: Any) -> None:
        self.resets.append(kind.value)
        self.data = bytearray(len(self.data))
        self.pci.reset()


class Served:
    """The function and its server, on a loop in a thread."""

    def __init__(self, path: Path) -> None:
        self.loop = Loop()
        self.server = Plugin(ServerOptions(path=str(path)), self.loop)
        self.nic: Any = Storage(self.server)
        self.server.serve(self.nic)
        self.arguments = [
            "-device",
            json.dumps(
                {
                    "driver": "vfio-user-pci",
                    "socket": {"type": "unix", "path": str(path)},
                    "addr": "5",
                }
            ),
        ]
        self._thread = threading.Thread(target=self.loop.run, daemon=True)
        self._thread.start()

    def until_gone(self) -> None:
        """Wait until the server has seen the VMM's end."""
        deadline_s = time.monotonic() + 10
        while self.nic.resets[-1:] != ["session"]:
            assert time.monotonic() < deadline_s, "the session goes on"
            time.sleep(0.01)

    def close(self) -> None:
        self.loop.stop()
        self._thread.join()
        self.server.close()
        self.loop.close()


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    served = Served(tmp_path / "vfio.sock")
    yield served
    served.close()


def test_linux_finds_the_function_with_its_ids_and_bars(served: Served) -> None:
    with Guest(arguments=served.arguments) as guest:
        ids = guest.run(f"cd {DEVICE}; cat vendor device revision subsystem_device class")
        assert ids.split() == ["0x1234", "0x5678", "0x03", "0x0009", "0xff0000"]
        lines = guest.run(f"cat {DEVICE}/resource").splitlines()
        bars = [tuple(int(word, 16) for word in line.split()) for line in lines]
        sizes = [end - start + 1 if end else 0 for start, end, _ in bars[:6]]
        assert sizes == [0x20000, 0, 64, 0, 0x4000, 0]
        assert [flags & 0x300 for _, _, flags in bars[:6]] == [0x200, 0, 0x100, 0, 0x200, 0]
        assert bars[4][2] & 0x102000 == 0x102000, "64 bits wide, prefetchable"
        guest.run(f"echo 1 >{DEVICE}/enable; test -e {DEVICE}/reset")
        memory, wide = bars[0][0] + 0x100, bars[4][0] + 0x10
        guest.run(f"devmem {memory} 32 0xdeadbeef; devmem {wide} 64 0x1122334455667788")
        assert guest.run(f"devmem {memory + 2} 16; devmem {wide} 64").split() == [
            "0xDEAD",
            "0x1122334455667788",
        ]
        assert served.nic.data[0x100:0x104] == bytes.fromhex("efbeadde")
        assert served.nic.resets == ["device"]


def test_each_start_of_the_guest_resets_the_function_and_each_vmm_is_served(served: Served) -> None:
    with Guest(arguments=served.arguments) as guest:
        served.nic.data[0] = 1
        guest.reboot()
        assert set(served.nic.resets[1:]) == {"device"}
        assert served.nic.data[0] == 0
        assert guest.run(f"cat {DEVICE}/vendor").split() == ["0x1234"]
    served.until_gone()
    with Guest(arguments=served.arguments) as guest:
        assert guest.run(f"cat {DEVICE}/vendor").split() == ["0x1234"]


def test_qemu_ends_in_order_where_guest_memory_is_not_shared(
    served: Served, caplog: pytest.LogCaptureFixture
) -> None:
    private = ["-object", "memory-backend-ram,id=private,size=512M", "-M", "memory-backend=private"]
    guest = Guest(arguments=[*private, *served.arguments])
    with pytest.raises(GuestLostError, match="VFIO_USER_DEVICE_GET_INFO failed"):
        guest.wait_ready()
    guest.close()
    assert "share=on -machine memory-backend=mem" in caplog.text
    served.until_gone()


def test_memory_that_qemu_maps_for_itself_is_named_when_the_driver_starts(
    served: Served, caplog: pytest.LogCaptureFixture
) -> None:
    private = [
        "-object",
        "memory-backend-memfd,id=private,size=512M,share=off",
        "-M",
        "memory-backend=private",
    ]
    with Guest(arguments=[*private, *served.arguments]) as guest:
        assert "share=on" not in caplog.text
        # What a driver does first: memory, and the bus.
        config = f"{DEVICE}/config"
        guest.run(f"printf '\\006' | dd of={config} bs=1 seek=4 count=1 conv=notrunc 2>/dev/null")
        assert "share=on" in caplog.text
