"""Run the benchmarks of this folder, all or those named: ``python -m benchmarks [NAME ...]``."""

import argparse
import importlib
import json
import os
import pkgutil
import platform
import time
from pathlib import Path

import benchmarks


def main() -> None:
    """Call ``main()`` of each benchmark module, in alphabetical order."""
    known = sorted(m.name for m in pkgutil.iter_modules(benchmarks.__path__) if m.name[0] != "_")
    parser = argparse.ArgumentParser(prog="benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(known)}")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows there, too")
    parser.add_argument("--seconds", type=float, metavar="N", help="measure for about N s each")
    options = parser.parse_args()
    if unknown := set(options.names) - set(known):
        parser.error(f"no benchmark {', '.join(sorted(unknown))}; there are: {', '.join(known)}")
    results: dict[str, object] = {}
    for name in options.names or known:
        results[name] = importlib.import_module(f"benchmarks.{name}").main(options.seconds)
    if options.json is not None:
        results["run"] = {
            "at": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "cpus": len(os.sched_getaffinity(0)),
            "kernel": platform.release(),
            "python": platform.python_version(),
        }
        options.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
