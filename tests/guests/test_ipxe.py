"""iPXE's own driver on the e1000: an address by DHCP, a ping, a boot file over TCP, through tap."""

from __future__ import annotations

import contextlib
import http.server
import json
import socket
import struct
import threading
from typing import TYPE_CHECKING, Final

import pytest
from guests.vnic_run import VnicRun
from kit.guest import VfioUserNic
from kit.ipxe import run_ipxe
from kit.netns import Netns

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

pytestmark = [pytest.mark.guests, pytest.mark.root]

MAC: Final = "52:54:00:00:00:0c"
GUEST, HOST = "10.0.0.77", "10.0.0.254"
SAID: Final = "came over the network"
BOOT_FILE: Final = b"#!ipxe\n# " + 64 * 1024 * b"." + f"\necho {SAID}\n".encode()

TOML = """
[[nic]]
frontend = "e1000"
backend = "tap0"
mac = "{mac}"
vfio-user = "{folder}/nic.sock"
"""

OFFERS: Final = {1: 2, 3: 5}
"""DHCPDISCOVER to DHCPOFFER, DHCPREQUEST to DHCPACK.  Spec: RFC 2132, "DHCP Message Type"."""


@contextlib.contextmanager
def dhcp_server(netns: Netns) -> Iterator[None]:
    """Offer everybody the guest's address.  Spec: RFC 2131, "The Client-Server Protocol"."""
    with netns.call(socket.socket, socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"tap0")
        server.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        server.bind(("", 67))
        server.settimeout(0.1)
        ended = threading.Event()
        thread = threading.Thread(target=_offer, args=(server, ended))
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()


def _offer(server: socket.socket, ended: threading.Event) -> None:
    while not ended.is_set():
        try:
            request = server.recv(2048)
        except TimeoutError:
            continue
        at = request.find(b"\x35\x01", 240)
        kind = OFFERS.get(request[at + 2])
        if kind is None:
            continue
        reply = struct.pack("!BBBB", 2, 1, 6, 0) + request[4:12] + bytes(4)
        reply += socket.inet_aton(GUEST) + socket.inet_aton(HOST) + bytes(4) + request[28:44]
        reply += bytes(192) + b"\x63\x82\x53\x63"
        for number, value in (
            (53, bytes([kind])),
            (54, socket.inet_aton(HOST)),
            (51, struct.pack("!I", 3600)),
            (1, socket.inet_aton("255.255.255.0")),
        ):
            reply += bytes([number, len(value)]) + value
        server.sendto(reply + b"\xff", ("255.255.255.255", 68))


class BootFile(http.server.BaseHTTPRequestHandler):
    """Answers every request with the boot file."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(BOOT_FILE)))
        self.end_headers()
        self.wfile.write(BOOT_FILE)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - its name above
        pass


@contextlib.contextmanager
def http_server(netns: Netns) -> Iterator[None]:
    server = netns.call(http.server.HTTPServer, (HOST, 80), BootFile)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def boot(folder: Path, script: Sequence[str], **options: str) -> str:
    """Run a script on an e1000 with these options; return what iPXE says."""
    toml = folder / "nic.toml"
    toml.write_text(
        TOML.format(mac=MAC, folder=folder)
        + "".join(f"{key} = {json.dumps(value)}\n" for key, value in options.items())
    )
    with Netns() as netns, VnicRun(netns, toml):
        netns.set_address("tap0", f"{HOST}/24")
        with dhcp_server(netns), http_server(netns):
            return run_ipxe([VfioUserNic(path=folder / "nic.sock")], script)


@pytest.mark.parametrize("model", ["82540em", "82545em"])
def test_ipxe_gets_an_address_and_an_answer(tmp_path: Path, model: str) -> None:
    script = ["ifstat net0", "dhcp net0", "echo address ${net0/ip}", f"ping -c 3 {HOST}"]
    said = boot(tmp_path, script, model=model)
    assert f"net0: {MAC} using {model}" in said
    assert f"address {GUEST}" in said
    assert said.count(f"bytes from {HOST}") == 3


def test_ipxe_gets_a_boot_file(tmp_path: Path) -> None:
    script = ["dhcp net0", f"chain --autofree http://{HOST}/boot.ipxe"]
    assert SAID in boot(tmp_path, script)  # of frames cut by the kernel: it posts eight buffers
