"""The attribution pass: what every neuron contributes to the prediction of words, summed per tag of the predicted word.

Run again, an interrupted pass goes on from what it kept, and ends with the same result.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from neuronlake.extractor.attributing import AttributionModel
from neuronlake.extractor.attribution_targets import TargetBatch, TargetLabels, Targets, choose_targets, make_batches
from neuronlake.extractor.gradients import (
    METHODS,
    QUANTITIES,
    Attributions,
    gradient_in_one_pass,
    gradient_times_activation,
    integrated_gradients,
    quadrature,
)
from neuronlake.extractor.model import choose_device
from neuronlake.extractor.source import ModelSource
from neuronlake.extractor.weights import check_model
from neuronlake.store.attribution import Attribution, Tally, find_attribution, find_begun, keep_attribution
from neuronlake.store.errors import InputError
from neuronlake.store.lake import Lake, open_lake
from neuronlake.store.lock import writing
from neuronlake.store.objects import LakeName, LakePath

# Measured on an AVX2 core with SmolLM2: a position costs 4.7 ms in a pass over 68 of them, 3.6 ms over 240.
_BATCH_TARGETS = {"cpu": 256, "cuda": 4096}
_KEEP_S = 60.0  # between two writings of what there is so far
# Of a batch's positions: a clean pass and a pass back and forth over some cost as much as one back and forth over all.
_DENSE = 0.5
WITHIN = ("sample", "layer")


@dataclass(frozen=True, kw_only=True)
class AttributionSettings:
    """How predictions are explained. All but device and memory decide the result."""

    method: str = "ig"
    """``ig``: integrated gradients per layer. ``gradient``: gradient × activation, one backward pass for all layers."""
    rule: str = "gauss"
    """Of the integral: ``gauss`` (Gauss–Legendre) or ``riemann`` (right sums, as in Dai et al. 2022)."""
    steps: int = 3
    """Points of the integral; with ``gauss`` more where `tolerance` asks for them. On SmolLM2 the sums then miss the layers'
    effects by 0.4 % (mean over layers; layer 0, whose path is rough throughout, by 9 %); without, by 31 %."""
    tolerance: float | None = 0.01
    """Of ``gauss``: where a sum misses its layer's effect by more than that share of the layer's mean effect, more points
    are taken; None takes them nowhere."""
    quantity: str = "log_probability"
    """What is explained: the next token's ``log_probability`` or ``probability``."""
    share: float = 0.05
    """A neuron is hit where its (signed) attribution is among the largest of this share, and positive."""
    within: str = "sample"
    """Among the neurons of all layers of the ``sample``, or of every ``layer`` apart."""
    per_tag: int | None = 200
    """Predictions per tag, drawn at random; None explains all."""
    seed: int = 0
    tags: tuple[str, ...] | None = None
    """Only words of these tags."""
    device: str = "auto"
    dtype: str | None = None
    """By default the lake's."""
    batch_targets: int | None = None
    """Predictions in a forward pass; 256 on a CPU, 4,096 on a GPU by default."""
    trust_remote_code: bool = False

    def __post_init__(self) -> None:
        for value, known, what in (
            (self.method, METHODS, "method"),
            (self.quantity, QUANTITIES, "quantity"),
            (self.within, WITHIN, "choice of within"),
        ):
            if value not in known:
                raise InputError(f"unknown {what} {value!r}: known are {', '.join(known)}")
        quadrature(self.rule, self.steps)
        if self.tolerance is not None and self.tolerance <= 0:
            raise InputError(f"tolerance must be above 0, got {self.tolerance}")
        if not 0 < self.share < 1:
            raise InputError(f"share must be between 0 and 1, got {self.share}")
        if self.per_tag is not None and self.per_tag < 1:
            raise InputError(f"per_tag must be at least 1, got {self.per_tag}")
        if self.batch_targets is not None and self.batch_targets < 1:
            raise InputError(f"batch_targets must be at least 1, got {self.batch_targets}")
        if self.seed < 0:
            raise InputError(f"seed must not be negative, got {self.seed}")


@dataclass(frozen=True, kw_only=True)
class AttributionReport:
    """What a pass did."""

    lake: LakePath
    attribution: Attribution
    made: bool
    """Whether anything was computed; otherwise it was there."""
    resumed: int
    """Targets that an interrupted pass had explained."""

    @property
    def completeness(self) -> float | None:
        """Mean over layers of Σ|Σ_i attribution_i − effect| / Σ|effect|; None for gradients."""
        return completeness_error(self.attribution)

    def as_dict(self) -> dict[str, Any]:
        """Return the JSON form."""
        record = {name: value for name, value in self.attribution.record.items() if name != "files"}
        return {
            "lake": str(self.lake),
            "name": self.attribution.name,
            "made": self.made,
            "resumed": self.resumed,
            "completeness_error": self.completeness,
            **record,
        }


