"""Entry points to classes, and classes to functions that answer hooks."""

from __future__ import annotations

from vnic.registry.hooks import Hooks, match_hooks, resolve_hooks
from vnic.registry.plugins import GROUPS, Entry, Plugin, Registry

__all__ = ["GROUPS", "Entry", "Hooks", "Plugin", "Registry", "match_hooks", "resolve_hooks"]
