"""What the stand-in lays out in shared memory: the reference, offset for offset."""

from __future__ import annotations

import struct

import pytest
from vnic_netmap.abi import NrMode
from vnic_netmap.testing import Client, StandIn, frame


def u32(client: Client, at: int) -> int:
    return int(struct.unpack_from("=I", client.view, at)[0])


def u16(client: Client, at: int) -> int:
    return int(struct.unpack_from("=H", client.view, at)[0])


def test_netmap_if_has_its_fields_where_they_belong(stand_in: StandIn) -> None:
    with Client(stand_in, "vale0:1", nr_tx_rings=3, nr_rx_rings=2, nr_extra_bufs=5) as client:
        at = client.request.nr_offset
        assert bytes(client.view[at : at + 8]) == b"vale0:1\0"
        assert u32(client, at + 24) == 3
        assert u32(client, at + 28) == 2
        assert u32(client, at + 32) != 0  # bufs_head
        assert (u32(client, at + 36), u32(client, at + 40)) == (1, 1)
        assert bytes(client.view[at + 44 : at + 56]) == bytes(12)


def test_the_name_in_netmap_if_is_cut_at_15_and_stale_bytes_follow_its_zero(
    stand_in: StandIn,
) -> None:
    with Client(stand_in, "vale0:1") as client:
        rest = bytes(client.view[client.request.nr_offset :][8:16])
        assert any(rest)
    with Client(stand_in, "vale012345:abcdefghijklmno") as client:
        name = bytes(client.view[client.request.nr_offset :][:16])
        assert name == b"vale012345:abcd\0"


def test_the_version_in_netmap_if_reads_0(stand_in: StandIn) -> None:
    with Client(stand_in, "vale0:1") as client:
        assert u32(client, client.request.nr_offset + 16) == 0


def test_ring_offsets_are_in_the_order_tx_host_tx_rx_host_rx(stand_in: StandIn) -> None:
    stand_in.add_nic("eth0", rings=2, host_rings=1)
    with Client(stand_in, "eth0", mode=NrMode.NIC_SW) as client:
        at = client.request.nr_offset
        rings = [
            (u16(client, at + ofs + 18), u16(client, at + ofs + 16))
            for ofs in struct.unpack_from("=6q", client.view, at + 56)
        ]
        tx, rx = 1, 0
        assert rings == [(tx, 0), (tx, 1), (tx, 2), (rx, 0), (rx, 1), (rx, 2)]


def test_the_offset_of_a_ring_that_is_absent_is_0(stand_in: StandIn) -> None:
    with Client(stand_in, "vale0:1") as client:
        tx, host_tx, rx, host_rx = client.ring_offsets
        assert tx
        assert rx
        assert (host_tx, host_rx) == (0, 0)


def test_ring_offsets_are_relative_to_the_netmap_if(stand_in: StandIn) -> None:
    stand_in.add_nic("eth0")
    with Client(stand_in, "eth0") as first, Client(stand_in, "eth0") as second:
        assert first.request.nr_offset != second.request.nr_offset
        assert first.ring_offsets != second.ring_offsets
        assert first.tx[0].at == second.tx[0].at


@pytest.mark.parametrize("slots", [1024, 100, 1500, 4096])
def test_a_ring_has_its_fields_where_they_belong(stand_in: StandIn, slots: int) -> None:
    with Client(stand_in, "vale0:1", nr_tx_slots=slots, nr_rx_slots=slots) as client:
        for ring, tail in ((client.tx[0], slots - 1), (client.rx[0], 0)):
            assert ring.at % 128 == 0
            assert u32(client, ring.at + 8) == slots
            assert u32(client, ring.at + 12) == 2048
            assert u16(client, ring.at + 16) == 0
            assert u16(client, ring.at + 18) == (1 if ring.is_tx else 0)
            pointers = [u32(client, ring.at + offset) for offset in (20, 24, 28)]
            assert pointers == [0, 0, tail]
            assert bytes(client.view[ring.at + 32 : ring.at + 256]) == bytes(224)


