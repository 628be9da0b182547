from typing import Any

from vnic.burst import Burst
from vnic.hookspecs import QueueAddresses
from vnic.memory import Memory

REASONS: dict[int, str]
COUNTERS: dict[str, str]

class Ring:
    @property
    def base(self) -> int: ...
    @property
    def error(self) -> str | None: ...
    def grown(self) -> bool: ...
    def park(self) -> None: ...
    def arm(self) -> bool: ...

class TxRing(Ring):
    @property
    def counters(self) -> dict[str, int]: ...
    def __init__(
        self,
        memory: Memory,
        queue: QueueAddresses,
        *,
        event_idx: bool,
        indirect: bool,
        header_len: int,
    ) -> None: ...
    def ready(self) -> bool: ...
    def allow(self, needs: int) -> None: ...
    def parse(self, burst: Burst) -> int: ...
    def complete(self, burst: Burst, n: int) -> bool: ...

class RxRing(Ring):
    capsule: Any
    def __init__(
        self,
        memory: Memory,
        queue: QueueAddresses,
        *,
        event_idx: bool,
        indirect: bool,
        header_len: int,
        mergeable: bool,
        offloads: int,
    ) -> None: ...
    def publish(self) -> bool: ...
