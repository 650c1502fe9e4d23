"""Small lakes to be copied, merged and dropped from, and the same under a SIGKILL at any call that changes a file."""

import dataclasses
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from faults import Action, Call, Faults, at, die
from forks import ForkServer
from lakes import make_spec, plan_lake, random_sentences, write_blocks
from numpy.typing import NDArray

from neuronlake.cli.main import main
from neuronlake.store import Lake, open_lake, verify
from neuronlake.store.copying import copy_lake
from neuronlake.store.dropping import drop_sites
from neuronlake.store.kept import KEPT
from neuronlake.store.merging import merge_lakes

SITES = {"mlp.post": 10, "resid.post": 7}


def text_lake(
    root: Path,
    seed: int,
    *,
    tokens: int = 150,
    encoding: str = "float16",
    tags: tuple[str, ...] = ("ADJ", "NOUN", "VERB"),
    blocks: list[int] | None = None,
    plan: dict[str, Any] | None = None,
    model: dict[str, Any] | None = None,
) -> Lake:
    """A lake of a made-up text: 2 layers, two sites, blocks of 64 rows, of which all or some are committed."""
    rng = np.random.default_rng(seed)
    spec = make_spec(layers=2, neurons=10, block_rows=64, chunk_neurons=4, encoding=encoding, others={"resid.post": 7})
    corpus = {"kind": "synthetic", "files": [{"name": f"text-{seed}", "sha256": f"of text {seed}"}]}
    settings = {"corpus": corpus, "context": "sentence", **(plan or {})}
    spec = dataclasses.replace(spec, plan=settings, model={**spec.model, **(model or {})})
    record, rows = plan_lake(root, spec, random_sentences(rng, tokens, tags=tags, documents=3))
    values = {site: rng.standard_normal((2, tokens, width)).astype(np.float32) for site, width in SITES.items()}
    write_blocks(root, spec, record, rows, values, blocks=blocks)
    return open_lake(root)


def tree(root: Path, *, results: bool = True) -> dict[str, bytes]:
    """Every file's content by path, with or without results that are kept."""
    return {
        path.relative_to(root).as_posix(): path.read_bytes()
        for path in root.rglob("*")
        if path.is_file() and (results or path.relative_to(root).parts[0] not in KEPT)
    }


def committed_values(lake: Lake, site: str) -> NDArray[np.float32]:
    """Every value in use, (layers, tokens, units)."""
    used = np.concatenate(
        [block * lake.block_rows + np.arange(commit.rows) for block, commit in zip(lake.blocks, lake.commits, strict=True)]
    )
    return np.stack([lake.read(layer=layer, rows=used, site=site) for layer in lake.layers])


def label(root: Path) -> None:
    """Add the label set ``mood`` of words."""
    words = open_lake(root).plan.counts["words"]
    table = root.parent / "labels.csv"
    table.write_text("word,mood\n" + "".join(f"{word},{'good' if word % 3 else ''}\n" for word in range(words)))
    assert main(["label", str(root), "--parquet", str(table), "--name", "mood"]) == 0


def move(request: dict[str, Any], decide: Callable[[Call], Action | None] = lambda call: None) -> int:
    """Do what a request says, to the lake at ``area/out.lake`` below its folder; return how many calls that took."""
    area, sources = Path(request["folder"]) / "area", [Path(path) for path in request["sources"]]
    with Faults(area, decide, sync=False) as faults:
        if request["kind"] == "copy":
            copy_lake(sources[0], area / "out.lake")
        elif request["kind"] == "merge":
            merge_lakes(area / "out.lake", sources)
        else:
            drop_sites(area / "out.lake", ["resid.post"])
    return faults.count


def move_until_killed(request: dict[str, Any]) -> None:
    """As `move`, but the process ends at a call."""
    move(request, at(request["number"], die(request["when"])))


def kill_and_finish(
    folder: Path,
    request: dict[str, Any],
    check: Callable[[Path], None],
    expected: dict[str, bytes],
    *,
    kills: int,
    begin: Callable[[Path], None] = lambda root: None,
) -> None:
    """End the process at calls that change files, from the first to the last; check what is there, and finish.

    Parameters
    ----------
    begin
        Makes what is at the lake's place before.
    check
        Gets the lake's place after each kill.
    expected
        `tree` of the finished lake.
    """

    def prepare(name: str) -> Path:
        (folder / name / "area").mkdir(parents=True)
        begin(folder / name / "area/out.lake")
        request["folder"] = str(folder / name)
        return folder / name / "area/out.lake"

    root = prepare("whole")
    calls = move(request)
    assert tree(root) == expected
    with killing_server() as server:
        for index, number in enumerate(np.linspace(1, calls - 6, kills).astype(int).tolist()):
            root = prepare(f"kill-{number}")
            server.start(**request, number=number, when=("before", "after", "within")[index % 3])
            assert server.wait() == -signal.SIGKILL, f"call {number} of {calls}"
            check(root)
            move(request)
            assert tree(root) == expected
            assert verify(root, full=True).ok
            shutil.rmtree(folder / f"kill-{number}")


def killing_server() -> ForkServer:
    """Return a server whose requests are those of `move_until_killed`."""
    return ForkServer(
        "import moving, tempfile\nfrom pathlib import Path\n"
        "work = moving.move_until_killed\n"
        "with tempfile.TemporaryDirectory() as folder: moving.text_lake(Path(folder) / 'a.lake', 0, tokens=20)\n"
    )
