"""The store against a plain in-memory model: any shape, encoding, selection and history of commits."""

import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import zarr
from faults import flip
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from lakes import foreign_values, make_spec, plan_lake, random_sentences
from numpy.typing import NDArray

import neuronlake.store.layout as layout
from neuronlake.store import (
    ENCODINGS,
    ActivationError,
    BlockWriter,
    DamageError,
    InputError,
    Lake,
    LakeSpec,
    create_lake,
    open_lake,
    verify,
)

DTYPES: dict[str, Any] = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}
"""Independent casts: NumPy's own, and that of the package that JAX and tensorstore use."""
EXACT = [name for name, encoding in ENCODINGS.items() if not encoding.quantised]
LOSSY = [name for name, encoding in ENCODINGS.items() if encoding.quantised]
SITES = ("mlp.post", "attn.out")


def cast(values: NDArray[np.float32], encoding: str) -> NDArray[np.float32]:
    """What an exact encoding must give back."""
    return values.astype(DTYPES[ENCODINGS[encoding].values]).astype(np.float32)


def same_bits(found: NDArray[np.float32], expected: NDArray[np.float32]) -> None:
    """Equal, signs of zeros and subnormals included."""
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found.view(np.uint32), expected.view(np.uint32))


@dataclass(frozen=True, kw_only=True)
class Shape:
    """Of a lake."""

    encoding: str
    sites: tuple[str, ...]
    layers: int
    neurons: int
    block_rows: int
    chunk_neurons: int
    tokens: int
    second: int | None = None
    """Units per layer of the second site, if not `neurons`."""

    def spec(self) -> LakeSpec:
        """Settings of the lake."""
        spec = make_spec(
            layers=self.layers,
            neurons=self.neurons,
            block_rows=self.block_rows,
            chunk_neurons=self.chunk_neurons,
            encoding=self.encoding,
        )
        widths = {self.sites[1]: self.second} if self.second and len(self.sites) > 1 else {}
        return LakeSpec(**{**spec.__dict__, "sites": self.sites, "widths": widths})


shapes = st.builds(
    Shape,
    encoding=st.sampled_from(list(ENCODINGS)),
    sites=st.sampled_from([SITES[:1], SITES[1:], SITES]),
    layers=st.integers(1, 3),
    neurons=st.integers(1, 40),
    block_rows=st.sampled_from([16, 32, 64]),
    chunk_neurons=st.sampled_from([1, 2, 4, 8, 16, 64]),
    tokens=st.integers(1, 100),
    second=st.none() | st.integers(1, 40),
)


