"""One VMM on one socket: carries out what its connection asks, until either side is gone.

It owns the socket and every descriptor that came through it.
"""

from __future__ import annotations

import logging
import os
import select
import socket
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from vnic.errors import PeerError, VnicError
from vnic.features import Features, names
from vnic.hookspecs import ResetKind
from vnic.notifiers import Call, Kick

from vnic_vhost_user import events
from vnic_vhost_user.connection import NEEDS_RESET, OFFERED, Connection
from vnic_vhost_user.messages import MAX_FDS, ProtocolFeatures

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from vnic.hookspecs import VhostFace
    from vnic.loop import Loop, Timer
    from vnic.memory import Memory
    from vnic.nic import Nic

    from vnic_vhost_user.connection import Steps
    from vnic_vhost_user.messages import MemoryRegion

log: Final = logging.getLogger("vnic.vhost_user")

READS_PER_TURN: Final = 64
"""A VMM that never stops sending gets no more of the loop than this at a time."""

REPLIES_MAX: Final = 16 * 1024
"""Bytes that wait because the VMM doesn't read: some 800 answers; no VMM leaves two unread."""

RESUME_S: Final = 0.02
"""How long queues rest after a change of memory, in case that another belongs to it.  A VMM sends
those within microseconds, and a driver notices nothing of this pause.
"""

TRUNCATED_S: Final = 0.5
"""How often is looked whether guest memory was cut short.  What was there is zero until then."""


