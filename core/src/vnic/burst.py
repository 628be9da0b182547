"""What crosses between plugins: bursts of frames from the guest, room for frames to the guest."""

from vnic.burst_kernel import ABI, BURST_MAX, FRAME_MAX, Burst
from vnic.room_kernel import Room

__all__ = ["ABI", "BURST_MAX", "FRAME_MAX", "Burst", "Room"]
