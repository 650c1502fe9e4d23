"""Every fault at every call of a writing run, and a thousand flipped bits: nothing is lost, nothing is returned altered."""

import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import keep, scratch

FLIPS, TRUNCATIONS = 1000, 200


def run(step: int = 1, flips: int = FLIPS, truncations: int = TRUNCATIONS) -> dict[str, Any]:
    """Try every `step`-th call (and power-cut state) with every fault; raises at the first thing lost."""
    sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
    from faults import Call, Faults
    from writing_run import Work

    result: dict[str, Any] = {}
    with scratch() as folder:
        base = Path(folder)
        work = Work().prepare(base)
        (base / "log").mkdir()
        with Faults(base / "log", keep=True, sync=False) as faults:
            work.write(base / "log" / "a.lake", faults.mark)
        calls = sum(isinstance(call, Call) for call in faults.log)
        result["calls"] = calls
        print(f"a lake of 3 blocks × 2 layers is {calls} calls that change files")
        for name, part in (
            ("refused", lambda: _refused(work, base, range(0, calls, step))),
            ("killed", lambda: _killed(work, base, range(0, calls - 8, step))),
            ("power cuts", lambda: _power_cuts(work, base, faults.log, step)),
            ("damage", lambda: _damage(base, flips, truncations)),
        ):
            start = time.perf_counter()
            result[name] = {**part(), "seconds": round(time.perf_counter() - start, 1)}
            print(f"{name}: {result[name]}")
    keep("faults", result)
    return result


@contextmanager
def _area(base: Path) -> Iterator[Path]:
    import shutil

    (base / "area").mkdir()
    yield base / "area"
    shutil.rmtree(base / "area")


def _refused(work: Any, base: Path, numbers: range) -> dict[str, int]:
    """Each call refused with each error, alone and with all that follow; short writes of several lengths."""
    from faults import ERRORS, Faults, at, no_new_threads, on, refuse, shorten, since

    from neuronlake.store import StorageError

    outcomes: Counter[str] = Counter()

    def attempt(decide: Callable[[Any], Any]) -> None:
        promised: set[int] = set()
        with _area(base) as area:
            with no_new_threads(), Faults(area, decide, sync=False):
                try:
                    work.write(area / "a.lake", lambda label: promised.add(int(label.split()[1])) if " " in label else None)
                    outcomes["did without"] += 1
                except StorageError:
                    outcomes["one clear error"] += 1
            work.check(area / "a.lake", planned=False, promised=promised)
            work.finish(area / "a.lake")
            outcomes["finished identical"] += 1

    for number in numbers:
        for code in ERRORS:
            attempt(at(number, refuse(code)))
        attempt(since(number, refuse(ERRORS[number % len(ERRORS)])))
    for count in (1, 511, 4096, 5000):
        attempt(on(".tmp", shorten(count)))
    return dict(outcomes)


def _killed(work: Any, base: Path, numbers: range) -> dict[str, int]:
    """A process ended by SIGKILL before, after and in the middle of each call."""
    from writing_run import killing_server, promises

    kills = blocks = 0
    with killing_server(work, base) as server:
        for number in numbers:
            for when in ("before", "after", "within"):
                with _area(base) as area:
                    (area / "in").mkdir()
                    root = area / "in" / "a.lake"
                    server.start(root=str(root), number=number, when=when)
                    if server.wait() != -9:
                        raise AssertionError(f"the process survived call {number}")
                    kills += 1
                    blocks += len(work.check(root, planned=(area / "planned").exists(), promised=promises(area)))
                    work.finish(root)
    return {"kills": kills, "finished identical": kills, "committed blocks found": blocks}


def _power_cuts(work: Any, base: Path, log: list[Any], step: int) -> dict[str, int]:
    """States that a power cut may leave after each call: no unsynced change kept, all, each single one, and random ones."""
    from powercut import cuts, materialise

    states = [*cuts(log, np.random.default_rng(0), random_states=2, each=True)][::step]
    blocks = 0
    for cut in states:
        with _area(base) as area:
            materialise(cut.state, area)
            blocks += len(work.check(area / "a.lake", planned=bool(cut.promised), promised=set(cut.promised)))
            work.finish(area / "a.lake")
    promised = sum(len(cut.promised) for cut in states)
    return {"states": len(states), "finished identical": len(states), "blocks promised": promised, "blocks found": blocks}


def _damage(base: Path, flips: int, truncations: int) -> dict[str, Any]:
    """Single flipped bits and truncations in files of every kind, in lakes of every encoding."""
    from faults import flip
    from lakes import synthetic_lake

    from neuronlake.store import ENCODINGS, NeuronlakeError, open_lake, verify

    rng = np.random.default_rng(0)
    counts: Counter[str] = Counter()
    kinds: Counter[str] = Counter()

    def everything(root: Path) -> list[Any]:
        lake = open_lake(root)
        tables = [lake.tokens(labels=["upos"]), lake.words(), lake.sentences()]
        return [lake.read(layer=layer) for layer in lake.layers] + tables

    for encoding in ENCODINGS:
        root = base / f"{encoding}.lake"
        synthetic_lake(root, tokens=100, encoding=encoding)
        before = everything(root)
        # by kind of file, so that the many small ones do not take all
        groups: dict[str, list[Path]] = {}
        for path in sorted(path for path in root.rglob("*") if path.is_file()):
            relative = path.relative_to(root)
            groups.setdefault(f"{relative.parts[0]}/{relative.name.split('.')[-1][:4]}", []).append(path)
        cases = ["flip"] * (flips // len(ENCODINGS)) + ["truncation"] * (truncations // len(ENCODINGS))
        for case, fault in enumerate(cases):
            kind = list(groups)[case % len(groups)]
            path = groups[kind][int(rng.integers(len(groups[kind])))]
            content = path.read_bytes()
            if fault == "flip":
                flip(path, int(rng.integers(len(content) * 8)))
            else:
                path.write_bytes(content[: int(rng.integers(len(content)))])
            try:
                found = not verify(root, full=True).ok
            except NeuronlakeError:  # the root's metadata no longer says that this is a lake
                found = True
            try:
                after = everything(root)
                same = all(
                    np.array_equal(old, new) if isinstance(old, np.ndarray) else old.equals(new)
                    for old, new in zip(before, after, strict=True)
                )
                counts["read as before" if same else "RETURNED ALTERED"] += 1
            except NeuronlakeError:
                counts["refused to read"] += 1
            counts[fault] += 1
            counts["found by verify"] += found
            kinds[kind] += 1
            path.write_bytes(content)
        if not verify(root, full=True).ok:
            raise AssertionError("the damage was not undone")
    if counts["found by verify"] != counts["flip"] + counts["truncation"] or counts["RETURNED ALTERED"]:
        raise AssertionError(f"damage was missed: {dict(counts)}")
    return {**counts, "kinds of files": len(kinds)}
