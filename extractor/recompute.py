"""Audit a lake: compute a sample of its blocks again and compare.

A block is a pure function of plan, model and batch size, so that on the same hardware and library versions its files come
out with the same bytes; elsewhere the values agree within rounding.
"""

import contextlib
import itertools
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neuronlake.extractor.capture import MakeBatches, TransformersEngine, text_batches
from neuronlake.extractor.corpora.audio import AudioCorpus
from neuronlake.extractor.engines import extract_block
from neuronlake.extractor.model import PACKED, Model, choose_device
from neuronlake.extractor.reading import SpeechReader
from neuronlake.extractor.source import ModelSource
from neuronlake.extractor.speech import FrontEnd
from neuronlake.store.commits import Commit, read_commit
from neuronlake.store.create import create_lake
from neuronlake.store.errors import DamageError, InputError
from neuronlake.store.files import file_checksum
from neuronlake.store.lake import Lake, open_lake
from neuronlake.store.objects import LakeName, LakePath
from neuronlake.store.plan_record import publish_plan
from neuronlake.store.writer import BlockWriter

# Largest difference that another order of summation may make, relative to a layer's largest value: 1,024 unit roundoffs of
# float32, 32 of the 16-bit types. Measured on 1,000 tokens of SmolLM2-135M, batches of 64 against 512 tokens: 2.8e-6 in
# float32, 3.2e-2 in bfloat16. Values of other tokens are 1.0 apart.
_COMPUTE_NOISE = {"float32": 2.0**-14, "float16": 2.0**-6, "bfloat16": 2.0**-3}
# One step of the encoding at its largest value: two sums that differ in the last bit may round to neighbouring codes.
_ENCODING_STEP = {"float32": 2.0**-23, "float16": 2.0**-10, "bfloat16": 2.0**-7}
_COARSEST_STEP = 2.0**-5  # 8-bit codes: two of 127 steps, rounded up (measured between batch sizes: 4.2e-3)


def tolerance(lake: Lake) -> float:
    """Return the largest difference that passes, relative to the layer's largest magnitude in the block.

    It is the noise of the forward pass in the lake's compute precision plus one step of its encoding at the largest value.
    """
    noise = _COMPUTE_NOISE.get(str(lake.spec.capture["dtype"]), max(_COMPUTE_NOISE.values()))
    return noise + _ENCODING_STEP.get(lake.encoding, _COARSEST_STEP)


