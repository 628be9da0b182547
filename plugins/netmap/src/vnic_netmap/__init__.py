"""netmap and VALE as backends."""

from vnic_netmap.netmap import Netmap
from vnic_netmap.vale import Vale

__all__ = ["Netmap", "Vale"]
