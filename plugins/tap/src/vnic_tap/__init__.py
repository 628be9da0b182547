"""Linux taps and macvtaps as backends of vnic.

Frames go between the descriptor and guest memory in core's kernels, a burst per call, each behind
a virtio-net header; so a frame that is still to be segmented crosses whole, both ways.
"""

from vnic_tap.backend import COUNTERS, Macvtap, Tap

__all__ = ["COUNTERS", "Macvtap", "Tap"]
