"""Run benchmarks by name: ``python -m benchmarks extraction memory`` (no name: list them; ``all``: run them all)."""

import sys
from importlib import import_module

NAMES = (
    "alignment", "analysis", "encodings", "explorer", "extraction", "faults", "fidelity", "growth", "kill", "languages", "memory",
    "neighbours", "objects", "peers", "planted", "probes", "queries", "reference", "replay", "reproduction", "scaling",
    "statistics", "storage", "writers",
)  # fmt: skip

APART = ("vllm",)  # run by name only: in the environment of `make test-vllm`


def main(names: list[str]) -> int:
    """Run the named benchmarks one after the other."""
    unknown = [name for name in names if name not in (*NAMES, *APART, "all")]
    if not names or unknown:
        for name in (*NAMES, *APART):
            print(f"{name:12s} {(import_module(f'benchmarks.{name}').__doc__ or '').splitlines()[0]}")
        return 2 if unknown else 0
    for name in NAMES if "all" in names else names:
        import_module(f"benchmarks.{name}").run()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