def test_a_slot_has_16_bytes_and_a_buffer_that_no_other_slot_has(stand_in: StandIn) -> None:
    with Client(stand_in, "vale0:1") as client:
        indices = []
        for ring in (client.tx[0], client.rx[0]):
            for i in range(ring.n_slots):
                at = ring.at + 256 + 16 * i
                buf_idx, length, flags, ptr = struct.unpack_from("=IHHQ", client.view, at)
                assert (length, flags, ptr) == (2048, 0, 0)
                indices.append(buf_idx)
        assert len(set(indices)) == 2048
        assert min(indices) >= 2


def test_a_buffer_is_at_its_ring_plus_buf_ofs_plus_index_times_size(stand_in: StandIn) -> None:
    with Client(stand_in, "vale0:1") as one, Client(stand_in, "vale0:2") as two:
        one.send(frame(0, 1))
        two.rxsync()
        ring = two.rx[0].at
        (buf_ofs,) = struct.unpack_from("=q", two.view, ring)
        (buf_idx,) = struct.unpack_from("=I", two.view, ring + 256)
        at = ring + buf_ofs + buf_idx * 2048
        assert bytes(two.view[at : at + 60]) == frame(0, 1)


def test_all_buffers_are_inside_the_mapping(stand_in: StandIn) -> None:
    with Client(stand_in, "vale0:1", nr_tx_slots=4096, nr_rx_rings=4) as client:
        for ring in (*client.tx, *client.rx):
            for i in range(ring.n_slots):
                assert len(ring.buffer(i)) == 2048


def test_a_vale_port_costs_about_40_megabytes_at_1024_slots(stand_in: StandIn) -> None:
    with Client(stand_in, "vale0:1") as client:
        assert 40e6 < client.request.nr_memsize < 44e6


def test_extra_buffers_are_a_chain_from_bufs_head_to_0(stand_in: StandIn) -> None:
    with Client(stand_in, "vale0:1", nr_extra_bufs=3) as client:
        assert client.request.nr_extra_bufs == 3
        chain, ring = [client.netmap_if.ni_bufs_head], client.tx[0]
        in_rings = {r.slot(i)[0] for r in (*client.tx, *client.rx) for i in range(r.n_slots)}
        while chain[-1]:
            ring.set_slot(0, buf_idx=chain[-1])
            chain.append(int.from_bytes(ring.buffer(0, 4), "little"))
        assert len(chain) == 4
        assert not in_rings & set(chain)


def test_ports_with_memory_of_their_own_have_ids_of_their_own(stand_in: StandIn) -> None:
    stand_in.add_nic("eth0")
    stand_in.add_nic("eth1")
    with (
        Client(stand_in, "eth0") as eth0,
        Client(stand_in, "eth1") as eth1,
        Client(stand_in, "vale0:1") as one,
        Client(stand_in, "vale0:2") as two,
    ):
        ids = [client.request.nr_mem_id for client in (eth0, eth1, one, two)]
        assert ids[:2] == [1, 1]
        assert len(set(ids)) == 3


def test_a_port_that_is_given_a_mem_id_shares_that_memory(stand_in: StandIn) -> None:
    stand_in.add_nic("eth0")
    with Client(stand_in, "vale0:1") as one:
        mem_id = one.request.nr_mem_id
        with (
            Client(stand_in, "vale0:2", nr_mem_id=mem_id) as two,
            Client(stand_in, "eth0", nr_mem_id=mem_id) as nic,
        ):
            for client in (two, nic):
                assert client.request.nr_mem_id == mem_id
                buf_idx = client.tx[0].slot(0)[0]
                client.tx[0].buffer(0)[:4] = b"same"
                one.tx[0].set_slot(0, buf_idx=buf_idx)
                assert bytes(one.tx[0].buffer(0, 4)) == b"same"
    with Client(stand_in, "eth0") as nic:
        assert nic.request.nr_mem_id == 1


def test_buffers_are_free_again_when_all_have_closed_wherever_they_were_left(
    stand_in: StandIn,
) -> None:
    stand_in.add_nic("eth0")
    with Client(stand_in, "eth0") as client:
        first = [client.tx[0].slot(i) for i in range(1024)]
        for i in range(1024):
            client.tx[0].set_slot(i, buf_idx=7)
    with Client(stand_in, "eth0") as client:
        assert [client.tx[0].slot(i) for i in range(1024)] == first
