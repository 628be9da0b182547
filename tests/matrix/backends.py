"""The backends: the world behind each, as the table shows them."""

from __future__ import annotations

from kit.outsides import Outside, core, dgram, netmap, patched, stream, tap, vale

BACKENDS: dict[str, type[Outside]] = {
    "null": core.Nowhere,
    "loop": core.Back,
    "vale": vale.AnotherPort,
    "vale, to a port without offload": vale.AnotherPortWithoutOffload,
    "vale, the kernel's": netmap.PortOfVale,
    "netmap:eth0": netmap.Wire,
    "netmap:eth0^": netmap.HostsStack,
    "netmap:p{7": netmap.OtherEnd,
    "stream, UNIX caller": stream.CallsUnix,
    "stream, UNIX listener": stream.CalledByUnix,
    "stream, TCP caller": stream.CallsTcp,
    "stream, TCP listener": stream.CalledByTcp6,
    "dgram, UNIX": dgram.Unix,
    "dgram, UDP": dgram.Udp,
    "tap": tap.HostSide,
    "tap:fd": tap.PassedOn,
    "macvtap": tap.BehindAMacvtap,
    "vale, patched to a tap": patched.Uplink,
}
