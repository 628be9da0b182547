"""Run the benchmarks of this folder, all or those named: ``python -m benchmarks [NAME ...]``."""

import importlib
import pkgutil
import sys

import benchmarks


def main(names: list[str]) -> None:
    """Call ``main()`` of each benchmark module, in alphabetical order."""
    known = sorted(m.name for m in pkgutil.iter_modules(benchmarks.__path__) if m.name[0] != "_")
    if unknown := set(names) - set(known):
        sys.exit(f"no benchmark {', '.join(sorted(unknown))}; there are: {', '.join(known)}")
    for name in names or known:
        importlib.import_module(f"benchmarks.{name}").main()


if __name__ == "__main__":
    main(sys.argv[1:])
