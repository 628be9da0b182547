"""One VMM on one socket: carries out what its connection asks."""

from __future__ import annotations

import logging
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Final

from vnic.features import Features, names
from vnic.hookspecs import ResetKind
from vnic.notifiers import Call, Kick
from vnic.session import SocketSession, close_all

from vnic_vhost_user import events
from vnic_vhost_user.connection import NEEDS_RESET, OFFERED, Connection
from vnic_vhost_user.messages import ProtocolFeatures

if TYPE_CHECKING:
    import socket
    from collections.abc import Sequence

    from vnic.hookspecs import Host, VhostFace
    from vnic.loop import Timer
    from vnic.nic import Nic

    from vnic_vhost_user.payloads import MemoryRegion

log: Final = logging.getLogger("vnic.vhost_user")

RESUME_S: Final = 0.02
"""How long queues rest after a change of memory, in case that another belongs to it.  A VMM sends
those within microseconds, and a driver notices nothing of this pause.
"""


class Session(SocketSession):
    """A VMM that is connected, and drives a vhost face."""

    READS_PER_TURN: ClassVar = 64
    """A message takes two: nothing is read across its end, so that descriptors keep to theirs."""

    connection: Connection

    def __init__(self, sock: socket.socket, nic: Nic, host: Host, *, config: bool) -> None:
        assert nic.vhost is not None
        self._face: VhostFace = nic.vhost
        n_queues = self._face.n_queues
        offered = OFFERED | ProtocolFeatures.CONFIG if config else OFFERED
        super().__init__(sock, nic, host, Connection(n_queues, offered))
        self._kicks: dict[int, Kick] = {}
        self._calls = [Call(None, "") for _ in range(n_queues)]
        self._errs = [Call(None, "") for _ in range(n_queues)]
        self._resume: Timer | None = None

    def let_go(self) -> None:
        """Close kicks and calls."""
        if self._resume is not None:
            self._resume.cancel()
        for index in list(self._kicks):
            self._drop_kick(index)
        for call in (*self._calls, *self._errs):
            call.close()

    def interrupt(self, index: int) -> None:
        """Interrupt for a queue: vhost knows no other vectors, and no pin."""
        self._calls[index].signal()

    def failed(self, reason: str) -> None:
        """Tell the VMM that the device is broken; end, if the VMM itself has broken it."""
        self.connection.status |= NEEDS_RESET
        for err in self._errs:
            err.signal()
        super().failed(reason)

    # ---- what the connection asks ----------------------------------------------------------------

    def do(self, event: events.Event) -> Any:
        """Carry out an event of the connection."""
        match event:
            case events.Kick(index):
                self._face.kick(index)
            case events.SetCall(index, fd, running):
                call = Call(fd, "SET_VRING_CALL")
                self._calls[index].close()
                self._calls[index] = call
                if running:
                    call.signal()
            case events.SetErr(index, fd):
                err = Call(fd, "SET_VRING_ERR")
                self._errs[index].close()
                self._errs[index] = err
            case events.SetKick(index, fd):
                kick = Kick(self.loop, fd, partial(self._face.kick, index), "SET_VRING_KICK")
                self._drop_kick(index)
                self._kicks[index] = kick
            case events.DropKick(index):
                self._drop_kick(index)
            case events.StartQueue(index, queue):
                self._face.start_queue(index, queue, partial(self.interrupt, index))
                self.served = True
                log.info("%s: queue %d started, %d entries", self.nic.name, index, queue.size)
            case events.EnableQueue(index, enabled):
                self._face.enable_queue(index, enabled)
            case events.StopQueue(index):
                base = self._face.stop_queue(index)
                log.info("%s: queue %d stopped at %d", self.nic.name, index, base)
                return base
            case events.SetMemory(regions, fds):
                self.memory.clear()
                self._map(regions, fds)
            case events.AddMemory(region, fd):
                self._map((region,), (fd,))
            case events.RemoveMemory(region):
                self.memory.remove(region.guest_addr, region.size)
            case events.ResumeSoon():
                self._resume_soon()
            case events.GetFeatures():
                return int(self._face.get_features())
            case events.SetFeatures(features):
                self._face.set_features(Features(features))
                log.info("%s: the driver takes %s", self.nic.name, names(Features(features)))
            case events.SetMtu(mtu):
                self._note_mtu(mtu)
            case events.ReadConfig(offset, n):
                return self._face.read_config(offset, n)
            case events.WriteConfig(offset, data):
                self._face.write_config(offset, data)
            case events.Reset():
                self.nic.reset(ResetKind.DEVICE)
            case events.Discard(fds):
                close_all(fds)
        return None

    def _map(self, regions: Sequence[MemoryRegion], fds: Sequence[int]) -> None:
        try:
            for region, fd in zip(regions, fds, strict=True):
                self.memory.add(region.guest_addr, region.size, fd=fd, offset=region.mmap_offset)
        finally:
            close_all(fds)

    def _drop_kick(self, index: int) -> None:
        if kick := self._kicks.pop(index, None):
            kick.close()

    def _resume_soon(self) -> None:
        if self._resume is not None:
            self._resume.cancel()
        self._resume = self.loop.timer(RESUME_S, self._resume_now)

    def _resume_now(self) -> None:
        self._resume = None
        try:
            self.carry_out(self.connection.resume())
        except Exception as error:
            self.abort(error)

    def _note_mtu(self, mtu: int) -> None:
        own = getattr(self.nic.options, "mtu", None)
        if own is not None and own != mtu:
            log.warning(
                "%s: the VMM gives the guest an MTU of %d, mtu=%d was asked for; give both the "
                "same: host_mtu=%d on the VMM's side",
                self.nic.name,
                mtu,
                own,
                own,
            )
