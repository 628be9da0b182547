"""A backend of your own: ``pcap:FILE`` writes what the guest sends, for Wireshark to read.

A distribution of yours needs no more than this file, and a pyproject.toml that says so:

    [project]
    name = "vnic-pcap"
    version = "1.0"
    dependencies = ["vnic"]

    [project.entry-points."vnic.backends"]
    pcap = "backend:Pcap"

Then ``vnic serve virtio-net,pcap:out.pcap,snaplen=96 --vhost-user /tmp/nic.sock`` finds it.
Run by itself, this file writes two frames to the file that it is given.
"""

from __future__ import annotations

import struct
import sys
import time
from pathlib import Path

import attrs
from vnic import BackendError, ConfigError, config, hookimpl
from vnic.burst import Burst, Room
from vnic.link import Joint, Link
from vnic.loop import Loop

ETHERNET = 1  # LINKTYPE_ETHERNET


@attrs.frozen(kw_only=True)
class PcapOptions:
    snaplen: int = attrs.field(default=65535, converter=config.integer(64, 65535))
    """How many bytes of each frame are kept."""


class Pcap:
    Options = PcapOptions

    @hookimpl
    def init(self, name: str, options: PcapOptions, link: Joint) -> None:
        path = name.partition(":")[2]
        if not path:
            raise ConfigError(f'{name}: no file to write to; write "pcap:FILE"')
        try:
            self._file = Path(path).open("wb")  # noqa: SIM115 - open until cleanup
        except OSError as error:
            raise BackendError(f"{path}: cannot be written: {error.strerror}") from error
        self._snaplen = options.snaplen
        self._file.write(struct.pack("=IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, self._snaplen, ETHERNET))

    @hookimpl
    def cleanup(self) -> None:
        if hasattr(self, "_file"):  # not after an init that failed
            self._file.close()

    @hookimpl
    def send(self, burst: Burst) -> int:
        seconds, ns = divmod(time.time_ns(), 10**9)
        for frame in burst:
            kept = frame[: self._snaplen]
            self._file.write(struct.pack("=IIII", seconds, ns // 1000, len(kept), len(frame)))
            self._file.write(kept)
        return len(burst)

    @hookimpl
    def recv(self, room: Room) -> int:
        return 0


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("backend.py: no file to write to; give one: python backend.py out.pcap")
    link = Link("example", Loop())
    link.open([(Pcap(), f"pcap:{sys.argv[1]}", PcapOptions())])
    head = bytes.fromhex("ffffffffffff 020000000001 88b5")
    print(link.send(Burst.of([head + b"first".ljust(46), head + b"second".ljust(46)])), "frames")
    link.close()