class Session:
    """A VMM that is connected.  ``ended`` is called once, when it no longer is."""

    def __init__(
        self,
        sock: socket.socket,
        nic: Nic,
        memory: Memory,
        loop: Loop,
        *,
        config: bool,
        ended: Callable[[Session], None],
    ) -> None:
        assert nic.vhost is not None
        self.served = False
        """A queue was started: this VMM speaks the protocol."""
        self._socket = sock
        self._nic = nic
        self._face: VhostFace = nic.vhost
        self._memory = memory
        self._loop = loop
        self._ended = ended
        offered = OFFERED | ProtocolFeatures.CONFIG if config else OFFERED
        self._connection = Connection(self._face.n_queues, offered)
        self._kicks: dict[int, Kick] = {}
        self._calls = [Call(None, "") for _ in range(self._face.n_queues)]
        self._errs = [Call(None, "") for _ in range(self._face.n_queues)]
        self._out = b""
        self._writing = False
        self._open = True
        sock.setblocking(False)
        self._watch = loop.watch(sock.fileno(), self._ready)
        self._resume: Timer | None = None
        self._truncated: Timer | None = None
        self._watch_memory()

    @property
    def gone(self) -> bool:
        """Whether the VMM has closed its end, though there may be messages left to read."""
        poll = select.poll()
        poll.register(self._socket, select.POLLRDHUP)
        return bool(poll.poll(0))

    def end(self, reason: str, level: int = logging.INFO) -> None:
        """Forget the VMM: its queues, its memory, its descriptors.  Twice is allowed."""
        if not self._open:
            return
        self._open = False
        log.log(level, "%s: session ended: %s", self._nic.name, reason)
        for timer in (self._resume, self._truncated):
            if timer is not None:
                timer.cancel()
        self._watch.close()
        self._nic.reset(ResetKind.SESSION)
        for index in list(self._kicks):
            self._drop_kick(index)
        for call in (*self._calls, *self._errs):
            call.close()
        self._memory.clear()
        _close_all(self._connection.close())
        self._socket.close()
        self._ended(self)

    def interrupt(self, index: int) -> None:
        """Interrupt for a queue."""
        self._calls[index].signal()

    def failed(self, reason: str) -> None:
        """Tell the VMM that the device is broken; end, if the VMM itself has broken it."""
        self._connection.status |= NEEDS_RESET
        for err in self._errs:
            err.signal()
        if self._memory.truncated:  # not from within the burst that met it
            self._loop.schedule(self._check_memory)

    # ---- the socket ------------------------------------------------------------------------------

    def _ready(self, mask: int) -> None:
        try:
            if mask & select.EPOLLOUT:
                self._send()
            for _ in range(READS_PER_TURN):
                if not (self._open and self._receive()):
                    break
        except VnicError as error:
            self.end(str(error), logging.ERROR)
        except ConnectionError:
            self.end("the VMM closed the connection, and left an answer unread")
        except OSError as error:
            self.end(f"its socket failed: {error.strerror}", logging.ERROR)
        except Exception:
            log.exception("%s: the device failed on what its VMM sent", self._nic.name)
            self.end("the device failed", logging.ERROR)

    def _receive(self) -> bool:
        """Read a header or the rest of a message; return whether there may be more."""
        wants = self._connection.wants
        flags = socket.MSG_DONTWAIT | socket.MSG_CMSG_CLOEXEC
        try:
            data, fds, got, _ = socket.recv_fds(self._socket, wants, MAX_FDS, flags)
        except BlockingIOError:
            return False
        if got & socket.MSG_CTRUNC:
            _close_all(fds)
            raise PeerError(
                f"descriptors were lost on the way, after {len(fds)} of them: this process may "
                f"have no room for more (ulimit -n)"
            )
        if not data:
            _close_all(fds)
            cut = ", in the middle of a message" if self._connection.mid_message else ""
            self.end(f"the VMM closed the connection{cut}")
            return False
        self._carry_out(self._connection.receive(data, fds))
        if self._open:
            self._out += self._connection.data_to_send()
            self._send()
        return self._open

    def _send(self) -> None:
        while self._out:
            try:
                n = self._socket.send(self._out, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
            except BlockingIOError:
                break
            self._out = self._out[n:]
        if len(self._out) > REPLIES_MAX:
            raise PeerError(f"the VMM leaves {len(self._out)} bytes of replies unread")
        if self._writing != bool(self._out):
            self._writing = bool(self._out)
            self._watch.set(read=True, write=self._writing)

    # ---- what the connection asks ----------------------------------------------------------------

    def _carry_out(self, steps: Steps) -> None:
        answer: object = None
        while True:
            try:
                event = steps.send(answer)
            except StopIteration:
                return
            answer = self._do(event)

    def _do(self, event: events.Event) -> Any:
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
                kick = Kick(self._loop, fd, partial(self._face.kick, index), "SET_VRING_KICK")
                self._drop_kick(index)
                self._kicks[index] = kick
            case events.DropKick(index):
                self._drop_kick(index)
            case events.StartQueue(index, queue):
                self._face.start_queue(index, queue, partial(self.interrupt, index))
                self.served = True
                log.info("%s: queue %d started, %d entries", self._nic.name, index, queue.size)
            case events.EnableQueue(index, enabled):
                self._face.enable_queue(index, enabled)
            case events.StopQueue(index):
                base = self._face.stop_queue(index)
                log.info("%s: queue %d stopped at %d", self._nic.name, index, base)
                return base
            case events.SetMemory(regions, fds):
                self._memory.clear()
                self._map(regions, fds)
            case events.AddMemory(region, fd):
                self._map((region,), (fd,))
            case events.RemoveMemory(region):
                self._memory.remove(region.guest_addr, region.size)
            case events.ResumeSoon():
                self._resume_soon()
            case events.GetFeatures():
                return int(self._face.get_features())
            case events.SetFeatures(features):
                self._face.set_features(Features(features))
                log.info("%s: the driver takes %s", self._nic.name, names(Features(features)))
            case events.SetMtu(mtu):
                self._note_mtu(mtu)
            case events.ReadConfig(offset, n):
                return self._face.read_config(offset, n)
            case events.WriteConfig(offset, data):
                self._face.write_config(offset, data)
            case events.Reset():
                self._nic.reset(ResetKind.DEVICE)
            case events.Discard(fds):
                _close_all(fds)
        return None

    def _map(self, regions: Sequence[MemoryRegion], fds: Sequence[int]) -> None:
        try:
            for region, fd in zip(regions, fds, strict=True):
                self._memory.add(region.guest_addr, region.size, fd=fd, offset=region.mmap_offset)
        finally:
            _close_all(fds)

    def _drop_kick(self, index: int) -> None:
        if kick := self._kicks.pop(index, None):
            kick.close()

    def _resume_soon(self) -> None:
        if self._resume is not None:
            self._resume.cancel()
        self._resume = self._loop.timer(RESUME_S, self._resume_now)

    def _resume_now(self) -> None:
        self._resume = None
        try:
            self._carry_out(self._connection.resume())
        except VnicError as error:
            self.end(str(error), logging.ERROR)

    def _watch_memory(self) -> None:
        self._truncated = self._loop.timer(TRUNCATED_S, self._watch_memory)
        self._check_memory()

    def _check_memory(self) -> None:
        if self._open and self._memory.truncated:
            self.end("the VMM has cut guest memory short, under the device", logging.ERROR)

    def _note_mtu(self, mtu: int) -> None:
        own = getattr(self._nic.options, "mtu", None)
        if own is not None and own != mtu:
            log.warning(
                "%s: the VMM gives the guest an MTU of %d, mtu=%d was asked for; give both the "
                "same: host_mtu=%d on the VMM's side",
                self._nic.name,
                mtu,
                own,
                own,
            )


def _close_all(fds: Iterable[int]) -> None:
    for fd in fds:
        os.close(fd)
