"""The frontends: how each is made, and driven."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import attrs
import vnic_e1000
import vnic_virtio_net
from vnic.config import parse_nic
from vnic.features import NONE, OFFLOADS, Features
from vnic.link import Link
from vnic.nic import Nic
from vnic.testing import Driver, SoftwareHost
from vnic.testing.bench import GUEST_MAC
from vnic_e1000.testing import CAPABLE
from vnic_e1000.testing import Driver as E1000Driver
from vnic_virtio_net.testing import DRIVER_FEATURES, Shape
from vnic_virtio_net.testing import Driver as VirtioNetDriver

MTU = 65521  # with the Ethernet header, the longest frame there is

RING = 512
"""Entries of each ring, unless a step wants fewer: two bursts."""


@attrs.frozen(kw_only=True)
class Frontend:
    """A frontend, and the driver of a guest that has it."""

    plugin: Any
    options: Any
    drive: Callable[[Nic, SoftwareHost, bool, int], Driver]
    """Start a driver: with offloads or without, its rings so long."""
    pads_to: int = 0
    """What shorter frames are made up to, with zeroes, in both directions."""
    takes: int = 65535
    """The longest frame that it gives to a guest."""

    def nic(self, link: Link) -> Nic:
        """Return a NIC on a link."""
        return Nic(parse_nic(f"{link.name},{link.name}"), self.plugin(), self.options, link)


def _virtio_net(nic: Nic, host: SoftwareHost, offload: bool, ring: int) -> Driver:
    """Buffers are mergeable, short, and reached through tables of their own."""
    features = DRIVER_FEATURES | (OFFLOADS if offload else NONE)
    rx, tx = Shape(ring, indirect=True), Shape(ring)
    return VirtioNetDriver(nic, host, features=features, rx=rx, tx=tx)


def _virtio_net_pci(nic: Nic, host: SoftwareHost, offload: bool, ring: int) -> Driver:
    """Buffers are long, and hold a frame each; headers are apart."""
    features = Features.VERSION_1 | Features.MAC | Features.MTU | Features.STATUS
    features |= OFFLOADS if offload else NONE
    rx = Shape(2 * ring, cuts=(12, MTU + 68))
    tx = Shape(2 * ring, cuts=(12, MTU + 68))
    return VirtioNetDriver(nic, host, features=features, rx=rx, tx=tx, face="pci")


_RCTL_PROMISCUOUS = 1 << 3 | 1 << 4
"""So that it shows its guest all that it is given; what it filters, its own tests look at."""


def _e1000(nic: Nic, host: SoftwareHost, offload: bool, ring: int) -> Driver:
    return E1000Driver(
        nic,
        host,
        features=CAPABLE if offload else NONE,
        mtu=MTU,
        rx_size=ring,
        tx_size=ring,
        rctl=_RCTL_PROMISCUOUS,
    )


FRONTENDS = {
    "virtio-net (vhost)": Frontend(
        plugin=vnic_virtio_net.Plugin,
        options=vnic_virtio_net.Plugin.Options(mac=GUEST_MAC, mtu=MTU),
        drive=_virtio_net,
    ),
    "virtio-net (PCI)": Frontend(
        plugin=vnic_virtio_net.Plugin,
        options=vnic_virtio_net.Plugin.Options(mac=GUEST_MAC, mtu=MTU),
        drive=_virtio_net_pci,
    ),
    "e1000": Frontend(
        plugin=vnic_e1000.Plugin,
        options=vnic_e1000.Plugin.Options(mac=GUEST_MAC),
        drive=_e1000,
        pads_to=60,
        takes=16380,  # with the FCS, 16384; Spec: "Receive Control Register", LPE
    ),
}
