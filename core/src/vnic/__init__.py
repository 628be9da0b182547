"""Virtual NICs for any program: frontends (the NIC that a guest sees) on backends (the network).

    nic = vnic.open("virtio-net,vale0:1", host)

``host`` gives it memory and takes its interrupts (`vnic.hookspecs.Host`).  What a plugin author
implements is in `vnic.hookspecs` too.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from vnic.errors import BackendError, ConfigError, GuestError, PeerError, VnicError
from vnic.features import Features
from vnic.hookspecs import hookimpl

if TYPE_CHECKING:
    from vnic.hookspecs import Host
    from vnic.nic import Nic

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
    "open",
]


def open(spec: str, host: Host) -> Nic:  # noqa: A001 - read as vnic.open
    """Build the NIC that a text such as ``virtio-net,vale0:1,mtu=9000`` describes.

    It lives on the host's loop until its ``close()``.

    Raises: ConfigError or BackendError, with nothing left open.
    """
    from vnic.nic import open_spec

    return open_spec(spec, host)


def get_include() -> str:
    """Return the folder of ``vnic.h`` and ``vnic_abi.pxd``, for those who build kernels."""
    return str(Path(__file__).parent / "include")
