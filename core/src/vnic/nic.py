"""A NIC: one frontend, its link, and the host that it lives in."""

from __future__ import annotations

import logging
from typing import Any

from vnic.config import NicConfig, parse_nic, structure
from vnic.hookspecs import FrontendHooks, Host, ResetKind, VhostFace
from vnic.link import Link
from vnic.loop import Loop
from vnic.pci import Function
from vnic.registry import Registry, resolve_hooks

log = logging.getLogger("vnic.nic")


class Nic:
    """One virtual NIC, from `open_nic` to `close`.

    A host drives it through a face, `vhost` or `pci`: None where the frontend has none.  All calls
    come on its loop, or with the loop's lock.
    """

    def __init__(self, config: NicConfig, frontend: Any, options: Any, link: Link) -> None:
        self.config = config
        self.name = config.name
        self.frontend = frontend
        self.options = options
        """The frontend's, structured."""
        self.link = link
        self.closed = False
        self._attached = False
        self._hooks = resolve_hooks(frontend, FrontendHooks, config.frontend)

    @property
    def vhost(self) -> VhostFace | None:
        """The frontend as a vhost device, if it is one."""
        face = getattr(self.frontend, "vhost", None)
        return face if isinstance(face, VhostFace) else None

    @property
    def pci(self) -> Function | None:
        """The frontend as a PCI function, if it is one; there from `attach` on."""
        face = getattr(self.frontend, "pci", None)
        return face if isinstance(face, Function) else None

    def attach(self, host: Host) -> None:
        """Give the frontend its host, and join it to its link."""
        hooks, link = self._hooks, self.link
        self._attached = True
        hooks.init(self.options, link, host)
        link.on_readable = hooks.receive
        link.on_changed = hooks.link_changed
        link.on_writable = lambda: host.schedule(hooks.transmit)

    def reset(self, kind: ResetKind) -> None:
        """Bring the frontend back to the state of a device just powered on."""
        self._hooks.reset(kind)

    def counters(self) -> dict[str, int]:
        """Return what became of frames, by name: the frontend's, the link's and the backend's."""
        counts = self.link.counters()
        own = getattr(self.frontend, "counters", None)
        if own is not None:
            for name, n in own().items():
                counts[name] = counts.get(name, 0) + n
        return counts

    def close(self) -> None:
        """Take the NIC apart: frontend, filters, backend.  Twice is allowed."""
        if self.closed:
            return
        self.closed = True
        if self._attached:
            try:
                self._hooks.cleanup()
            except Exception:
                log.exception("%s: the frontend's cleanup failed", self.name)
        self.link.on_readable = self.link.on_writable = _nothing
        self.link.on_changed = _ignore
        self.link.close()


def open_nic(
    config: NicConfig, host: Host, loop: Loop | None = None, registry: Registry | None = None
) -> Nic:
    """Find the plugins that a config names, and build the NIC that it describes.

    Raises: ConfigError or BackendError, with nothing left open.
    """
    registry = registry or Registry()
    frontend = registry.load("frontends", config.frontend)
    backend = registry.load("backends", config.backend, config.type)
    filters = [registry.load("filters", name) for name in config.filters]
    classes = [frontend.cls, backend.cls, *(plugin.cls for plugin in filters)]
    options = structure(
        config.options, config.where, *(getattr(cls, "Options", None) for cls in classes)
    )
    link = Link(config.name, loop or host.loop)
    nic = Nic(config, frontend.cls(), options[0], link)
    try:
        names = [*config.filters, config.backend]
        plugins = [*filters, backend]
        link.open(
            [
                (plugin.cls(), name, own)
                for plugin, name, own in zip(
                    plugins, names, [*options[2:], options[1]], strict=True
                )
            ]
        )
        nic.attach(host)
    except BaseException:
        nic.close()
        raise
    return nic


def open_spec(spec: str, host: Host, registry: Registry | None = None) -> Nic:
    """Build the NIC that a text such as ``virtio-net,vale0:1,mtu=9000`` describes.

    Raises: ConfigError or BackendError, with nothing left open.
    """
    return open_nic(parse_nic(spec), host, registry=registry)


def _nothing() -> None:
    return


def _ignore(up: bool) -> None:
    return
