"""Ethernet over sockets, as QEMU, passt and gvisor-tap-vsock speak it."""

from vnic_stream.dgram import Dgram
from vnic_stream.stream import Stream

__all__ = ["Dgram", "Stream"]
