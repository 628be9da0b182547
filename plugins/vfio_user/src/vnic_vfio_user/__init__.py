"""Serves vnic's NICs to a VMM as PCI devices, over vfio-user."""

from __future__ import annotations

from vnic_vfio_user.server import Plugin, ServerOptions

__all__ = ["Plugin", "ServerOptions"]
