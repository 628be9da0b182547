"""What vnic costs, measured beside a yardstick in the same run.

A benchmark is a module here with ``main() -> None`` that prints its table; one whose name starts
with an underscore helps others and is not run.
"""
