"""Checksum and segmentation in software, for a receiver that lacks what the sender asks for."""

from vnic.offload_kernel import segments

__all__ = ["segments"]
