"""Kill an extraction with SIGKILL at random moments, resume, and compare every byte with an uninterrupted run."""

import random
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.common import keep, scratch

ROUNDS = 30


def run(rounds: int = ROUNDS, seed: int = 0) -> dict[str, int]:
    """Kill `rounds` times over several lakes; print how far each got and whether the bytes agree."""
    sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
    from tiny import conllu, make_model, some_sentences

    rng = random.Random(seed)
    kills = lakes = 0
    with scratch() as folder:
        base = Path(folder)
        model = make_model(base / "model")
        treebank = base / "t.conllu"
        treebank.write_text(conllu(some_sentences(600)), encoding="utf-8")

        def command(root: Path) -> list[str]:
            return [
                sys.executable, "-m", "neuronlake.cli.main", "extract", str(root), "--model", str(model), "--conllu",
                str(treebank), "--block-rows", "256", "--batch-tokens", "32",
            ]  # fmt: skip

        def contents(root: Path) -> dict[str, bytes]:
            return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}

        start = time.monotonic()
        subprocess.run(command(base / "whole.lake"), check=True, capture_output=True)
        whole = time.monotonic() - start
        expected = contents(base / "whole.lake")
        root = base / "killed-0.lake"
        while kills < rounds:
            process = subprocess.Popen(command(root), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            try:
                # most of a run is imports: aim at the part that writes
                process.wait(timeout=rng.uniform(0.3 * whole, 0.95 * whole))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                kills += 1
                continue
            assert process.returncode == 0
            lakes += 1
            assert contents(root) == expected, "the resumed lake differs"
            root = base / f"killed-{lakes}.lake"
        subprocess.run(command(root), check=True, capture_output=True)
        assert contents(root) == expected, "the resumed lake differs"
    result = {"kills": kills, "lakes_compared": lakes + 1, "differences": 0}
    print(f"{kills} kills over {lakes + 1} lakes: every finished lake is byte-identical to the uninterrupted one")
    keep("kill", result)
    return result
