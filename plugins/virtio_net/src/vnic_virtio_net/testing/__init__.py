"""A guest for the virtio-net device: its driver, and one that keeps to no rule."""

from vnic_virtio_net.testing.driver import DRIVER_FEATURES, Driver, Shape
from vnic_virtio_net.testing.hostile import HostileGuest, Ring
from vnic_virtio_net.testing.pci import PciTransport, VirtioPciDevice

__all__ = [
    "DRIVER_FEATURES",
    "Driver",
    "HostileGuest",
    "PciTransport",
    "Ring",
    "Shape",
    "VirtioPciDevice",
]
