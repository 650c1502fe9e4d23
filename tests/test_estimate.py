"""An estimate agrees with what extraction then writes, and nonsense is refused in one line."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lakes import two_site_lake
from tiny import conllu, make_model, some_sentences

import neuronlake.store.layout as layout
from neuronlake.cli.main import main
from neuronlake.extractor import ConlluCorpus, ExtractSettings, extract, resolve_model
from neuronlake.store import ENCODINGS, Lake, open_lake
from neuronlake.store.capacity import BENCHMARKED, LakeShape, contents
from neuronlake.store.capacity_rates import measure_lake
from neuronlake.store.kept import KEPT

SITES = ("mlp.post", "resid.post")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("model"), num_hidden_layers=2)


@pytest.fixture(scope="module", params=["int8a"])
def lakes(request: Any, model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Lake, Lake]:
    """A small lake, and a larger one of other text."""
    folder = tmp_path_factory.mktemp("lakes")
    made = []
    for count in (60, 140):
        (folder / f"{count}.conllu").write_text(conllu(some_sentences(count)[count // 3 :]), encoding="utf-8")
        settings = ExtractSettings(encoding=request.param, block_rows=256, batch_tokens=96, sites=SITES)
        corpus = ConlluCorpus(paths=(folder / f"{count}.conllu",))
        extract(folder / f"{count}.lake", corpus, resolve_model(str(model)), settings)
        made.append(open_lake(folder / f"{count}.lake"))
    return made[0], made[1]


def estimate(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict[str, Any]:
    assert main(["estimate", *map(str, arguments), "--encode-rate", "1e8", "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_what_a_small_lake_says_holds_for_a_larger_one(
    lakes: tuple[Lake, Lake], model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small, large = lakes
    tokens = sum(commit.rows for commit in large.commits)
    found = estimate(
        capsys, "--model", model, "--sites", *SITES, "--tokens", tokens, "--block-rows", 256, "--encoding", large.encoding,
        "--measured", small.path,
    )  # fmt: skip
    files = [path.relative_to(large.path).as_posix() for path in large.path.rglob("*") if path.is_file()]
    own = [path for path in files if path.split("/")[0] not in KEPT]
    assert len(large.blocks) > 3
    assert found["blocks"] == len(large.blocks)
    assert found["files"]["all"] == len(own)
    assert found["files"]["shards"] == sum(path.startswith("activations/") and "/c." in path for path in own)
    assert found["values_per_token"] == 2 * (88 + 32)

    def stored(prefix: str, ending: str = "") -> int:
        named = (path for path in files if path.startswith(prefix) and path.endswith(ending))
        return sum((large.path / path).stat().st_size for path in named)

    shards = stored("activations/") - stored("activations/", "zarr.json")
    index = sum(stored(f"index/blocks-{site}") for site in SITES)
    assert found["bytes"]["shards"] == pytest.approx(shards, rel=0.05)
    assert found["bytes"]["index"] == pytest.approx(index, rel=0.1)
    # shard by shard: one of these holds an index and checksums too, of 28 bytes at most
    assert found["bytes"]["scales"] == pytest.approx(stored("scales/", ".0"), abs=28 * 4 * len(large.blocks))


def test_without_a_lake_blocks_and_files_are_right_and_bytes_of_the_right_size(
    lakes: tuple[Lake, Lake], capsys: pytest.CaptureFixture[str]
) -> None:
    _, large = lakes
    tokens = sum(commit.rows for commit in large.commits)
    found = estimate(
        capsys, "--layers", 2, "--neurons", 88, "--hidden", 32, "--sites", *SITES, "--tokens", tokens, "--block-rows", 256,
        "--encoding", large.encoding, "--sequence-tokens", 16,
    )  # fmt: skip
    assert found["blocks"] == len(large.blocks)
    activations = sum(file.bytes for commit in large.commits for file in commit.files)
    # of a random model in blocks of 256 rows, by figures of a trained one in blocks of 8,192
    assert found["encodings"][large.encoding]["activations_bytes"] == pytest.approx(activations, rel=0.35)


def test_the_lists_per_tag_and_statistics_of_a_lake_are_measured(tmp_path: Path) -> None:
    root = tmp_path / "a.lake"
    two_site_lake(root)
    assert main(["index", str(root), "--by", "upos"]) == 0
    assert main(["stats", str(root), "--by", "upos"]) == 0
    measured = measure_lake(open_lake(root)).footprint
    assert measured.lists_share not in (BENCHMARKED.lists_share, 0)
    (result,) = (root / "statistics").iterdir()
    record = json.loads((result / "record.json").read_bytes())
    size = sum(path.stat().st_size for path in result.rglob("*") if path.is_file() and path.parent != result)
    assert measured.statistics_bytes == pytest.approx(size / (len(record["tags"]) * 2 * 10), rel=0.01)


@pytest.mark.parametrize("encoding", list(ENCODINGS))
def test_memory_is_that_of_a_real_buffer(encoding: str) -> None:
    from neuronlake.store import BlockBuffer, LakeSpec

    shape = LakeShape.of(layers=3, widths={"mlp.post": 1536, "resid.post": 576}, encoding=encoding, block_rows=1024)
    spec = LakeSpec(
        model={}, capture={}, plan={}, sites=SITES, layers=(0, 1, 2), neurons=1536, block_rows=1024,
        chunk_neurons=shape.chunk_neurons, encoding=encoding, widths={"resid.post": 576},
    )  # fmt: skip
    assert shape.buffer_bytes == BlockBuffer(spec).nbytes + 3 * 2 * 1024


def test_hours_and_money_are_the_plain_arithmetic(capsys: pytest.CaptureFixture[str]) -> None:
    found = estimate(
        capsys, "--layers", 32, "--neurons", 14336, "--tokens", "100e6", "--tokens-per-second", 20000, "--gpus", 8,
        "--gpu-price", 2.5, "--bandwidth", "10Gbit", "--storage-price", 20, "--months", 3, "--egress-price", 90,
        "--cores", 4,
    )  # fmt: skip
    terabytes = found["bytes"]["all"] / 1e12
    assert found["block_rows"] == layout.default_block_rows(layers=32, neurons=14336, itemsize=2) == 2048
    assert found["extract"]["gpu_hours"] == pytest.approx(100e6 / 20000 / 3600)
    assert found["extract"]["hours"] == pytest.approx(100e6 / 160000 / 3600)
    assert found["extract"]["encoding_cores"] == pytest.approx(160000 * 32 * 14336 / 1e8)
    assert found["extract"]["bytes_per_second"] == pytest.approx(terabytes * 1e12 / (100e6 / 160000))
    assert found["extract"]["cost"] == pytest.approx(2.5 * 100e6 / 20000 / 3600)
    assert found["transfer"]["hours"] == pytest.approx(terabytes * 1e12 / (10e9 / 8) / 3600)
    assert found["transfer"]["cost"] == pytest.approx(90 * terabytes)
    assert found["keep"]["cost"] == pytest.approx(3 * 20 * terabytes)
    assert found["analyse"]["pass_hours"] == pytest.approx(100e6 * 32 * 14336 / (0.5e9 * 4) / 3600)


def test_a_model_and_the_encoder_are_timed_here(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["estimate", "--model", str(model), "--tokens", "1e4", "--measure", "0.2", "--block-rows", "256"]) == 0
    shown = capsys.readouterr().out
    assert "run here just now" in shown
    assert "measured on a core of this machine just now" in shown
    assert "2 layers × 88 at mlp.post" in shown


def test_only_the_configuration_is_read(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.json").write_bytes((model / "config.json").read_bytes())
    assert estimate(capsys, "--model", tmp_path, "--tokens", 1000)["widths"] == {"mlp.post": 88}


def test_blocks_never_exceed_what_sequences_of_that_length_leave() -> None:
    """Pack sentences as planning does and compare with the mean fill."""
    rng = np.random.default_rng(0)
    lengths, rows = rng.integers(1, 60, 20000), 512
    fill, blocks = 0, 1
    for length in lengths:
        if fill + length > rows:
            fill, blocks = 0, blocks + 1
        fill += length
    shape = LakeShape(layers=1, widths={"mlp.post": 1}, encoding="float16", block_rows=rows)
    # a sentence that is hit by a block's end is one drawn by its length
    drawn = float((lengths.astype(float) ** 2).sum() / lengths.sum())
    found = contents(shape, tokens=int(lengths.sum()), filled=rows - (drawn - 1) / 2, tags=0, footprint=BENCHMARKED)
    assert found.blocks == pytest.approx(blocks, rel=0.01)


SHAPE = ("--layers", "2", "--neurons", "10")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((*SHAPE, "--tokens", "-5"), "expected a whole number from 1 to 1e15"),
        ((*SHAPE, "--tokens", "0"), "expected a whole number"),
        ((*SHAPE, "--tokens", "1e99"), "expected a whole number"),
        ((*SHAPE, "--tokens", "nan"), "expected a whole number"),
        (("--layers", "1e14", "--neurons", "10", "--tokens", "5"), "layers must be a whole number from 1 to 10,000"),
        (("--tokens", "5"), "say which model"),
        (("--model", "/nowhere/model", "--tokens", "5"), "no model at /nowhere/model"),
        ((*SHAPE, "--tokens", "5", "--encoding", "int9"), "unknown encoding 'int9': known are float32"),
        ((*SHAPE, "--tokens", "5", "--sites", "resid.post"), "add --hidden"),
        ((*SHAPE, "--tokens", "5", "--sites", "nope"), "not known without a model"),
        ((*SHAPE, "--tokens", "5", "--bandwidth", "fast"), "expected a rate such as 10Gbit"),
        ((*SHAPE, "--tokens", "5", "--bandwidth", "10"), "expected a rate such as 10Gbit"),
        ((*SHAPE, "--tokens", "5", "--block-rows", "100"), "power of two"),
        ((*SHAPE, "--tokens", "5", "--measured", "/nowhere.lake"), "no lake at /nowhere.lake"),
        ((*SHAPE, "--tokens", "5", "--tokens-per-second", "0"), "expected a number above 0"),
        ((*SHAPE, "--tokens", "5", "--measure", "2"), "need --model"),
        ((*SHAPE, "--model", "m", "--tokens", "5"), "not both"),
    ],
)
def test_nonsense_is_refused_in_one_line(
    arguments: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        code = main(["estimate", *arguments])
    except SystemExit as left:
        code = int(str(left.code))
    error = capsys.readouterr().err
    assert code == 2
    assert message in error
    assert error.count("\n") == 1
