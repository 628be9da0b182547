"""virtio-net: the paravirtual NIC, on any backend."""

from vnic_virtio_net.frontend import Plugin

__all__ = ["Plugin"]
