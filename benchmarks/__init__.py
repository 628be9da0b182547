"""What vnic costs, measured beside a yardstick in the same run.

A benchmark is a module here with ``main(seconds) -> list[Row]``: it measures for about as long as
it is given, or as long as it sees fit when that is None, prints its table and returns the rows.
One whose name starts with an underscore helps others and is not run.
"""

import sys
from pathlib import Path

# The tests' kit fetches and drives DPDK.  Benchmarks run from a checkout, where it is at hand.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

Row = dict[str, object]
"""One line of a table, under the names that it has in ``--json``."""
