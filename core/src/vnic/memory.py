"""Guest memory: regions from descriptors or buffers, guest-physical addresses checked.

The code is in ``memory_kernel``, beside the table that kernels translate with.
"""

from vnic.memory_kernel import Memory, Region

__all__ = ["Memory", "Region"]
