"""netmap without its module: system calls, ports and switches in user space, for tests.

with StandIn() as stand_in:
    monkeypatch.setattr(system, "current", stand_in)
    nic = stand_in.add_nic("eth0")
    ...                                     # the plugin opens eth0, vale0:1, vale0:1{3
    nic.from_wire(frame)
    assert nic.to_wire.popleft() == frame

It does what the module was seen to do, faults included.  It knows no monitors, none of the options
CSB, OFFSETS and EXTMEM, and no forwarding between a NIC and its host (NS_FORWARD).

| file | |
|---|---|
| `stand_in` | the system calls; what a test can make happen |
| `requests`, `legacy` | NIOCCTRL; NIOCREGIF and NIOCGINFO |
| `directory` | which port a name means |
| `registration` | which rings a descriptor gets, and what ``netmap_if`` says of them |
| `memory`, `rings` | how shared memory is laid out; head, cur and tail |
| `ports`, `vale`, `pipes`, `nics` | what a sync does: of any port, and of each kind |
| `headers` | frames between ports whose virtio-net headers differ |
| `descriptor`, `readiness` | what poll, select and epoll see |
| `user_memory` | how requests are copied in and out |
| `client` | the other end of a port: user space in plain Python |
"""

from vnic_netmap.testing.client import Client, Ring, control, frame
from vnic_netmap.testing.nics import Nic
from vnic_netmap.testing.stand_in import StandIn

__all__ = ["Client", "Nic", "Ring", "StandIn", "control", "frame"]
