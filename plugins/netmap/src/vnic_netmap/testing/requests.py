"""NIOCCTRL: what each request does, its options, and how it is copied in and out."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from ctypes import Structure, sizeof
from typing import Any, Final, TypeVar

from vnic_netmap.abi import (
    NETMAP_API,
    NETMAP_VNET_HDR_LENS,
    NetmapReq,
    NmreqHeader,
    NmreqOption,
    NmreqPortHdr,
    NmreqPortInfoGet,
    NmreqRegister,
    NmreqValeAttach,
    NmreqValeDetach,
    NmreqValeList,
    NmreqValeNewif,
    NrFlag,
    NrMode,
)
from vnic_netmap.testing import vale
from vnic_netmap.testing.descriptor import Descriptor
from vnic_netmap.testing.directory import VALE, Directory
from vnic_netmap.testing.nics import Nic
from vnic_netmap.testing.ports import ENCODING, refuse
from vnic_netmap.testing.registration import bind, unbind
from vnic_netmap.testing.user_memory import UserMemory
from vnic_netmap.testing.vale import ValePort

VERSIONS: Final = (NETMAP_API, NETMAP_API + 1)
OPTIONS_MAX: Final = 64
"""A chain longer than that is taken for a loop."""
NO_PORT: Final = vale.PORTS_MAX + 1

T = TypeVar("T", bound=Structure)
Serve = Callable[[Descriptor, NmreqHeader, Any], None]


class Requests:
    """What the module answers.  Bodies are changed in place, as user space sees them."""

    def __init__(self, directory: Directory, user_memory: UserMemory) -> None:
        self._directory = directory
        self._user_memory = user_memory
        self._table: dict[int, tuple[type[Structure] | None, Serve]] = {
            NetmapReq.REGISTER: (NmreqRegister, self.register),
            NetmapReq.PORT_INFO_GET: (NmreqPortInfoGet, self.port_info_get),
            NetmapReq.VALE_ATTACH: (NmreqValeAttach, self.vale_attach),
            NetmapReq.VALE_DETACH: (NmreqValeDetach, self.vale_detach),
            NetmapReq.VALE_LIST: (NmreqValeList, self.vale_list),
            NetmapReq.PORT_HDR_SET: (NmreqPortHdr, self.port_hdr_set),
            NetmapReq.PORT_HDR_GET: (NmreqPortHdr, self.port_hdr_get),
            NetmapReq.VALE_NEWIF: (NmreqValeNewif, self.vale_newif),
            NetmapReq.VALE_DELIF: (None, self.vale_delif),
        }

    def control(self, descriptor: Descriptor, header: NmreqHeader, eopnotsupp: int) -> None:
        """Serve one request.

        A body is written back if all went well, the status of each option in any case; here no
        option is known, so that each has ``eopnotsupp``.  It is the only number that differs.

        Raises: OSError.
        """
        if header.nr_version not in VERSIONS or header.nr_reserved:
            refuse(errno.EINVAL)
        kind, serve = self._table.get(header.nr_reqtype) or refuse(errno.EINVAL)
        if bool(header.nr_body) != (kind is not None):
            refuse(errno.EINVAL)
        body = self._copy_in(kind, header.nr_body) if kind is not None else None
        options = list(self._options(header.nr_options))
        for address, option in options:
            option.nro_status = eopnotsupp
            self._user_memory.write(address, bytes(option))
        serve(descriptor, header, body)
        if options and header.nr_reqtype == NetmapReq.REGISTER:
            unbind_and_put(descriptor)
            refuse(errno.EOPNOTSUPP)
        if body is not None:
            self._user_memory.write(header.nr_body, bytes(body))

    def _options(self, address: int) -> Iterator[tuple[int, NmreqOption]]:
        """Yield the options of a chain, and where they are.

        Raises: OSError: EINVAL, one of no type, or two of one; EMSGSIZE, too many.
        """
        seen: set[int] = set()
        for _ in range(OPTIONS_MAX):
            if not address:
                return
            option = self._copy_in(NmreqOption, address)
            if option.nro_reqtype in seen or not option.nro_reqtype:
                option.nro_status = errno.EINVAL
                self._user_memory.write(address, bytes(option))
                refuse(errno.EINVAL)
            seen.add(option.nro_reqtype)
            yield address, option
            address = option.nro_next
        refuse(errno.EMSGSIZE)

    def _copy_in(self, kind: type[T], address: int) -> T:
        return kind.from_buffer_copy(self._user_memory.read(address, sizeof(kind)))

    # ---- binding ---------------------------------------------------------------------------------

    def register(self, descriptor: Descriptor, header: NmreqHeader, request: NmreqRegister) -> None:
        """Bind the descriptor to a port."""
        if descriptor.binding is not None:
            refuse(errno.EBUSY)
        port = self._directory.find(_name(header), request)
        try:
            if port.hdr_len and not request.nr_flags & NrFlag.ACCEPT_VNET_HDR:
                refuse(errno.EIO)
            if isinstance(port, Nic) and request.nr_mem_id:
                port.use(self._directory.memory(request.nr_mem_id))
            descriptor.binding = bind(port, descriptor, request)
        except OSError:
            port.put()
            raise
        descriptor.show()

    def port_info_get(self, _: Descriptor, header: NmreqHeader, request: NmreqPortInfoGet) -> None:
        """Say what a port is like; without a name, how much memory an id stands for."""
        if not header.nr_name:
            memory = self._directory.memory(request.nr_mem_id or 1)
            request.nr_memsize, request.nr_mem_id = memory.size, memory.mem_id
            return
        wanted = NmreqRegister(
            nr_mode=NrMode.ALL_NIC,
            nr_tx_slots=request.nr_tx_slots,
            nr_rx_slots=request.nr_rx_slots,
            nr_tx_rings=request.nr_tx_rings,
            nr_rx_rings=request.nr_rx_rings,
            nr_mem_id=request.nr_mem_id,
        )
        port = self._directory.find(_name(header), wanted)
        port.shape.tell(request)
        request.nr_memsize, request.nr_mem_id = port.memory.size, port.memory.mem_id
        port.put()

    # ---- virtio-net headers ----------------------------------------------------------------------

    def port_hdr_set(self, _: Descriptor, header: NmreqHeader, request: NmreqPortHdr) -> None:
        """Set the length of a switch port's virtio-net header."""
        if request.nr_hdr_len not in NETMAP_VNET_HDR_LENS:
            refuse(errno.EINVAL)
        member = self._directory.find_member(_name(header))
        if not isinstance(member, ValePort):
            refuse(errno.ENXIO)
        member.set_hdr_len(request.nr_hdr_len)

    def port_hdr_get(self, _: Descriptor, header: NmreqHeader, request: NmreqPortHdr) -> None:
        """Get the length of a port's virtio-net header, of any port that is there."""
        wanted = NmreqRegister(nr_mode=NrMode.ALL_NIC)
        port = self._directory.find(_name(header), wanted, create=False)
        request.nr_hdr_len = port.hdr_len
        port.put()

    # ---- switches --------------------------------------------------------------------------------

    def vale_attach(self, _: Descriptor, header: NmreqHeader, request: NmreqValeAttach) -> None:
        """Put an interface on a switch."""
        name = _name(header)
        if not name.startswith(VALE):
            refuse(errno.EINVAL)
        if self._directory.find_member(name) is not None:
            refuse(errno.EBUSY)
        with_host = request.reg.nr_mode == NrMode.NIC_SW
        request.port_index = self._directory.attach(name, with_host=with_host)

    def vale_detach(self, _: Descriptor, header: NmreqHeader, request: NmreqValeDetach) -> None:
        """Take an interface off its switch; another port stays."""
        name = _name(header)
        if not name.startswith(VALE):
            refuse(errno.EINVAL)
        request.port_index = self._directory.detach(name)

    def vale_list(self, _: Descriptor, header: NmreqHeader, request: NmreqValeList) -> None:
        """Say where a name is; without a name, which is the first port from there on."""
        switches = self._directory.switches
        if header.nr_name:
            name = _name(header)
            if not name.startswith(VALE):
                refuse(errno.EINVAL)
            switch = self._directory.find_switch(name) or refuse(errno.ENOENT)
            names = [member and member.name for member in switch.members]
            request.nr_bridge_idx = switches.index(switch)
            request.nr_port_idx = names.index(name) if name in names else NO_PORT
            return
        at = request.nr_bridge_idx, request.nr_port_idx
        for i, members in enumerate(each.members if each else () for each in switches):
            for j, member in enumerate(members):
                if (i, j) >= at and member is not None:
                    header.nr_name = member.name.encode(ENCODING)
                    request.nr_bridge_idx, request.nr_port_idx = i, j
                    return
        refuse(errno.ENOENT)

    def vale_newif(self, _: Descriptor, header: NmreqHeader, request: NmreqValeNewif) -> None:
        """Make a port that stays."""
        mem_id = request.nr_mem_id
        memory = self._directory.memory(mem_id) if mem_id else None
        port = self._directory.new_interface(_name(header), request, memory).get()
        port.shape.tell(request)
        request.nr_mem_id = port.memory.mem_id

    def vale_delif(self, _: Descriptor, header: NmreqHeader, __: None) -> None:
        """Remove one, of which nobody makes use."""
        port = self._directory.interfaces.get(_name(header)) or refuse(errno.ENXIO)
        if isinstance(port, Nic):
            refuse(errno.EINVAL)
        if port.n_holders > 1:
            refuse(errno.EBUSY)
        port.put()


def unbind_and_put(descriptor: Descriptor) -> None:
    """Undo REGISTER."""
    if descriptor.binding is not None:
        port = descriptor.binding.port
        unbind(descriptor)
        port.put()
        descriptor.show()


def _name(header: NmreqHeader) -> str:
    return bytes(header.nr_name).decode(ENCODING)
