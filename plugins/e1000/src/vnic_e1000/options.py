"""What a user can say of an e1000 NIC."""

from __future__ import annotations

from enum import Enum

import attrs
from vnic import config


class Model(Enum):
    """Which part of the family the guest sees."""

    I82540EM = "82540em"
    I82545EM = "82545em"


def _mac(value: object) -> bytes | None:
    return None if value is None else config.mac(value)


def _model(value: object) -> Model:
    try:
        return value if isinstance(value, Model) else Model(str(value).lower())
    except ValueError:
        known = ", ".join(model.value for model in Model)
        raise ValueError(f"no such model; there are: {known}") from None


@attrs.frozen(kw_only=True)
class E1000Options:
    """The options of ``e1000``."""

    mac: bytes | None = attrs.field(default=None, converter=_mac)
    """The address in the EEPROM.  Default: made from the NIC's name."""
    model: Model = attrs.field(default=Model.I82540EM, converter=_model)
    """82540em, which every guest has a driver for, or 82545em."""
    offload: bool = attrs.field(default=True, converter=config.boolean)
    """Whether the host network may leave checksums and segmentation to the NIC."""
