from collections.abc import Sequence

from typing_extensions import Buffer
from vnic.features import Features
from vnic.testing import SoftwareHost

class Queue:
    name: str
    size: int
    n_slots: int
    capacity: int
    desc_gpa: int
    avail_gpa: int
    used_gpa: int
    armed: bool
    n_frames: int
    n_bytes: int
    def __init__(
        self,
        name: str,
        host: SoftwareHost,
        size: int,
        cuts: Sequence[int],
        n_slots: int,
        indirect: bool,
        features: Features,
    ) -> None: ...
    @property
    def n_posted(self) -> int: ...
    @property
    def pending(self) -> bool: ...
    @property
    def used_idx_now(self) -> int: ...
    def kick_due(self) -> bool: ...
    def arm(self) -> bool: ...
    def disarm(self) -> None: ...

class TxQueue(Queue):
    def reclaim(self) -> int: ...
    def send(
        self, frames: Sequence[Buffer], headers: Sequence[bytes | None] | None = None
    ) -> int: ...
    def prepare(
        self, frames: Sequence[Buffer], headers: Sequence[bytes | None] | None = None
    ) -> None: ...
    def send_bulk(self, n: int) -> int: ...

class RxQueue(Queue):
    def recv(self, limit: int) -> list[tuple[bytes, bytes]]: ...
    def recv_bulk(self, n: int) -> int: ...