def completeness_error(attribution: Attribution) -> float | None:
    """Mean over layers of the error relative to the effect; None for a method that promises no sum."""
    if attribution.key["method"] != "ig":
        return None
    error, effect = (np.array(attribution.record[name]) for name in ("error", "effect"))
    return float(np.mean(np.divide(error, effect, out=np.zeros_like(error), where=effect > 0)))


def attribute(
    lake: LakeName,
    source: ModelSource,
    labels: Callable[[Lake], TargetLabels],
    settings: AttributionSettings | None = None,
    *,
    say: Callable[[str], None] = lambda message: None,
    progress: Callable[[int, int], None] = lambda done, total: None,
    keep_s: float = _KEEP_S,
) -> AttributionReport:
    """Explain the predictions of words by the neurons at the position that predicts them.

    A sample is a position whose next token, in the same sequence, is the first token of a word with a tag; the position may
    be a special token. Nothing but the neurons at that position is changed.

    Parameters
    ----------
    lake
        Its folder; its committed blocks are used, their activations are not.
    source
        The model that the lake was made with.
    labels
        Gives the tags of the lake's first sub-words: ``lambda lake: token_labels(lake, "upos", subword="first")``.
    say
        Called with one line before each step that takes long.
    progress
        Called with (targets done, targets in all).
    keep_s
        Seconds between two writings of what there is so far.

    Raises
    ------
    InputError
        When the model is another one than the lake's, is quantised, or of a kind that cannot be attributed to; a tag is
        absent; or somebody else writes to the lake.
    StorageError
        When the file system refuses. What was kept before stays.
    """
    settings = settings or AttributionSettings()
    opened = open_lake(lake)
    check_model(opened, source)
    found = labels(opened)
    table = opened.tokens()
    targets = choose_targets(found, table, per_tag=settings.per_tag, seed=settings.seed, tags=settings.tags)
    kind = "cpu" if choose_device(settings.device) == "cpu" else "cuda"
    batch_targets = settings.batch_targets or _BATCH_TARGETS[kind]
    key = _key(opened, found, settings, batch_targets)
    with writing(opened.path):
        if (there := find_attribution(opened.path, key)) is not None:
            return AttributionReport(lake=opened.path, attribution=there, made=False, resumed=len(targets.line))
        say(f"loading {source.name}")
        model = AttributionModel.load(
            source, device=settings.device, dtype=key["dtype"], trust_remote_code=settings.trust_remote_code
        )
        _check_shape(opened, model)
        run = _Run(lake=opened, model=model, targets=targets, settings=settings, key=key)
        resumed = run.resume()
        if resumed:
            say(f"{resumed:,} of {len(targets.line):,} predictions are explained already")
        say(f"explaining {len(targets.line) - resumed:,} predictions")
        batches = list(make_batches(targets, table, batch_targets=batch_targets))
        return AttributionReport(
            lake=opened.path, attribution=run.finish(batches, progress, keep_s), made=True, resumed=resumed
        )


