"""netmap and VALE as backends."""

from vnic_netmap.vale import Vale

__all__ = ["Vale"]
