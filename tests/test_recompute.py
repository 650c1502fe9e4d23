"""`verify --recompute`: an honest lake comes out identical, an altered one is caught though every checksum is right."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from lakes import forge_commit, synthetic_lake
from tiny import conllu, make_model, some_sentences

from neuronlake.cli.main import main
from neuronlake.extractor import ConlluCorpus, ExtractSettings, ModelSource, extract, resolve_model
from neuronlake.extractor.recompute import distances, recompute, tolerance
from neuronlake.store import BlockWriter, DamageError, InputError, Lake, open_lake, verify
from neuronlake.store.commits import read_commit
from neuronlake.store.files import write_file

ENCODINGS = ("float32", "float16", "bfloat16", "int8a")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> ModelSource:
    return resolve_model(str(make_model(tmp_path_factory.mktemp("model"))))


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory, source: ModelSource) -> dict[str, Path]:
    """A lake per encoding."""
    folder = tmp_path_factory.mktemp("lakes")
    (folder / "tiny.conllu").write_text(conllu(some_sentences(60)), encoding="utf-8")
    corpus = ConlluCorpus(paths=(folder / "tiny.conllu",))
    for encoding in ENCODINGS:
        extract(
            folder / f"{encoding}.lake",
            corpus,
            source,
            ExtractSettings(encoding=encoding, block_rows=256, batch_tokens=96),
        )
    return {encoding: folder / f"{encoding}.lake" for encoding in ENCODINGS}


@pytest.fixture
def root(pristine: dict[str, Path], tmp_path: Path) -> Path:
    copy = tmp_path / "a.lake"
    shutil.copytree(pristine["float16"], copy)
    return copy


def rewrite(root: Path, block: int, change) -> Lake:  # type: ignore[no-untyped-def]
    """Replace a committed block's values by ``change(layer, values)``, with valid checksums and the old provenance."""
    lake, commit = open_lake(root), read_commit(root, block)
    with BlockWriter(root, lake.spec) as writer:
        buffer = writer.buffer(commit.rows)
        rows = np.arange(commit.rows)
        for layer in lake.layers:
            values = change(layer, lake.read_block(layer=layer, block=block))
            buffer.put(lake.sites[0], layer, np.ascontiguousarray(values), rows, rows)
        writer.submit(block, commit.rows, buffer, commit.provenance)
    assert verify(root, full=True).ok, "the point is that no checksum tells"
    return open_lake(root)


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_an_honest_lake_is_identical(pristine: dict[str, Path], source: ModelSource, encoding: str) -> None:
    before = torch.get_num_threads()
    lake = open_lake(pristine[encoding])
    report = recompute(lake.path, source, blocks=99, seed=0)
    assert report.ok
    assert [audit.block for audit in report.blocks] == list(lake.blocks)
    assert len(report.blocks) > 2
    for audit, commit in zip(report.blocks, lake.commits, strict=True):
        assert (audit.identical, audit.differing, audit.largest, audit.typical) == (True, 0, 0, 0)
        assert (audit.rows, audit.provenance_differences) == (commit.rows, ())
    assert torch.get_num_threads() == before
    assert not verify(lake.path, full=True).unknown_files, "nothing is left in the lake"


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_another_blocks_values_are_caught(
    pristine: dict[str, Path], source: ModelSource, tmp_path: Path, encoding: str
) -> None:
    root = tmp_path / "a.lake"
    shutil.copytree(pristine[encoding], root)
    lake = open_lake(root)
    other = {layer: lake.read_block(layer=layer, block=0) for layer in lake.layers}
    rewrite(root, 1, lambda layer, values: other[layer])
    report = recompute(root, source, blocks=99, seed=0)
    assert not report.ok
    assert [audit.block for audit in report.blocks if not audit.ok] == [1]
    assert [audit.block for audit in report.blocks if not audit.identical] == [1]
    (bad,) = (audit for audit in report.blocks if not audit.ok)
    assert bad.differing > 0.5
    assert bad.typical > 0.5
    assert bad.typical > 10 * bad.tolerance


def test_one_altered_value_is_caught(root: Path, source: ModelSource) -> None:
    lake = open_lake(root)

    def one_value(layer, values):  # type: ignore[no-untyped-def]
        values[5, 7] += 0.05 * np.abs(values).max() if layer == 1 else 0
        return values

    before = read_commit(root, 1).files
    rewrite(root, 1, one_value)
    after = read_commit(root, 1).files
    assert [record.path for record, old in zip(after, before, strict=True) if record != old] == [before[1].path]
    (audit,) = (audit for audit in recompute(root, source, blocks=99, seed=0).blocks if audit.block == 1)
    assert (audit.ok, audit.identical, audit.largest_layer) == (False, False, 1)
    assert audit.largest == pytest.approx(0.05, abs=2e-3)
    assert audit.differing == pytest.approx(1 / (audit.rows * lake.neurons * len(lake.layers)))


