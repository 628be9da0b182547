from typing import Any

from vnic.burst import Burst

class Pool:
    burst: Burst
    capsule: Any
    def __init__(self, offloads: int) -> None: ...
    def drop(self, n: int) -> None: ...
