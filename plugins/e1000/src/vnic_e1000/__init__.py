"""Intel's 8254x (e1000) NIC as a frontend of vnic."""

from vnic_e1000.frontend import Plugin

__all__ = ["Plugin"]