def test_distances_by_hand() -> None:
    stored = np.array([[3, 0, 0, 100], [4, 0, 0, 0]], dtype=np.float32)
    again = np.array([[3, 0, 0, 100], [4.5, 0, 0, 0]], dtype=np.float32)
    assert distances(stored, again) == (0.005, 0.0)
    assert distances(stored[:, :1], again[:, :1]) == (0.125, pytest.approx(0.1))
    assert distances(stored[:, 1:3], stored[:, 1:3] + 1) == (np.inf, np.inf)
    # a huge activation hides that all else is wrong from the first number, not from the second
    wrong = stored.copy()
    wrong[:, :3] = [[0.1, 0.1, 0.1], [0.1, 0.1, 0.1]]
    furthest, typical = distances(stored, wrong)
    assert furthest < 0.05
    assert typical > 0.9


def test_other_batches_and_versions_agree_within_rounding(
    pristine: dict[str, Path], source: ModelSource, tmp_path: Path
) -> None:
    """A commit that names another batch size: other last bits, within tolerance, and said so."""
    root = tmp_path / "a.lake"
    shutil.copytree(pristine["float32"], root)
    commit = read_commit(root, 1)
    forge_commit(root, dataclasses.replace(commit, provenance={**commit.provenance, "batch_tokens": 1, "torch": "1.0"}))
    report = recompute(root, source, blocks=99, seed=0)
    (audit,) = (audit for audit in report.blocks if audit.block == 1)
    assert audit.ok
    assert not audit.identical
    assert 0 < audit.largest <= audit.tolerance == tolerance(open_lake(root))
    assert audit.provenance_differences == (f"torch: 1.0 then, {torch.__version__} now",)


def test_the_sample_follows_the_seed(root: Path, source: ModelSource) -> None:
    blocks = open_lake(root).blocks
    chosen = {seed: [audit.block for audit in recompute(root, source, blocks=1, seed=seed).blocks] for seed in range(4)}
    assert [audit.block for audit in recompute(root, source, blocks=1, seed=2).blocks] == chosen[2]
    assert len({tuple(some) for some in chosen.values()}) > 1
    assert all(len(some) == 1 and some[0] in blocks for some in chosen.values())


def test_what_cannot_be_recomputed_is_refused(root: Path, source: ModelSource, tmp_path: Path) -> None:
    other = resolve_model(str(make_model(tmp_path / "finetuned", seed=1)))
    with pytest.raises(InputError, match=r"was made by model\S* \(sha256 .*not by finetuned \(sha256"):
        recompute(root, other, blocks=1, seed=0)
    with pytest.raises(InputError, match="at least 1, got 0"):
        recompute(root, source, blocks=0, seed=0)
    synthetic_lake(tmp_path / "synthetic.lake")
    with pytest.raises(InputError, match="was made by synthetic"):
        recompute(tmp_path / "synthetic.lake", source, blocks=1, seed=0)
    for block in open_lake(root).blocks:
        commit = read_commit(root, block)
        forge_commit(root, dataclasses.replace(commit, provenance={"backend": "import"}))
    with pytest.raises(InputError, match="does not say in which batches"):
        recompute(root, source, blocks=1, seed=0)
    shutil.rmtree(root / "commits")
    with pytest.raises(InputError, match="no committed block"):
        recompute(root, source, blocks=1, seed=0)


def test_a_damaged_block_is_damage_not_a_difference(root: Path, source: ModelSource) -> None:
    path = "activations/mlp.post/0/c.1.0"
    data = bytearray((root / path).read_bytes())
    data[10] ^= 1
    write_file(root, path, [bytes(data)])
    with pytest.raises(DamageError, match=r"c.1.0 does not match its checksum"):
        recompute(root, source, blocks=99, seed=0)


def test_the_command(root: Path, source: ModelSource, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    model = str(source.folder)
    assert main(["verify", str(root), "--recompute", "1", "--model", model, "--seed", "3"]) == 0
    out = capsys.readouterr().out
    assert "identical, byte for byte" in out
    assert "1 blocks computed again (--seed 3)" in out
    lake = open_lake(root)
    for block in lake.blocks[1:]:
        rewrite(root, block, lambda layer, values: values[::-1])
    rewrite(root, 0, lambda layer, values: values * np.float32(1.5))
    assert main(["verify", str(root), "--recompute", "1", "--model", model, "--json"]) == 1
    record = json.loads(capsys.readouterr().out)
    assert record["ok"] is False
    assert record["damage"] == []
    assert record["recompute"]["blocks"][0]["ok"] is False
    for arguments, message in {
        ("--recompute", "1"): "--recompute needs the model",
        ("--recompute", "0", "--model", model): "at least 1",
        ("--recompute", "1", "--repair", "--model", model): "not allowed with argument",
        ("--model", model): "--model has no effect without --recompute",
        ("--seed", "3"): "--seed has no effect without --recompute",
        ("--recompute", "1", "--model", model, "--seed", "-3"): "at least 0",
        ("--recompute", "1", "--model", str(tmp_path / "nowhere")): "no model at",
        ("--recompute", "1", "--model", model, "--device", "tpu"): "device",
    }.items():
        try:
            code = main(["verify", str(root), *arguments])
        except SystemExit as stop:
            code = int(stop.code or 0)
        captured = capsys.readouterr()
        assert code == 2, arguments
        lines = [line for line in captured.err.splitlines() if not line.endswith("…")]
        assert len(lines) == 1
        assert message in lines[0]
