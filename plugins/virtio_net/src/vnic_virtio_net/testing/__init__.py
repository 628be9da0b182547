"""A guest for the virtio-net device: its driver, and one that keeps to no rule."""

from vnic_virtio_net.testing.driver import DRIVER_FEATURES, Driver, Shape
from vnic_virtio_net.testing.hostile import HostileGuest, Ring

__all__ = ["DRIVER_FEATURES", "Driver", "HostileGuest", "Ring", "Shape"]