@pytest.fixture(autouse=True)
def no_sync(monkeypatch: pytest.MonkeyPatch) -> None:
    """Durability is not what these tests are about, and hundreds of lakes are written."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


class Model:
    """A lake on the disk, and what it must hold."""

    def __init__(self, root: Path, shape: Shape, seed: int):
        self.root, self.shape, self.spec = root, shape, shape.spec()
        self.rng = np.random.default_rng(seed)
        sentences = random_sentences(self.rng, shape.tokens, tags=("A", "B"))
        record, self.rows = plan_lake(root, self.spec, sentences)
        self.blocks = record.blocks
        self.all_rows = self.blocks * shape.block_rows
        self.given: dict[int, dict[tuple[str, int], NDArray[np.float32]]] = {}
        """Committed block → (site, layer) → float32 (block rows, neurons); zeros where it is padding."""

    def values(self, site: str | None = None) -> NDArray[np.float32]:
        """Activations with everything that is awkward: zeros of both signs, subnormals, the largest, constant neurons."""
        shape = (self.shape.block_rows, self.spec.width(site or self.shape.sites[0]))
        encoding = ENCODINGS[self.shape.encoding]
        info = ml_dtypes.finfo(DTYPES[encoding.values])
        values = self.rng.standard_normal(shape) * 10.0 ** self.rng.integers(-6, 4, size=shape[1])
        if not encoding.quantised:
            awkward = [0.0, -0.0, info.smallest_subnormal, -info.smallest_subnormal, info.tiny, info.max, info.min, 1e-30]
            where = self.rng.random(shape) < 0.1
            values[where] = self.rng.choice(np.array(awkward, dtype=np.float64), size=int(where.sum()))
        constant = self.rng.random(shape[1]) < 0.1
        values[:, constant] = values[:1, constant]
        values[:, self.rng.random(shape[1]) < 0.1] = 0
        return np.clip(values, -encoding.largest, encoding.largest).astype(np.float32)

    def write(self, blocks: list[int], *, overlap: bool = True) -> None:
        """Commit blocks with new values, rows in random order and in several parts, as forward passes come."""
        with BlockWriter(self.root, self.spec, overlap_encoding=overlap, threads=2) as writer:
            for block in blocks:
                used = self.rows[self.rows // self.shape.block_rows == block] % self.shape.block_rows
                buffer = writer.buffer(len(used))
                here = {}
                for site, layer in buffer.keys:
                    values = self.values(site)
                    order = self.rng.permutation(used)
                    for part in np.array_split(order, int(self.rng.integers(1, 4))):
                        if part.size:
                            buffer.put(site, layer, np.ascontiguousarray(values[part]), np.arange(len(part)), part)
                    values[~np.isin(np.arange(len(values)), used)] = 0
                    here[site, layer] = values
                writer.submit(block, len(used), buffer, {"backend": "model"})
                self.given[block] = here

    def expected(self, site: str, layer: int) -> NDArray[np.float32]:
        """float32 (rows of the plan, neurons); NaN where nothing is committed. Of exact encodings."""
        whole = np.full((self.all_rows, self.spec.width(site)), np.nan, dtype=np.float32)
        for block, here in self.given.items():
            first = block * self.shape.block_rows
            whole[first : first + self.shape.block_rows] = cast(here[site, layer], self.shape.encoding)
        return whole

    def check(self, lake: Lake) -> None:
        """Compare every block of every layer, and the refusal of every other block."""
        assert lake.blocks == tuple(sorted(self.given))
        for site in self.shape.sites:
            for layer in range(self.shape.layers):
                for block in range(self.blocks):
                    rows = np.arange(block * self.shape.block_rows, (block + 1) * self.shape.block_rows)
                    if block not in self.given:
                        with pytest.raises(InputError, match="not extracted yet"):
                            lake.read(site=site, layer=layer, rows=rows[-1:])
                        with pytest.raises(InputError, match="not extracted yet"):
                            lake.read_block(site=site, layer=layer, block=block)
                        continue
                    found = lake.read(site=site, layer=layer, rows=rows)
                    same_bits(lake.read_block(site=site, layer=layer, block=block), found)
                    values = self.given[block][site, layer]
                    if ENCODINGS[self.shape.encoding].quantised:
                        self.check_levels(found, values, site, layer, block)
                    else:
                        same_bits(found, cast(values, self.shape.encoding))

    def check_levels(
        self, found: NDArray[np.float32], values: NDArray[np.float32], site: str, layer: int, block: int
    ) -> None:
        """Assert that an encoding that loses something stores one of the two levels nearest to each value.

        The levels are those that a foreign reader gets from the scales and the formula in the array's attributes.
        """
        array = zarr.open_array(self.root / layout.array_path(site, layer), mode="r")
        scales = zarr.open_array(self.root / str(array.attrs["scales"]), mode="r")
        unit, knee = np.moveaxis(scales[scales.attrs["layers"].index(layer), block], -1, 0)
        codes = np.tile(np.arange(128, dtype=np.float32)[:, None], (1, self.spec.width(site)))
        names = {"a": codes, "unit": unit, "knee": knee, "numpy": np}
        with np.errstate(all="ignore"):  # of codes that no value needs, and neurons that are zero throughout
            levels = np.asarray(eval(str(array.attrs["decode"]), names), dtype=np.float32)  # (codes, neurons)
        assert np.all(found[values == 0] == 0)
        assert np.all(found * values >= 0)
        for neuron in np.flatnonzero(values.any(axis=0)):
            magnitudes = np.abs(cast(values[:, neuron], self.shape.encoding))
            above = np.minimum(np.searchsorted(levels[:, neuron], magnitudes), 127)
            nearest = np.stack([levels[np.maximum(above - 1, 0), neuron], levels[above, neuron]])
            assert np.all((np.abs(found[:, neuron]) == nearest).any(axis=0)), (site, layer, block, neuron)


def fresh(folder: Path) -> Path:
    """A new place for a lake: the folder of a test is the same for all its examples."""
    return Path(tempfile.mkdtemp(dir=folder)) / "a.lake"


quick = settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])


@quick
@given(shape=shapes, seed=st.integers(0, 2**32 - 1), share=st.floats(0, 1), overlap=st.booleans())
def test_what_is_written_is_read(tmp_path: Path, shape: Shape, seed: int, share: float, overlap: bool) -> None:
    """Any shape, committed in any order and in part: exact to the encoding, and absent where nothing was committed."""
    model = Model(fresh(tmp_path), shape, seed)
    chosen = model.rng.permutation(model.blocks)[: round(share * model.blocks)]
    model.write([int(block) for block in chosen], overlap=overlap)
    model.check(open_lake(model.root))
    report = verify(model.root, full=True)
    assert report.ok
    assert report.blocks_committed == len(chosen)


def selections(length: int) -> st.SearchStrategy[Any]:
    """Rows or neurons chosen in every way that NumPy knows, as the argument and as the indices that it means."""
    bound = st.one_of(st.none(), st.integers(-length - 2, length + 2))
    inside = st.integers(0, length - 1)
    return st.one_of(
        st.none(),
        inside,
        inside.map(np.int64),
        st.slices(length),
        st.builds(slice, bound, bound, st.sampled_from([None, 1, 2, 3, -1, -2])),
        st.lists(inside, max_size=2 * length),
        st.lists(inside, max_size=20).map(lambda chosen: np.array(chosen, dtype=np.int32)),
        st.lists(st.booleans(), min_size=length, max_size=length).map(np.array),
    )


@pytest.fixture(scope="module", params=[pytest.param(name, id=name) for name in ENCODINGS])
def whole(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Model:
    shape = Shape(encoding=request.param, sites=SITES[:1], layers=1, neurons=11, block_rows=16, chunk_neurons=4, tokens=40)
    model = Model(tmp_path_factory.mktemp("whole") / "a.lake", shape, 5)
    model.write(list(range(model.blocks)))
    return model


@settings(max_examples=60)
@given(data=st.data())
def test_any_selection_is_numpys(whole: Model, data: st.DataObject) -> None:
    lake = open_lake(whole.root)
    everything = lake.read(layer=0)
    rows = data.draw(selections(whole.all_rows), label="rows")
    neurons = data.draw(selections(whole.shape.neurons), label="neurons")
    in_numpy = [slice(None) if index is None else [index] if np.ndim(index) == 0 and not isinstance(index, slice) else index
                for index in (rows, neurons)]  # fmt: skip
    in_numpy = [np.array(index, dtype=np.int64) if isinstance(index, list) else index for index in in_numpy]
    same_bits(lake.read(layer=0, rows=rows, neurons=neurons), np.ascontiguousarray(everything[in_numpy[0]][:, in_numpy[1]]))


@settings(max_examples=40)
@given(data=st.data())
def test_indices_outside_are_refused(whole: Model, data: st.DataObject) -> None:
    """Negative numbers too: they are a mistake more often than a wish."""
    lake = open_lake(whole.root)
    for argument, length in (("rows", whole.all_rows), ("neurons", whole.shape.neurons)):
        outside = st.one_of(st.integers(-(2**40), -1), st.integers(length, 2**40))
        bad = data.draw(outside)
        good = data.draw(st.lists(st.integers(0, length - 1), max_size=3))
        place = data.draw(st.integers(0, len(good)))
        for selection in (bad, [*good[:place], bad, *good[place:]], np.array([*good, bad])):
            with pytest.raises(InputError):
                lake.read(layer=0, **{argument: selection})
    for selection in (np.ones(whole.all_rows + 1, dtype=bool), [0.5], np.zeros((1, 1), dtype=np.int64)):
        with pytest.raises(InputError):
            lake.read(layer=0, rows=selection)


def test_foreign_readers_see_the_same(whole: Model) -> None:
    """zarr-python and the formula in the attributes, no code of ours."""
    lake = open_lake(whole.root)
    np.testing.assert_array_equal(foreign_values(whole.root, 0), lake.read(layer=0))
    for tile_first, values in lake.scan(lambda tile: ((tile.first_row, tile.first_neuron), tile.values.copy())):
        row, neuron = tile_first
        same_bits(values, lake.read(layer=0)[row : row + len(values), neuron : neuron + values.shape[1]].copy())


@quick
@given(
    shape=shapes,
    seed=st.integers(0, 2**32 - 1),
    bad=st.sampled_from([np.nan, -np.nan, np.inf, -np.inf, "too large"]),
)
def test_what_cannot_be_stored_is_refused_by_name(tmp_path: Path, shape: Shape, seed: int, bad: Any) -> None:
    """The error names layer, neuron and row, and the block does not come into being."""
    model = Model(fresh(tmp_path), shape, seed)
    encoding = ENCODINGS[shape.encoding]
    if bad == "too large":
        assume(encoding.values != "float32")  # nothing is larger
        # the first float32 that rounds to infinity: half a step above the largest, ties to even
        dtype = DTYPES[encoding.values]
        largest = float(ml_dtypes.finfo(dtype).max)
        bad = np.float32(largest + (largest - float(np.nextafter(dtype(largest), dtype(0)))) / 2)
    layer, site = int(model.rng.integers(shape.layers)), shape.sites[0]
    used = model.rows[model.rows < shape.block_rows]
    row, neuron = int(model.rng.choice(used)), int(model.rng.integers(shape.neurons))
    values = model.values()
    values[row, neuron] = bad
    with BlockWriter(model.root, model.spec) as writer:
        buffer = writer.buffer(len(used))
        with pytest.raises(ActivationError) as refusal:
            buffer.put(site, layer, np.ascontiguousarray(values[used]), np.arange(len(used)), used)
        assert refusal.value.row == row
        assert f"L{layer}.N{neuron} (site {site})" in str(refusal.value)
        with pytest.raises(InputError, match="was captured"):
            writer.submit(0, len(used), buffer, {})
    assert open_lake(model.root).blocks == ()


@pytest.mark.parametrize("encoding", EXACT)
def test_every_awkward_value_survives(tmp_path: Path, encoding: str) -> None:
    """Zeros of both signs, the smallest and the largest of either sign, subnormals, ties: bit for bit after the cast."""
    dtype = DTYPES[ENCODINGS[encoding].values]
    info = ml_dtypes.finfo(dtype)
    subnormal, tiny = float(info.smallest_subnormal), float(info.tiny)
    one = 1 + float(info.eps) * np.array([0.5, 1, 1.5, 2.5])
    positive = np.array(
        [0.0, subnormal, 3 * subnormal, subnormal / 2, subnormal * 0.51, tiny, tiny - subnormal, *one, float(info.max)]
    )
    values = np.concatenate([positive, -positive]).astype(np.float32)
    shape = Shape(
        encoding=encoding, sites=SITES[:1], layers=1, neurons=len(values), block_rows=16, chunk_neurons=8, tokens=5
    )
    model = Model(tmp_path / "a.lake", shape, 0)
    used = model.rows
    with BlockWriter(model.root, model.spec) as writer:
        buffer = writer.buffer(len(used))
        buffer.put(SITES[0], 0, np.tile(values, (len(used), 1)), np.arange(len(used)), used)
        writer.submit(0, len(used), buffer, {})
    found = open_lake(model.root).read(layer=0, rows=used)
    same_bits(found, np.tile(cast(values, encoding), (len(used), 1)))
    assert np.signbit(found[0, len(positive)])  # −0


@pytest.mark.parametrize("encoding", list(ENCODINGS))
def test_fill_values_are_never_read(tmp_path: Path, encoding: str) -> None:
    """A plain Zarr reader shows zeros for blocks that are not there; we refuse, in every way of reading."""
    shape = Shape(encoding=encoding, sites=SITES[:1], layers=1, neurons=5, block_rows=16, chunk_neurons=4, tokens=45)
    model = Model(tmp_path / "a.lake", shape, 1)
    assert model.blocks >= 3
    model.write([1])
    lake = open_lake(model.root)
    assert not zarr.open_array(model.root / layout.array_path(SITES[0], 0), mode="r")[:16].any()
    for rows in (0, slice(0, 16), slice(15, 17), [16, 32], None, np.arange(model.all_rows) == 40):
        with pytest.raises(InputError, match="not extracted yet"):
            lake.read(layer=0, rows=rows)
    reads: list[Any] = [
        lambda: lake.array(layer=0)[:],
        lambda: list(lake.scan(lambda tile: 0, blocks=[0])),
        lambda: lake.tokens(blocks=[2]),
    ]
    for read in reads:
        with pytest.raises(InputError, match="not extracted yet"):
            read()
    assert lake.dask(layer=0).shape[0] == 16
    assert lake.tokens().column("row").to_pylist() == list(range(16, 32))


class Store(RuleBasedStateMachine):
    """Commits, reopens, loses and damages blocks at will; what is read must always be what the model holds."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.broken: dict[Path, bytes] = {}

    @initialize(shape=shapes, seed=st.integers(0, 2**32 - 1))
    def begin(self, shape: Shape, seed: int) -> None:
        """Plan a lake."""
        self.model = Model(self.folder / "a.lake", shape, seed)
        self.lake = open_lake(self.model.root)

    def teardown(self) -> None:
        """Remove the lake."""
        shutil.rmtree(self.folder)

    @precondition(lambda self: not self.broken)
    @rule(pick=st.integers(0, 10**6), overlap=st.booleans())
    def commit(self, pick: int, overlap: bool) -> None:
        """Write a block that is missing, or one that is there again with other values."""
        self.model.write([pick % self.model.blocks], overlap=overlap)
        self.lake = open_lake(self.model.root)

    @precondition(lambda self: self.model.given and not self.broken)
    @rule(pick=st.integers(0, 10**6))
    def drop(self, pick: int) -> None:
        """Remove a commit record: the block is absent from then on, though its files are there."""
        block = sorted(self.model.given)[pick % len(self.model.given)]
        (self.model.root / layout.commit_path(block)).unlink()
        del self.model.given[block]
        self.lake = open_lake(self.model.root)
        assert verify(self.model.root).leftovers

    @rule()
    def reopen(self) -> None:
        """As the next run does."""
        create_lake(self.model.root, self.model.spec)
        self.lake = open_lake(self.model.root)

    @precondition(lambda self: self.model.given and not self.broken)
    @rule(pick=st.integers(0, 10**6), bit=st.integers(0, 10**9))
    def damage(self, pick: int, bit: int) -> None:
        """Flip a bit of a shard."""
        block = sorted(self.model.given)[pick % len(self.model.given)]
        path = self.model.root / layout.shard_path(self.model.shape.sites[0], pick % self.model.shape.layers, block)
        self.broken[path] = flip(path, bit % (path.stat().st_size * 8))

    @precondition(lambda self: self.broken)
    @rule()
    def restore(self) -> None:
        """Put the bit back."""
        for path, content in self.broken.items():
            path.write_bytes(content)
        self.broken.clear()

    @rule()
    def check(self) -> None:
        """Verify and read everything, through the lake as it was opened last."""
        report = verify(self.model.root, full=True)
        assert report.ok is not bool(self.broken)
        assert report.blocks_committed == len(self.model.given)
        if not self.broken:
            self.model.check(self.lake)
        else:
            with pytest.raises(DamageError):
                self.model.check(open_lake(self.model.root))

    @invariant()
    def blocks_are_those_committed(self) -> None:
        """The one thing that holds after every step."""
        if hasattr(self, "lake"):
            assert self.lake.blocks == tuple(sorted(self.model.given))


def test_any_history_of_commits() -> None:
    run_state_machine_as_test(Store, settings=settings(max_examples=40, stateful_step_count=15, deadline=None))


def test_the_encodings_are_all_tested() -> None:
    assert {*EXACT, *LOSSY} == set(ENCODINGS)
    assert set(EXACT) == set(DTYPES)
