"""A guest for the e1000: its driver, and one that keeps to no rule."""

from vnic_e1000.testing.driver import CAPABLE, Driver
from vnic_e1000.testing.hostile import HostileGuest

__all__ = ["CAPABLE", "Driver", "HostileGuest"]
