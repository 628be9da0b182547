"""For tests: a host made of software, and what every guest's driver of it can do."""

from vnic.testing.driver import Driver, DriverError
from vnic.testing.host import SoftwareHost

__all__ = ["Driver", "DriverError", "SoftwareHost"]
