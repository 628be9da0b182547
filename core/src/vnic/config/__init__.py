"""Text to attrs objects: a NIC's spec, a file of NICs, and the options of plugins."""

from __future__ import annotations

from vnic.config.nic import NicConfig, ServerConfig, parse_nic
from vnic.config.options import (
    boolean,
    choice,
    default_mac,
    did_you_mean,
    integer,
    mac,
    mtu,
    path,
    structure,
    text,
)
from vnic.config.toml import RunConfig, load_toml

__all__ = [
    "NicConfig",
    "RunConfig",
    "ServerConfig",
    "boolean",
    "choice",
    "default_mac",
    "did_you_mean",
    "integer",
    "load_toml",
    "mac",
    "mtu",
    "parse_nic",
    "path",
    "structure",
    "text",
]
