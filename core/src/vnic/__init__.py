"""Virtual NICs for any program: frontends (the NIC that a guest sees) on backends (the network).

    import vnic

    nic = vnic.open("virtio-net,vale0:1", host)

`vnic.hookspecs` is what a plugin author implements.
"""

from __future__ import annotations

from pathlib import Path

from vnic.errors import BackendError, ConfigError, GuestError, PeerError, VnicError
from vnic.features import Features
from vnic.hookspecs import hookimpl

__version__ = "0.1.0"

__all__ = [
    "BackendError",
    "ConfigError",
    "Features",
    "GuestError",
    "PeerError",
    "VnicError",
    "get_include",
    "hookimpl",
]


def get_include() -> str:
    """Return the folder of ``vnic.h`` and ``vnic_abi.pxd``, for those who build kernels."""
    return str(Path(__file__).parent / "include")
