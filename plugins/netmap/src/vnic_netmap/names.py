"""Names of netmap ports, as libnetmap writes them, read into what the module is asked for."""

from __future__ import annotations

import re
import socket
from typing import Final

import attrs
from vnic.errors import ConfigError

from vnic_netmap.abi import NM_IFNAMSIZ, NrFlag, NrMode

FORM: Final = 'write it as in "netmap:eth0", "netmap:eth0-3", "netmap:eth0^", "netmap:vale0:1{7"'

_NAME: Final = re.compile(
    r"(?:netmap:)?(?P<port>(?:(?![@/^*{}])[!-~])+?)(?P<pipe>[{}][A-Za-z0-9_]+)?"
    r"(?P<rings>-[0-9]{1,9}|\^[0-9]{0,9}|\*)?(?P<suffixes>(?:@[^@/]*|/[^@/]*)*)"
)
_SUFFIX: Final = re.compile(r"([@/])([^@/]*)")
_VALE: Final = re.compile(r"vale[A-Za-z0-9_]*:([A-Za-z0-9_.-]+)")

_FLAGS: Final = {
    "x": NrFlag.EXCLUSIVE,
    "z": NrFlag.ZCOPY_MON,
    "t": NrFlag.MONITOR_TX,
    "r": NrFlag.MONITOR_RX,
    "R": NrFlag.RX_RINGS_ONLY,
    "T": NrFlag.TX_RINGS_ONLY,
}


_NO_FLAGS: Final = NrFlag(0)
MONITOR: Final = NrFlag.MONITOR_TX | NrFlag.MONITOR_RX
"""Either makes a port a monitor, that sees the frames of another and sends none."""


@attrs.frozen(kw_only=True)
class PortName:
    """Which port, and which of its rings."""

    port: str
    """As the module wants it: ``eth0``, ``vale0:1``, ``vale0:1{7``."""
    mode: NrMode = NrMode.ALL_NIC
    ring: int = 0
    """Which one, for modes of one ring."""
    mem_id: int = 0
    """The allocator that the port's memory is of; 0: what the module chooses."""
    flags: NrFlag = _NO_FLAGS

    @property
    def is_pipe(self) -> bool:
        """One end of a pipe, which another program has the other end of."""
        return "{" in self.port or "}" in self.port

    @property
    def is_vale(self) -> bool:
        """A port of a VALE switch itself, and so ours to shape: no pipe on it, no monitor."""
        return self.port.startswith("vale") and not (self.is_pipe or self.flags & MONITOR)

    @property
    def takes_fragments(self) -> bool:
        """Whether a frame may be in several slots.

        A NIC may send each as a frame of its own, as those without netmap in their drivers do;
        host rings do so, too.
        """
        return self.is_vale or self.is_pipe


def parse(text: str) -> PortName:
    """Read ``[netmap:]PORT[{PIPE|}PIPE][-RING|^|^RING|*][@MEM_ID][/FLAGS]``.

    Raises: ConfigError, with all problems, a line each.
    """
    match = _NAME.fullmatch(text)
    if match is None:
        raise ConfigError(f"{text!a}: not the name of a netmap port; {FORM}")
    port, pipe, rings = match["port"], match["pipe"] or "", match["rings"] or ""
    problems = [*_wrong_port(port, pipe)]
    mem_id, flags = 0, _NO_FLAGS
    for kind, value in _SUFFIX.findall(match["suffixes"]):
        if kind == "@":
            if re.fullmatch("[0-9]{1,9}", value) is None or not 0 < int(value) < 1 << 16:
                problems.append(f"@{value}: an allocator's id is a number from 1 to 65535")
            else:
                mem_id = int(value)
        elif unknown := sorted(set(value) - set(_FLAGS)) or not value:
            shown = "".join(unknown) if isinstance(unknown, list) else ""
            problems.append(f"/{shown}: no flags of a port; there are {' '.join(_FLAGS)}")
        else:
            for letter in value:
                flags |= _FLAGS[letter]
    if flags & NrFlag.TX_RINGS_ONLY and flags & (NrFlag.RX_RINGS_ONLY | MONITOR):
        problems.append("/T means no receive rings, and R, t and r mean no others; leave it out")
    if flags & NrFlag.ZCOPY_MON and not flags & MONITOR:
        problems.append("/z says how to listen, r and t to what: add r, t or both")
    mode, ring = _rings(rings)
    if ring >= 1 << 12:
        problems.append(f"{rings}: no port has so many rings; they count from 0")
    if problems:
        raise ConfigError("\n".join(f"{text}: {problem}" for problem in problems))
    return PortName(port=port + pipe, mode=mode, ring=ring, mem_id=mem_id, flags=flags)


def _rings(suffix: str) -> tuple[NrMode, int]:
    kind, number = suffix[:1], suffix[1:]
    if kind == "-":
        return NrMode.ONE_NIC, int(number)
    if kind == "^":
        return (NrMode.ONE_SW, int(number)) if number else (NrMode.SW, 0)
    return (NrMode.NIC_SW if kind == "*" else NrMode.ALL_NIC), 0


def _wrong_port(port: str, pipe: str) -> list[str]:
    """What the module would refuse with an error that says little, or take for something else."""
    problems = []
    own = port
    if port.startswith("vale"):
        match = _VALE.fullmatch(port)
        if match is None:
            # The module says that it is out of memory.
            problems.append('not a port of a switch; write "vale0:1", SWITCH:PORT')
        else:
            own = match[1]
            if not pipe and own in {name for _, name in socket.if_nameindex()}:
                # The module would take the NIC away from the host and put it into the switch.
                problems.append(
                    f"{own} is an interface of this host, which VALE would take in place of a "
                    f"port of that name; choose another name"
                )
    elif ":" in port:
        problems.append(f"no port's name has a colon, except a switch's, as vale0:1; {FORM}")
    if len(own + pipe) >= NM_IFNAMSIZ:
        problems.append(
            f"{own + pipe} has {len(own + pipe)} characters, and {NM_IFNAMSIZ - 1} are the most; "
            f"choose a shorter name"
        )
    return problems