class _Run:
    """A pass under way."""

    def __init__(
        self, *, lake: Lake, model: AttributionModel, targets: Targets, settings: AttributionSettings, key: dict[str, Any]
    ):
        self._lake, self._model, self._targets, self._settings, self._key = lake, model, targets, settings, key
        self._provenance = model.provenance()
        self._tally = Tally.empty(
            tags=len(targets.tags), layers=model.layers, neurons=model.neurons, targets=len(targets.line)
        )
        scope = model.neurons * (model.layers if settings.within == "sample" else 1)
        self._strongest = max(1, round(settings.share * scope))

    def resume(self) -> int:
        """Go on from what an interrupted pass kept; return the predictions that it explained."""
        begun = find_begun(self._lake.path, self._key, self._provenance)
        if begun is not None:
            self._tally = begun.tally()
        return self._done()

    def finish(self, batches: Sequence[TargetBatch], progress: Callable[[int, int], None], keep_s: float) -> Attribution:
        """Explain what is left; what there is so far is kept every so often."""
        kept = time.monotonic()
        for batch in batches[self._tally.batches :]:
            progress(self._done(), len(self._targets.line))
            target = batch.target[batch.target >= 0]
            add(
                self._tally,
                self._explain(batch),
                target,
                self._targets.tag[target],
                strongest=self._strongest,
                within=self._settings.within,
            )
            if time.monotonic() - kept >= keep_s and self._tally.batches < len(batches):
                self._keep(finished=False)
                kept = time.monotonic()
        progress(self._done(), len(self._targets.line))
        return self._keep(finished=True)

    def _explain(self, batch: TargetBatch) -> Attributions:
        import torch

        ids, positions, following = (torch.from_numpy(each) for each in (batch.ids, batch.positions, batch.following))
        real, settings = torch.from_numpy(batch.target >= 0), self._settings
        if settings.method == "gradient" and int(real.sum()) > _DENSE * batch.ids.size:
            return gradient_in_one_pass(self._model, ids, positions, following, real, quantity=settings.quantity)
        clean = self._model.clean(ids, positions, following)
        if settings.method == "gradient":
            return gradient_times_activation(self._model, clean, real, quantity=settings.quantity)
        return integrated_gradients(
            self._model,
            clean,
            real,
            rule=settings.rule,
            steps=settings.steps,
            tolerance=_tolerance(settings),
            quantity=settings.quantity,
        )

    def _done(self) -> int:
        return int(np.count_nonzero(~np.isnan(self._tally.log_probability)))

    def _keep(self, *, finished: bool) -> Attribution:
        targets = self._targets
        names = pa.DictionaryArray.from_arrays(pa.array(targets.tag.astype(np.int32)), pa.array(targets.tags, pa.string()))
        return keep_attribution(
            self._lake.path,
            self._key,
            {
                "tags": list(targets.tags),
                "samples": targets.samples.tolist(),
                "available": targets.available.tolist(),
                "layers": list(range(self._model.layers)),
                "strongest": self._strongest,
                "model": dict(self._lake.spec.model),
                "provenance": self._provenance,
            },
            self._tally,
            pa.table({"row": pa.array(targets.row), "tag": names}),
            finished=finished,
        )


def add(
    tally: Tally,
    found: Attributions,
    target: NDArray[np.int64],
    tag: NDArray[np.int64],
    *,
    strongest: int,
    within: str,
) -> None:
    """Add a batch: hits are the `strongest` neurons of every prediction, as far as their attribution is positive.

    Of equal attributions at the edge all are hits.
    """
    flat = found.values.reshape(len(target), -1) if within == "sample" else found.values  # (predictions, [layers,] neurons)
    edge = np.partition(flat, -strongest, axis=-1)[..., -strongest, None]
    hit = ((flat >= edge) & (flat > 0)).reshape(found.values.shape)
    for place in np.unique(tag):
        mine = tag == place
        tally.hits[place] += hit[mine].sum(axis=0, dtype=np.uint32)
        tally.total[place] += found.values[mine].sum(axis=0, dtype=np.float64)
    tally.log_probability[target] = found.log_probability
    if not np.isnan(found.effect).any():
        tally.error += np.abs(found.values.sum(axis=-1, dtype=np.float64) - found.effect).sum(axis=0)
        tally.effect += np.abs(found.effect).sum(axis=0)
    tally.batches += 1


def _key(lake: Lake, labels: TargetLabels, settings: AttributionSettings, batch_targets: int) -> dict[str, Any]:
    integral: dict[str, Any] = {}
    if settings.method == "ig":
        integral = {"rule": settings.rule, "steps": settings.steps, "tolerance": _tolerance(settings)}
    return {
        "lake": lake.fingerprint,
        "blocks": list(lake.blocks),
        "by": labels.by,
        "where": labels.where,
        "added": dict(labels.added),
        "tags": None if settings.tags is None else sorted(set(settings.tags)),
        "per_tag": settings.per_tag,
        "seed": settings.seed,
        "method": settings.method,
        **integral,
        "quantity": settings.quantity,
        "share": settings.share,
        "within": settings.within,
        "dtype": settings.dtype or str(lake.spec.capture["dtype"]),
        "batch_targets": batch_targets,
    }


def _tolerance(settings: AttributionSettings) -> float | None:
    """Right sums stay what they are: they are there to repeat what others did."""
    return settings.tolerance if settings.rule == "gauss" else None


def _check_shape(lake: Lake, model: AttributionModel) -> None:
    if "mlp.post" in lake.sites and (len(lake.layers), lake.at("mlp.post").neurons) != (model.layers, model.neurons):
        raise InputError(
            f"{lake.path} has {len(lake.layers)} layers of {lake.at('mlp.post').neurons} neurons, the model has "
            f"{model.layers} of {model.neurons}"
        )
