"""Run benchmarks by name: ``python -m benchmarks extraction memory``; ``compare`` is what `make bench` runs."""

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

from benchmarks import common, compare, small

NAMES = (
    "alignment", "analysis", "encodings", "explorer", "extraction", "faults", "fidelity", "growth", "kill", "languages",
    "memory", "neighbours", "objects", "peers", "planted", "probes", "queries", "reference", "replay", "reproduction",
    "scaling", "statistics", "storage", "writers",
)  # fmt: skip

APART = ("filters", "vllm")  # run by name only: an hour; in the environment of `make test-vllm`
QUICK = common.ROOT / "build" / "bench-quick"


def main(arguments: Sequence[str]) -> int:
    """Run the named benchmarks one after the other, or the comparison."""
    names = (*NAMES, *APART)
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Records go into benchmarks/results, those of --quick into build/bench-quick.",
        epilog="\n".join(f"  {name:12s} {compare.about(name).partition(chr(10))[0]}" for name in ("compare", *names)),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="what to run, in this order; all: every benchmark in full")
    parser.add_argument(
        "--size", choices=small.SIZES, default="full", help="full, quick (minutes) or tiny (as the tests do)"
    )
    parser.add_argument("--quick", dest="size", action="store_const", const="quick", help="short for --size quick")
    parser.add_argument("--results", type=Path, help="folder for the records, instead of these")
    parser.add_argument(
        "--patience", type=float, default=1.0, help="factor of the comparison's limits of time (%(default)s)"
    )
    given = parser.parse_args(arguments)
    if unknown := [name for name in given.names if name not in (*names, "all", "compare")]:
        parser.error(f"no benchmark is named {unknown[0]!r}: see --help")
    if not given.names:
        parser.print_help()
        return 0
    if missing := [name for name in given.names if given.size != "full" and name not in (*small.SMALL, "compare")]:
        parser.error(f"{missing[0]} has no small form: run it in full")
    if not given.patience > 0:
        parser.error(f"--patience must be above 0, got {given.patience}")
    if given.results or given.size != "full":
        common.RESULTS = (given.results or QUICK).absolute()
    status = 0
    for name in NAMES if "all" in given.names else given.names:
        if name == "compare":
            common.corpora()  # says at once when there are none
            parts = compare.parts(given.size, common.RESULTS)
            status = compare.compare(parts, common.RESULTS / compare.FILE, patience=given.patience)
        else:
            import_module(f"benchmarks.{name}").run(**small.arguments(name, given.size))
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
