/* Structs and inline helpers that every kernel shares. */
#ifndef VNIC_H
#define VNIC_H

#define VNIC_ABI 1

static inline int vnic_probe(int n) { return n + VNIC_ABI; }

#endif
