"""Features in virtio's own bits: what a frontend and a backend negotiate.

Every backend speaks them, an e1000's too: its TSO is HOST_TSO4, its checksum offload is CSUM.
"""

from __future__ import annotations

from enum import IntFlag
from typing import Final


class Features(IntFlag):
    """Feature bits of a network device and of its rings.

    Spec: Virtio 1.3, "Network Device", "Feature bits"; "Reserved Feature Bits".
    """

    CSUM = 1 << 0
    """The device takes frames whose checksum is still to be filled in."""
    GUEST_CSUM = 1 << 1
    """The driver takes such frames."""
    MTU = 1 << 3
    MAC = 1 << 5
    GUEST_TSO4 = 1 << 7
    GUEST_TSO6 = 1 << 8
    GUEST_ECN = 1 << 9
    GUEST_UFO = 1 << 10
    HOST_TSO4 = 1 << 11
    HOST_TSO6 = 1 << 12
    HOST_ECN = 1 << 13
    HOST_UFO = 1 << 14
    MRG_RXBUF = 1 << 15
    STATUS = 1 << 16
    GUEST_ANNOUNCE = 1 << 21
    NOTIFY_ON_EMPTY = 1 << 24
    INDIRECT_DESC = 1 << 28
    EVENT_IDX = 1 << 29
    VERSION_1 = 1 << 32
    IN_ORDER = 1 << 35
    GUEST_USO4 = 1 << 54
    GUEST_USO6 = 1 << 55
    HOST_USO = 1 << 56


NONE: Final = Features(0)

GUEST_OFFLOADS: Final = (
    Features.GUEST_CSUM
    | Features.GUEST_TSO4
    | Features.GUEST_TSO6
    | Features.GUEST_ECN
    | Features.GUEST_USO4
    | Features.GUEST_USO6
)
"""What a backend may produce in ``recv`` when the guest has agreed."""

HOST_OFFLOADS: Final = (
    Features.CSUM | Features.HOST_TSO4 | Features.HOST_TSO6 | Features.HOST_ECN | Features.HOST_USO
)
"""What a backend may accept in ``send``."""

OFFLOADS: Final = GUEST_OFFLOADS | HOST_OFFLOADS

_NEEDS: Final = (
    (Features.GUEST_TSO4, Features.GUEST_CSUM),
    (Features.GUEST_TSO6, Features.GUEST_CSUM),
    (Features.GUEST_USO4, Features.GUEST_CSUM),
    (Features.GUEST_USO6, Features.GUEST_CSUM),
    (Features.GUEST_ECN, Features.GUEST_TSO4 | Features.GUEST_TSO6),
    (Features.HOST_TSO4, Features.CSUM),
    (Features.HOST_TSO6, Features.CSUM),
    (Features.HOST_USO, Features.CSUM),
    (Features.HOST_ECN, Features.HOST_TSO4 | Features.HOST_TSO6),
)


def coherent(features: Features) -> Features:
    """Return the features without those whose requirement is missing.

    Segmentation needs the checksum bit of its direction, ECN needs a TSO bit.

    Spec: Virtio 1.3, "Network Device", "Feature bit requirements".
    """
    for bit, needs in _NEEDS:
        if bit in features and not features & needs:
            features &= ~bit
    return features


_ASKS: Final = (
    (Features.CSUM, Features.GUEST_CSUM),
    (Features.HOST_TSO4, Features.GUEST_TSO4),
    (Features.HOST_TSO6, Features.GUEST_TSO6),
    (Features.HOST_ECN, Features.GUEST_ECN),
    (Features.HOST_USO, Features.GUEST_USO4 | Features.GUEST_USO6),
)


def asked_by(offloads: Features) -> Features:
    """Return what headers may ask for, given HOST_* bits: the GUEST_* bits of who takes that.

    It is how the kernels say what a header asks for (``vnic_hdr_needs`` of vnic.h).
    """
    asks = NONE
    for granted, ask in _ASKS:
        if granted in offloads:
            asks |= ask
    return asks


def names(features: Features) -> str:
    """Return the bits by name, lowest first: ``CSUM HOST_TSO4``; unknown bits as numbers."""
    known = [bit for bit in Features if bit in features]
    rest = int(features) & ~sum(int(bit) for bit in known)
    unknown = [f"bit {n}" for n in range(64) if rest >> n & 1]
    return " ".join([*(str(bit.name) for bit in known), *unknown]) or "none"
