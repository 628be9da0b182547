"""Which port a name means: an interface, a switch's port, the end of a pipe; made if need be."""

from __future__ import annotations

import errno
import re
from functools import partial
from typing import Final

from vnic_netmap.abi import NM_IFNAMSIZ, NmreqRegister, NmreqValeNewif, NrFlag, NrMode
from vnic_netmap.testing import pipes, vale
from vnic_netmap.testing.memory import Memory
from vnic_netmap.testing.nics import Nic
from vnic_netmap.testing.pipes import PipeEnd
from vnic_netmap.testing.ports import Port, Shape, bounded, refuse
from vnic_netmap.testing.user_memory import UserMemory
from vnic_netmap.testing.vale import Member, Switch, ValePort

SWITCHES_MAX: Final = 8
VALE: Final = "vale"
_VALE_NAME: Final = re.compile(r"(vale[A-Za-z0-9_]{0,11}):(.{0,15})", re.DOTALL)
"""The colon is within the first 16 characters, and behind it are at most 15."""
_PIPE_NAME: Final = re.compile(r"(.+)([{}])([^{}]+)", re.DOTALL)
_MEM_IDS: Final = 1 << 16


class Directory:
    """All ports that there are, and the memory that they have."""

    def __init__(self, user_memory: UserMemory) -> None:
        self.interfaces: dict[str, Nic | ValePort] = {}
        """What the host has interfaces for: NICs, and the ports that NEWIF made."""
        self.switches: list[Switch | None] = [None] * SWITCHES_MAX
        self.nic_memory = Memory.for_nics().get()
        self._memories = {self.nic_memory.mem_id: self.nic_memory}
        self._last_mem_id = self.nic_memory.mem_id
        self._pipes: dict[tuple[Port, str], dict[str, PipeEnd]] = {}
        self._user_memory = user_memory

    def close(self) -> None:
        """Delete what is left; nothing is bound any more."""
        for interface in list(self.interfaces.values()):
            interface.put()
        self.nic_memory.put()

    # ---- memory ----------------------------------------------------------------------------------

    def memory(self, mem_id: int) -> Memory:
        """Return what has this id.

        Raises: OSError, EINVAL.
        """
        memory = self._memories.get(mem_id)
        return memory if memory is not None and memory.in_use else refuse(errno.EINVAL)

    def _new_memory(self, shape: Shape, n_extra: int) -> Memory:
        self._memories = {i: memory for i, memory in self._memories.items() if memory.in_use}
        mem_id = self._last_mem_id
        while not mem_id or mem_id in self._memories:
            mem_id = (mem_id + 1) % _MEM_IDS
        self._last_mem_id = mem_id
        memory = self._memories[mem_id] = Memory.for_port(mem_id, shape, n_extra)
        return memory

    # ---- names -----------------------------------------------------------------------------------

    def find(self, name: str, request: NmreqRegister, *, create: bool = True) -> Port:
        """Return the port that REGISTER means.  It is the caller's, until its `Port.put`.

        Raises: OSError: ENXIO, there is none; EINVAL, a request that can't be; ENOMEM, a switch
        that can't be, or no room at it; EBUSY, a switch has it; EOPNOTSUPP, what a module may do
        without.
        """
        return self._find(name, request, create=create).get()

    def _find(self, name: str, request: NmreqRegister, *, create: bool) -> Port:
        if request.nr_mode in (NrMode.PIPE_MASTER, NrMode.PIPE_SLAVE):
            refuse(errno.EINVAL)
        memory = self.memory(request.nr_mem_id) if request.nr_mem_id else None
        monitors = NrFlag.MONITOR_TX | NrFlag.MONITOR_RX
        if request.nr_mode == NrMode.NULL or request.nr_flags & monitors:
            refuse(errno.EOPNOTSUPP)
        if "{" in name or "}" in name:
            return self._pipe_end(name, request, create=create)
        if name.startswith(VALE):
            return self._vale_port(name, request, memory, create=create)
        port = self.interfaces.get(name) or refuse(errno.ENXIO)
        if isinstance(port, Nic) and port.is_attached:
            refuse(errno.EBUSY)
        return port

    def find_switch(self, name: str) -> Switch | None:
        """Return the switch that a port's name begins with, if there is one."""
        match = _VALE_NAME.fullmatch(name)
        for switch in self.switches:
            if switch is not None and match is not None and switch.name == match[1]:
                return switch
        return None

    def find_member(self, name: str) -> Member | None:
        """Return what has this name at its switch."""
        switch = self.find_switch(name)
        members = switch.members if switch is not None else ()
        return next((m for m in members if m is not None and m.name == name), None)

    def make_place(self, name: str) -> tuple[Switch, int, str]:
        """Return a switch, made if need be, a place at it, and the name of the port there.

        Raises: OSError, ENOMEM.
        """
        match = _VALE_NAME.fullmatch(name) or refuse(errno.ENOMEM)
        self.switches = [
            None if switch is None or switch.is_empty else switch for switch in self.switches
        ]
        switch = self.find_switch(name)
        if switch is None:
            if None not in self.switches:
                refuse(errno.ENOMEM)
            switch = Switch(match[1])
            self.switches[self.switches.index(None)] = switch
        if None not in switch.members:
            refuse(errno.ENOMEM)
        return switch, switch.members.index(None), match[2]

    def _vale_port(
        self, name: str, request: NmreqRegister, memory: Memory | None, *, create: bool
    ) -> ValePort:
        """Return a port of a switch, a new one if there is none.

        A name that an interface has means that, which is not for REGISTER to put on a switch.
        """
        member = self.find_member(name)
        if member is not None:
            return member if isinstance(member, ValePort) else refuse(errno.EBUSY)
        if not create:
            refuse(errno.ENXIO)
        switch, place, port_name = self.make_place(name)
        if port_name in self.interfaces:
            refuse(errno.EINVAL)
        port = self.new_vale_port(name, request, memory)
        port.join(switch, place)
        return port

    def new_vale_port(
        self, name: str, request: NmreqRegister | NmreqValeNewif, memory: Memory | None
    ) -> ValePort:
        """Return a new port, at no switch yet."""
        shape = Shape(
            tx_slots=bounded(request.nr_tx_slots, vale.SLOTS, vale.SLOTS_MAX),
            rx_slots=bounded(request.nr_rx_slots, vale.SLOTS, vale.SLOTS_MAX),
            tx_rings=bounded(request.nr_tx_rings, 1, vale.RINGS_MAX),
            rx_rings=bounded(request.nr_rx_rings, 1, vale.RINGS_MAX),
        )
        n_extra = getattr(request, "nr_extra_bufs", 0)
        memory = memory or self._new_memory(shape, min(n_extra, vale.EXTRA_BUFS_MAX))
        return ValePort(name, memory, shape, self._user_memory)

    def new_interface(
        self, name: str, request: NmreqRegister | NmreqValeNewif, memory: Memory | None
    ) -> ValePort:
        """Make a port that is an interface of the host, and at no switch yet.

        Raises: OSError: EINVAL, for a name that can't be; EEXIST.
        """
        if name.startswith(VALE) or len(name) >= NM_IFNAMSIZ:
            refuse(errno.EINVAL)
        if name in self.interfaces:
            refuse(errno.EEXIST)
        port = self.interfaces[name] = self.new_vale_port(name, request, memory)
        port.on_end = partial(self.interfaces.pop, name, None)
        return port

    # ---- pipes -----------------------------------------------------------------------------------

    def _pipe_end(self, name: str, request: NmreqRegister, *, create: bool) -> PipeEnd:
        """Return the end of a pipe, of which both ends are made at once."""
        match = _PIPE_NAME.fullmatch(name)
        if match is None or request.nr_mode not in (NrMode.ALL_NIC, NrMode.ONE_NIC):
            refuse(errno.EINVAL)
        parent = self._parent(match[1], request, create=create).get()
        try:
            key = parent, match[3]
            if key not in self._pipes:
                if not create:
                    refuse(errno.ENXIO)
                self._pipes[key] = self._new_pipe(parent, match[3], request)
            return self._pipes[key][match[2]]
        finally:
            parent.put()

    def _parent(self, name: str, request: NmreqRegister, *, create: bool) -> Port:
        """Return the port whose pipe it is; an interface that isn't there is made for the time."""
        if create and name not in self.interfaces and not name.startswith(VALE):
            return self.new_interface(name, request, None)
        return self._find(name, request, create=create)

    def _new_pipe(self, parent: Port, pipe_id: str, request: NmreqRegister) -> dict[str, PipeEnd]:
        shape = Shape(
            tx_slots=bounded(request.nr_tx_slots, parent.shape.tx_slots, pipes.SLOTS_MAX),
            rx_slots=bounded(request.nr_rx_slots, parent.shape.rx_slots, pipes.SLOTS_MAX),
            tx_rings=bounded(request.nr_tx_rings, 1, pipes.RINGS_MAX),
            rx_rings=bounded(request.nr_rx_rings, 1, pipes.RINGS_MAX),
        )
        master = PipeEnd(parent, f"{parent.name}{{{pipe_id}", shape)
        slave = PipeEnd(parent, f"{parent.name}}}{pipe_id}", shape.swapped())
        master.join(slave)
        master.on_end = partial(self._pipes.pop, (parent, pipe_id))
        return {"{": master, "}": slave}

    # ---- interfaces on switches ------------------------------------------------------------------

    def attach(self, name: str, *, with_host: bool) -> int:
        """Put the interface that a name ends with on the switch that it begins with.

        Returns its place there.

        Raises: OSError: EINVAL, no such interface; EBUSY, somebody has it; ENOMEM.
        """
        switch, place, interface_name = self.make_place(name)
        port = self.interfaces.get(interface_name) or refuse(errno.EINVAL)
        if port.n_bound or port.is_attached:
            refuse(errno.EBUSY)
        if isinstance(port, ValePort):
            port.get().name = name
            port.join(switch, place)
        else:
            port.attach(name, switch, with_host=with_host)
        return place

    def detach(self, name: str) -> int:
        """Undo `attach`; return what its place was.

        Raises: OSError, ENXIO.
        """
        switch = self.find_switch(name) or refuse(errno.ENXIO)
        member = self.find_member(name) or refuse(errno.ENXIO)
        place = switch.members.index(member)
        interface_name = name.partition(":")[2]
        port = self.interfaces.get(interface_name)
        if isinstance(port, ValePort):
            port.leave()
            port.name = interface_name
            port.put()
        elif port is not None:
            port.leave()
        return place
