from typing import Any

from vnic.burst import Burst

class Pool:
    burst: Burst
    capsule: Any
    def __init__(self, offloads: int, n_max: int = 256) -> None: ...
    def drop(self, n: int) -> None: ...
