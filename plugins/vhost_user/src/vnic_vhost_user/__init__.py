"""Serves vnic's NICs to a VMM over vhost-user."""

from __future__ import annotations

from vnic_vhost_user.server import Plugin, ServerOptions

__all__ = ["Plugin", "ServerOptions"]
