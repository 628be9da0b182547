# What vnic.h declares, for Cython: `from vnic_abi cimport VNIC_ABI`.

cdef extern from "vnic.h" nogil:
    enum:
        VNIC_ABI
    int vnic_probe(int n)
