"""The one error for what this machine cannot give."""

from __future__ import annotations


class Missing(Exception):  # noqa: N818 - raised and read as what it says
    """Something outside the project is not to be had here; a test skips with this text.

    Nobody's fault: neither the code under test nor the kit is wrong.
    """

    def __init__(self, what: str, why: str, remedy: str) -> None:
        super().__init__(f"{what}: {why}; {remedy}")
        self.what = what
        """The thing that was asked for."""
        self.why = why
        """What happened when it was tried."""
        self.remedy = remedy
        """What would make it work."""
