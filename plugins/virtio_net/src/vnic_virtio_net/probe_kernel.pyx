# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""Proves that a kernel finds vnic.h and vnic_abi.pxd; goes when the first real one comes."""

from vnic_abi cimport VNIC_ABI, vnic_probe


def probe(int n) -> int:
    return vnic_probe(n) + VNIC_ABI
