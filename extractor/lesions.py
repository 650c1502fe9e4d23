"""Measure what lesions do to the prediction of the next word, run by run, and keep every finished run."""

import hashlib
import io
import json
import time
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neuronlake.extractor.lesion_model import Lesion, LesionModel, Outcome
from neuronlake.extractor.lesion_text import LesionText
from neuronlake.extractor.source import ModelSource
from neuronlake.store.errors import InputError
from neuronlake.store.files import make_folder, write_file
from neuronlake.store.lake import Lake
from neuronlake.store.layout import DEFAULT_SITE

RUNS = "runs"
"""Folder with one file per finished run."""


@dataclass(frozen=True, kw_only=True)
class LesionRuns:
    """Sums over targets of every run; run 0 is the clean one, run i + 1 the i-th lesion."""

    log_loss: NDArray[np.float64] = field(repr=False)
    """Sum of −log p of the targets, (runs, documents, tags)."""
    hits: NDArray[np.int64] = field(repr=False)
    """Targets that were the most probable token, likewise."""
    reused: int
    """Runs that were there already."""
    passes: float
    """What was computed, in forward passes through all layers."""
    clean_s: float
    """Seconds of the clean run."""
    seconds: float
    """Of everything."""
    skipped: float
    """Share of the layers of the lesioned runs that were not computed, since nothing had changed there yet."""


def check_model(lake: Lake, source: ModelSource) -> None:
    """Refuse a lake of another model, or one without neurons.

    Raises
    ------
    InputError
    """
    made_by = lake.spec.model
    if source.sha256 != made_by.get("sha256"):
        raise InputError(
            f"{lake.path} was made by {made_by.get('name')} (sha256 {str(made_by.get('sha256'))[:16]}…), "
            f"not by {source.name} (sha256 {source.sha256[:16]}…): give --model the weights it was made with"
        )
    if DEFAULT_SITE not in lake.sites:
        raise InputError(f"{lake.path} has no site {DEFAULT_SITE} ({', '.join(lake.sites)}): lesions are of MLP neurons")


def measure_lesions(
    model: LesionModel,
    text: LesionText,
    lesions: Sequence[Lesion],
    *,
    folder: Path | None = None,
    model_sha256: str = "",
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> LesionRuns:
    """Run the model with every lesion once, and without any.

    Parameters
    ----------
    folder
        Where finished runs are kept and found again (``runs/``); None keeps nothing.
    model_sha256
        Of the weights: a run is used again only for the same weights, precision, text and lesion.
    progress
        Called with (layers × batches done, in all), which takes about as long as it is.

    Raises
    ------
    InputError
        When a log-loss is not finite, or the model is not built as expected.
    StorageError
        When a run cannot be kept.
    """
    began = time.monotonic()
    about = {"model": model_sha256, "text": text.digest, **model.provenance()}
    names = [_name(about, lesion) for lesion in lesions]
    # a lesion may be wanted twice: as a tag's own and at one of its doses
    found = {name: kept for name in set(names) if folder is not None and (kept := _read(folder, name, text)) is not None}
    todo = list({name: lesion for name, lesion in zip(names, lesions, strict=True) if name not in found}.items())
    reused = len(found)
    done = 0

    def advance(layers: int) -> None:
        nonlocal done
        done += layers
        progress(done, total)

    starts = [lesion.first for _, lesion in todo]
    total = 0
    for layers in model.prepare(text, starts):
        total = model.batches * (model.layers + sum(model.layers - model.start(lesion) for _, lesion in todo))
        advance(layers)
    clean_s = time.monotonic() - began
    computed = model.layers
    for name, lesion in todo:
        for step in model.run(lesion):
            if isinstance(step, Outcome):
                found[name] = _sums(text, step)
            else:
                advance(step)
        computed += model.layers - model.start(lesion)
        if folder is not None:
            _write(folder, name, found[name])
    runs = [_sums(text, model.clean), *(found[name] for name in names)]
    return LesionRuns(
        log_loss=np.stack([run[0] for run in runs]),
        hits=np.stack([run[1] for run in runs]).astype(np.int64),
        reused=reused,
        passes=computed / model.layers,
        clean_s=clean_s,
        seconds=time.monotonic() - began,
        skipped=1 - (computed - model.layers) / (model.layers * len(todo)) if todo else 0.0,
    )


def _sums(text: LesionText, outcome: Outcome) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    return text.sums(outcome.log_loss), text.sums(outcome.hits)


def _name(about: dict[str, Any], lesion: Lesion) -> str:
    """Name of a run: everything that its sums depend on."""
    found = hashlib.sha256(json.dumps(about, sort_keys=True).encode())
    for layer in sorted(lesion.neurons):
        found.update(np.int64(layer).tobytes() + lesion.neurons[layer].astype(np.int64).tobytes())
        found.update(lesion.values[layer].astype(np.float32).tobytes())
    return found.hexdigest()[:24]


def _write(folder: Path, name: str, sums: tuple[NDArray[np.float64], NDArray[np.float64]]) -> None:
    data = io.BytesIO()
    np.savez_compressed(data, log_loss=sums[0], hits=sums[1])
    make_folder(folder / RUNS)
    write_file(folder, f"{RUNS}/{name}.npz", [data.getvalue()])


def _read(folder: Path, name: str, text: LesionText) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
    """Return a kept run; a damaged one (its zip has checksums) is as good as none."""
    try:
        with np.load(io.BytesIO((folder / RUNS / f"{name}.npz").read_bytes()), allow_pickle=False) as kept:
            log_loss, hits = (kept[array] for array in ("log_loss", "hits"))
    except (OSError, ValueError, KeyError, zipfile.BadZipFile):
        return None
    shape = (len(text.documents), len(text.tags))
    return (log_loss, hits) if log_loss.shape == hits.shape == shape else None
