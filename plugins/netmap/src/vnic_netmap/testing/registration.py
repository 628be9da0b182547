"""REGISTER: which rings of a port a descriptor gets, and the netmap_if that leads to them."""

from __future__ import annotations

import errno
from collections.abc import Sequence
from typing import Final

from vnic_netmap.abi import NM_IFNAMSIZ, NetmapIf, NmreqRegister, NrFlag, NrMode
from vnic_netmap.testing.descriptor import Binding, Descriptor
from vnic_netmap.testing.ports import ENCODING, Port, refuse
from vnic_netmap.testing.rings import Kring

STALE: Final = b"\xee" * NM_IFNAMSIZ
"""What lies behind the name in a netmap_if: the module clears nothing there."""


def bind(port: Port, descriptor: Descriptor, request: NmreqRegister) -> Binding:
    """Bind a descriptor to rings of a port, as asked; fill in the request.

    Raises: OSError, with nothing bound: EINVAL, no such rings, or the port can't be opened;
    EBUSY, one of them is to be had alone; ENOMEM, the port's memory is used up.
    """
    flags = NrFlag(request.nr_flags)
    memory = port.memory
    memory.bind()
    if port.n_bound == 0:
        port.make_rings()
    port.n_bound += 1
    try:
        tx = _select(port, request, is_tx=True)
        rx = _select(port, request, is_tx=False)
        if port.n_bound == 1:
            port.check(receives=bool(rx))
        alone = NrFlag.EXCLUSIVE in flags
        if any(ring.exclusive or (ring.users and alone) for ring in (*tx, *rx)):
            refuse(errno.EBUSY)
        for ring in (*rx, *tx):
            ring.users.append(descriptor)
            ring.exclusive = alone
            port.create(ring)
        netmap_if = memory.ifs.take()
    except OSError:
        _let_go(port, descriptor)
        raise
    extra = _take_extra(port, request.nr_extra_bufs)
    _write_if(port, netmap_if, (*tx, *rx), extra)
    port.shape.tell(request)
    request.nr_offset = memory.ifs.at(netmap_if)
    request.nr_memsize = memory.size
    request.nr_mem_id = memory.mem_id
    request.nr_extra_bufs = len(extra)
    return Binding(
        port=port, tx=tx, rx=rx, flags=flags, memory=memory, netmap_if=netmap_if, extra_bufs=extra
    )


def unbind(descriptor: Descriptor) -> None:
    """Undo `bind`; the last one gone, the port's rings go."""
    binding, descriptor.binding = descriptor.binding, None
    if binding is not None:
        memory = binding.memory
        memory.ifs.give_back(binding.netmap_if)
        for buf_idx in binding.extra_bufs:
            memory.bufs.give_back(buf_idx)
        _let_go(binding.port, descriptor)


def _let_go(port: Port, descriptor: Descriptor) -> None:
    memory = port.memory
    for ring in (*port.tx, *port.rx):
        if descriptor in ring.users:
            ring.users.remove(descriptor)
            ring.exclusive = False
            if not ring.users:
                port.release(ring)
    port.n_bound -= 1
    if port.n_bound == 0:
        port.drop_rings()
    memory.unbind()


def _select(port: Port, request: NmreqRegister, *, is_tx: bool) -> Sequence[Kring]:
    """Return the rings of one direction that a mode means.

    Raises: OSError, EINVAL.
    """
    rings = port.tx if is_tx else port.rx
    shape, mode, i = port.shape, request.nr_mode, request.nr_ringid
    n_nic, n_host = shape.n_nic(is_tx=is_tx), shape.n_host(is_tx=is_tx)
    if request.nr_flags & (NrFlag.RX_RINGS_ONLY if is_tx else NrFlag.TX_RINGS_ONLY):
        return ()
    if mode in (NrMode.SW, NrMode.NIC_SW, NrMode.ONE_SW) and not n_host:
        refuse(errno.EINVAL)
    if mode == NrMode.ALL_NIC:
        return rings[:n_nic]
    if mode == NrMode.SW:
        return rings[n_nic:]
    if mode == NrMode.NIC_SW:
        return rings[:]
    # Where only the other direction has a ring of this number, the first one stands in.
    if mode == NrMode.ONE_NIC and i < max(shape.tx_rings, shape.rx_rings):
        return rings[i : i + 1] if i < n_nic else rings[:1]
    if mode == NrMode.ONE_SW and i < max(shape.host_tx_rings, shape.host_rx_rings):
        j = n_nic + (i if i < n_host else 0)
        return rings[j : j + 1]
    return refuse(errno.EINVAL)


def _take_extra(port: Port, n: int) -> list[int]:
    """Take as many buffers as there are, up to n, and chain them: each begins with the next."""
    memory = port.memory
    taken = [memory.bufs.take() for _ in range(min(n, memory.bufs.n_free))]
    for index, following in zip(taken, [0, *taken], strict=False):
        at = memory.bufs.at(index)
        memory.view[at : at + 4] = following.to_bytes(4, "little")
    return taken


def _write_if(port: Port, index: int, rings: Sequence[Kring], extra: Sequence[int]) -> None:
    """Lay out a netmap_if: where each ring is, the host's too; 0 for one that isn't bound."""
    memory, shape = port.memory, port.shape
    at = memory.ifs.at(index)
    name = port.name.encode(ENCODING)[: NM_IFNAMSIZ - 1]
    head = NetmapIf(
        ni_tx_rings=shape.tx_rings,
        ni_rx_rings=shape.rx_rings,
        ni_bufs_head=extra[-1] if extra else 0,
        ni_host_tx_rings=max(shape.host_tx_rings, 1),
        ni_host_rx_rings=max(shape.host_rx_rings, 1),
    )
    offsets = []
    for is_tx, all_rings in ((True, port.tx), (False, port.rx)):
        n = shape.n_nic(is_tx=is_tx) + max(shape.n_host(is_tx=is_tx), 1)
        bound = [ring.at - at if ring in rings else 0 for ring in all_rings]
        offsets += bound + [0] * (n - len(bound))
    content = bytearray(head) + b"".join(
        offset.to_bytes(8, "little", signed=True) for offset in offsets
    )
    content[:NM_IFNAMSIZ] = (name + b"\0" + STALE)[:NM_IFNAMSIZ]
    memory.view[at : at + len(content)] = content