@dataclass(frozen=True, kw_only=True)
class BlockAudit:
    """A block beside its recomputation."""

    block: int
    rows: int
    identical: bool
    """Every file of the block has the same bytes."""
    provenance_differences: tuple[str, ...]
    """What differs between the two runs (``torch: 2.8 then, 2.9 now``); empty: hardware kind, threads and versions agree."""
    differing: float
    """Share of the block's values that differ at all."""
    largest: float
    """Largest difference, relative to its layer's largest magnitude in the block."""
    largest_layer: int
    typical: float
    """Relative Euclidean distance of a neuron's column, ``‖a − b‖ / ‖b‖`` with b as stored: the median over a layer's
    neurons, of the worst layer. Finds what a few huge activations would hide from `largest`."""
    tolerance: float
    """Of `largest` and of `typical`."""

    @property
    def ok(self) -> bool:
        """Whether both distances are within rounding."""
        return self.identical or (self.largest <= self.tolerance and self.typical <= self.tolerance)

    def as_dict(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {**self.__dict__, "provenance_differences": list(self.provenance_differences), "ok": self.ok}


@dataclass(frozen=True, kw_only=True)
class AuditReport:
    """What `recompute` found."""

    lake: LakePath
    seed: int
    """Of the choice of blocks."""
    blocks: tuple[BlockAudit, ...]

    @property
    def ok(self) -> bool:
        """Whether every block that was computed again agrees with what is stored."""
        return all(block.ok for block in self.blocks)

    def as_dict(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {
            "lake": str(self.lake),
            "seed": self.seed,
            "ok": self.ok,
            "blocks": [block.as_dict() for block in self.blocks],
        }


def recompute(
    lake: LakeName,
    source: ModelSource,
    *,
    blocks: int,
    seed: int,
    device: str = "auto",
    trust_remote_code: bool = False,
    audio: AudioCorpus | None = None,
    say: Callable[[str], None] = lambda message: None,
) -> AuditReport:
    """Extract some committed blocks again, into a temporary folder, and compare them with what is stored.

    Each is computed with the batch size and the number of threads that its commit records.

    Parameters
    ----------
    blocks
        How many, chosen at random without repetition; all if there are not that many.
    seed
        Of that choice.
    device
        ``auto`` takes the kind that computed the block, if it is there.
    audio
        Of a speech lake: the tables that it was made from, beside their audio files.
    say
        Called with one line before each step that takes long.

    Raises
    ------
    InputError
        When the lake was made by another model, holds no committed block, or a block's batch size is not on record; when the
        sound of a speech lake is missing or has changed.
    DamageError
        When a file of a chosen block does not match its checksum.
    StorageError
        When the temporary folder has no room for one block.
    """
    stored = open_lake(lake)
    if blocks < 1:
        raise InputError(f"the number of blocks to recompute must be at least 1, got {blocks}")
    if not stored.blocks:
        raise InputError(f"{stored.path} has no committed block to recompute")
    made_by = stored.spec.model
    if source.sha256 != made_by.get("sha256"):
        raise InputError(
            f"{stored.path} was made by {made_by.get('name')} (sha256 {str(made_by.get('sha256'))[:16]}…), "
            f"not by {source.name} (sha256 {source.sha256[:16]}…): give --model the weights it was made with"
        )
    chosen = np.random.default_rng(seed).choice(stored.blocks, size=min(blocks, len(stored.blocks)), replace=False)
    commits = [read_commit(stored.path, int(block)).without(stored.plan.dropped) for block in sorted(chosen)]
    for commit in commits:
        _check(stored, commit)
    batches = _batches(stored, source, audio, trust_remote_code)
    models: dict[tuple[str, bool], Model] = {}
    audits = []
    for number, commit in enumerate(commits, 1):
        where, packed = _device(device, commit.provenance), commit.provenance.get("linear") == PACKED
        if (where, packed) not in models:
            say(f"loading {source.name}")
            models[where, packed] = Model.load(
                source,
                device=where,
                dtype=stored.spec.capture["dtype"],
                trust_remote_code=trust_remote_code,
                sites=stored.sites,
                module=stored.spec.capture.get("module"),
                packed=packed,
            )
        say(f"computing block {commit.block} again ({number} of {len(commits)})")
        audits.append(_audit(stored, commit, models[where, packed], batches))
    return AuditReport(lake=stored.path, seed=seed, blocks=tuple(audits))


def _check(lake: Lake, commit: Commit) -> None:
    """Refuse a block that cannot be computed again, or whose files are not those that were committed."""
    if not isinstance(commit.provenance.get("batch_tokens"), int):
        raise InputError(
            f"block {commit.block} of {lake.path} does not say in which batches it was computed: it was not made by "
            "`neuronlake extract`"
        )
    for record in commit.files:
        try:
            intact = file_checksum(lake.path / record.path) == (record.bytes, record.xxh3)
        except OSError as error:
            raise DamageError(
                f"{lake.path / record.path} cannot be read: {error.strerror}; see `neuronlake verify`"
            ) from None
        if not intact:
            raise DamageError(f"{lake.path / record.path} does not match its checksum; see `neuronlake verify --full`")


def _device(asked: str, provenance: Mapping[str, Any]) -> str:
    return choose_device("cpu" if asked == "auto" and provenance.get("device") == "cpu" else asked)


def _batches(lake: Lake, source: ModelSource, audio: AudioCorpus | None, trust_remote_code: bool) -> MakeBatches:
    """Return what makes a block's forward passes, as when it was extracted."""
    if lake.plan.unit != "frame":
        return text_batches
    if audio is None:
        raise InputError(f"{lake.path} is of speech, and its sound is not in it: name the tables it was made from (--audio)")
    reader = SpeechReader(FrontEnd.load(source, trust_remote_code=trust_remote_code), audio.locate)
    for name, now in reader.identity().items():
        if (then := lake.spec.plan[name]) != now:
            raise InputError(f"{source.name}: its {name} is {now}, the lake was made with {then}: put the files back")
    return reader.batches


def _audit(lake: Lake, commit: Commit, model: Model, batches: MakeBatches) -> BlockAudit:
    batch_tokens = int(commit.provenance["batch_tokens"])
    engine = TransformersEngine(model, batch_tokens=batch_tokens, batches=batches)
    with (
        contextlib.closing(engine),
        _threads(commit.provenance.get("threads") if model.device.type == "cpu" else None) as threads,
    ):
        now = {**engine.provenance(), "lake": lake.fingerprint}
        if threads is not None:
            now["threads"] = threads
        with tempfile.TemporaryDirectory(prefix="neuronlake-recompute-") as folder:
            scratch = Path(folder)
            create_lake(scratch, lake.spec)
            publish_plan(scratch, lake.spec, lake.plan)
            with BlockWriter(scratch, lake.spec, overlap_encoding=engine.overlaps, index=False) as writer:
                extract_block(
                    lake.path,
                    lake.plan,
                    engine,
                    commit.block,
                    writer,
                    provenance=now,
                    progress=lambda tokens: None,
                )
            again = read_commit(scratch, commit.block)
            return _compare(lake, commit, open_lake(scratch), again)


@contextlib.contextmanager
def _threads(recorded: Any) -> Iterator[int | None]:
    """Compute with the number of threads on record: it decides how sums are split, and with that the last bits."""
    import torch

    if not isinstance(recorded, int):
        yield None
        return
    before = torch.get_num_threads()
    torch.set_num_threads(recorded)
    try:
        yield recorded
    finally:
        torch.set_num_threads(before)


def _compare(lake: Lake, then: Commit, scratch: Lake, now: Commit) -> BlockAudit:
    differing, largest, largest_layer, typical = 0, 0.0, lake.layers[0], 0.0
    identical = (then.rows, set(then.files)) == (now.rows, set(now.files))  # by checksum
    if not identical:
        for site, layer in itertools.product(lake.sites, lake.layers):
            # (block rows, neurons); padding rows are zero in both
            stored = lake.read_block(site=site, layer=layer, block=then.block)
            again = scratch.read_block(site=site, layer=layer, block=now.block)
            differing += int(np.count_nonzero(stored != again))
            furthest, middle = distances(stored, again)
            if furthest > largest:
                largest, largest_layer = furthest, layer
            typical = max(typical, middle)
    return BlockAudit(
        block=then.block,
        rows=then.rows,
        identical=identical,
        provenance_differences=_differences(then.provenance, now.provenance),
        differing=differing / (max(then.rows, 1) * len(lake.layers) * sum(map(lake.spec.width, lake.sites))),
        largest=largest,
        largest_layer=largest_layer,
        typical=typical,
        tolerance=tolerance(lake),
    )


def distances(stored: NDArray[np.float32], again: NDArray[np.float32]) -> tuple[float, float]:
    """Return how far two versions of one layer are apart.

    Parameters
    ----------
    stored, again : float32 (rows, neurons)

    Returns
    -------
    The largest |stored − again| relative to the largest |stored|, and the median over neurons of ‖stored − again‖ / ‖stored‖
    (a neuron that is zero in both counts as 0, one that is zero only in `stored` as infinite). In float64.
    """
    difference = np.abs(stored.astype(np.float64) - again)
    scale = float(np.abs(stored).max(initial=0.0))
    furthest = float(difference.max(initial=0.0))
    apart, length = np.linalg.norm(difference, axis=0), np.linalg.norm(stored.astype(np.float64), axis=0)
    ratio = np.divide(apart, length, out=np.where(apart > 0, np.inf, 0.0), where=length > 0)
    return (furthest / scale if scale else float(np.inf if furthest else 0.0)), float(np.median(ratio))


def _differences(then: Mapping[str, Any], now: Mapping[str, Any]) -> tuple[str, ...]:
    # Blocks of older versions lack some fields: what is not on record is not known to differ.
    shared: Sequence[str] = [key for key in now if key in then and key != "lake"]
    return tuple(f"{key}: {then[key]} then, {now[key]} now" for key in shared if then[key] != now[key])
