"""A descriptor that user space has, and what it is bound to: rings of one port."""

from __future__ import annotations

import errno
import mmap
import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import attrs

from vnic_netmap.abi import NrFlag
from vnic_netmap.testing.readiness import UNBOUND, Signal, State

if TYPE_CHECKING:
    from vnic_netmap.testing.memory import Memory
    from vnic_netmap.testing.ports import Port
    from vnic_netmap.testing.rings import Kring


@attrs.define(kw_only=True)
class Binding:
    """What REGISTER gave: the port, which of its rings, and a netmap_if that says so."""

    port: Port
    tx: Sequence[Kring]
    rx: Sequence[Kring]
    flags: NrFlag
    memory: Memory
    netmap_if: int
    """Its index in the memory's pool."""
    extra_bufs: Sequence[int] = ()

    @property
    def flushes_by_poll(self) -> bool:
        """Whether any poll sends what is in the transmit rings."""
        return NrFlag.NO_TX_POLL not in self.flags


class Descriptor:
    """One open of ``/dev/netmap``: ``struct netmap_priv_d``."""

    def __init__(self) -> None:
        self._signal = Signal()
        self.fd = self._signal.fd
        self.binding: Binding | None = None
        self.n_holders = 1
        """The descriptor itself, and its mappings: each holds a duplicate."""
        self._bad = {True: False, False: False}  # by is_tx: head or cur could not be

    def close_fd(self) -> None:
        """User space closes it; mappings may still hold it."""
        self._signal.close_fd()

    def close(self) -> None:
        """End; nobody holds it any more."""
        self._signal.close()

    def sync(self, *, is_tx: bool) -> None:
        """Do what NIOCTXSYNC and NIOCRXSYNC do, of which a bad head or cur is no error.

        Raises: OSError: ENXIO, bound to nothing; EIO, the interface is gone.
        """
        if self.binding is None:
            raise OSError(errno.ENXIO, os.strerror(errno.ENXIO))
        port = self.binding.port
        if port.gone:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        rings = self.binding.tx if is_tx else self.binding.rx
        results = [port.sync(ring) for ring in rings]
        self._bad[is_tx] = not all(results)
        self.show()

    def poll(self, wants_rx: bool, wants_tx: bool, *, lazy: bool = False) -> State:
        """Do what poll does: sync, and say what there is.

        ``lazy``: as FreeBSD's, which doesn't sync rings that have something already.
        """
        binding = self.binding
        if binding is None or binding.port.gone:
            return UNBOUND
        readable = writable = False
        syncs_tx = wants_tx or binding.flushes_by_poll
        if lazy and wants_tx and any(not ring.is_used_up for ring in binding.tx):
            writable, wants_tx, syncs_tx = True, False, binding.flushes_by_poll
        if lazy and wants_rx and not any(ring.wants_sync for ring in binding.rx):
            readable, wants_rx = True, False
        self._bad = {True: False, False: False}
        if syncs_tx:
            for ring in binding.tx:
                if (wants_tx and not writable) or not ring.is_flushed:
                    self._bad[True] |= not binding.port.sync(ring)
                    writable |= wants_tx and ring.rcur != ring.rtail
        if wants_rx:
            for ring in binding.rx:
                self._bad[False] |= not binding.port.sync(ring)
                readable |= ring.rcur != ring.rtail
        error = any(self._bad.values())
        self.show()
        return State(readable=readable, writable=writable, error=error)

    def show(self) -> None:
        """Have the descriptor be what poll would say of it."""
        binding = self.binding
        if binding is None or binding.port.gone:
            self._signal.show(UNBOUND)
            return
        self._signal.show(
            State(
                readable=any(ring.is_ready() for ring in binding.rx),
                writable=any(ring.is_ready() for ring in binding.tx),
                error=any(self._bad.values()),
            )
        )

    def notify(self, *, is_tx: bool) -> None:
        """A ring moved on: wake who waits, those for an edge too."""
        self.show()
        self._signal.wake(readable=not is_tx, writable=is_tx)


class Mapping(mmap.mmap):
    """A port's memory as user space has it; `close` lets go of the port."""

    on_close: Callable[[], None] | None = None

    def close(self) -> None:
        """Unmap.

        Raises: BufferError, as long as there are views of it.
        """
        super().close()
        on_close, self.on_close = self.on_close, None
        if on_close is not None:
            on_close()

    def __del__(self) -> None:
        self.close()
