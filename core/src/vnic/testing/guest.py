"""The software guest: a driver and an IPv4 stack, which together are a machine on the network.

    guest = Guest(driver, "10.0.0.1", "left")
    ping = guest.ping("10.0.0.2", b"are you there?")
    while not ping.answered:
        loop.dispatch()
        guest.poll()

Its stack does nothing but ARP, ICMP echo and UDP; any frontend's driver will do.
"""

from __future__ import annotations

from collections import deque
from ipaddress import IPv4Address
from typing import TYPE_CHECKING, Final

from vnic.testing.stack import Datagram, Ping, Stack

if TYPE_CHECKING:
    from vnic.testing.driver import Driver

_BURST: Final = 256
"""Frames that one `Guest.poll` takes at the most."""
_EPHEMERAL_PORT: Final = 49152


class Guest:
    """One machine.  It does nothing until it is polled, in the loop's thread or with its lock."""

    def __init__(self, driver: Driver, ip: str, name: str) -> None:
        self.driver = driver
        self.name = name
        self.ip = IPv4Address(ip)
        self.stack = Stack(driver.mac, self.ip, driver.mtu)

    def poll(self) -> int:
        """Handle what has arrived, send what is to be sent; return how many frames arrived.

        What the driver has no room for is sent by a later poll.

        Raises: DriverError.
        """
        arrived = self.driver.recv(_BURST)
        for frame, header in arrived:
            self.stack.receive(frame, header)
        self._flush()
        return len(arrived)

    def ping(self, ip: str | IPv4Address, payload: bytes = b"") -> Ping:
        """Send an ICMP echo request; the result has the reply, once that was polled.

        Raises: ValueError, for a payload that the MTU can't carry; DriverError.
        """
        ping = self.stack.ping(IPv4Address(ip), payload)
        self._flush()
        return ping

    def udp_send(
        self, ip: str | IPv4Address, port: int, data: bytes, src_port: int = _EPHEMERAL_PORT
    ) -> None:
        """Send a UDP datagram.

        Raises: ValueError, for data that the MTU can't carry; DriverError.
        """
        self.stack.udp_send(IPv4Address(ip), port, data, src_port)
        self._flush()

    @property
    def datagrams(self) -> deque[Datagram]:
        """The datagrams received and not read yet, oldest first; reading is taking them out."""
        return self.stack.datagrams

    def _flush(self) -> None:
        outgoing = self.stack.outgoing
        if outgoing:
            for _ in range(self.driver.send(outgoing)):
                outgoing.popleft()
