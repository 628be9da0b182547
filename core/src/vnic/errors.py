"""Whose fault it was.  Every error that vnic raises on purpose is one of these four.

An error's text gives the object, what happened with its values, why, and what to do.
"""


class VnicError(Exception):
    """The base of the four, for those who only want to know that it came from vnic."""


class ConfigError(VnicError):
    """The operator's: a name, an option or a file that can't mean what was meant."""


class BackendError(VnicError):
    """The host's: a descriptor, a device or a permission that the backend needs and lacks."""


class PeerError(VnicError):
    """The VMM's: a message that breaks the protocol.  It ends that session, nothing else."""


class GuestError(VnicError):
    """The guest driver's: a ring that can't be followed.  It stops that device, nothing else."""
