"""The steps of `neuronlake reproduce`: attribution, key neurons, classifiers, lesions. Results are JSON-compatible."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from neuronlake.analysis.key_neurons import ATTRIBUTION, SURROGATE, choose_key_neurons, key_list, ranker_scores, scores_of
from neuronlake.analysis.labels import LabelVector, token_labels
from neuronlake.analysis.neuron_sets import NeuronSet
from neuronlake.analysis.probing.probes import check_same_model, probe
from neuronlake.analysis.probing.splits import Split, split_documents
from neuronlake.analysis.rankers import get_ranker
from neuronlake.analysis.statistics import compute_statistics
from neuronlake.store.errors import InputError
from neuronlake.store.lake import Lake

if TYPE_CHECKING:
    import xarray as xr

    from neuronlake.extractor.source import ModelSource

ATTRIBUTED = ("gradient", "ig")
METHODS = (*ATTRIBUTED, SURROGATE, "auroc")
CLASSES = ("NOUN", "VERB", "ADJ", "ADV")
CLASSIFIERS = ("logistic", "svm")
# `where` chooses the documents to learn from; the probe still holds out a share of them, and one is the least it can.
_LEAST_SHARE = 1e-9
_TEST_SHARE = 0.2
_EVERYTHING = "document >= 0"
_SHIFT = 1  # of methods that read activations: attribution, too, is at the token before the word
_KEPT_SCORES = (
    "accuracy", "macro_f1", "balanced_accuracy", "intervals", "selectivity", "baselines", "per_tag", "n_features", "n_train",
    "n_test", "n_train_documents", "n_test_documents",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class StudySettings:
    """Everything that decides the study, but for the lakes and the model."""

    by: str = "upos"
    method: str = "gradient"
    """``gradient`` × activation; ``ig``, integrated gradients, the paper's; ``activation_share``; ``auroc``."""
    k: int = 100
    """Key neurons of every tag in each layer."""
    fdr: float = 0.05
    """Largest q of the χ² test (or the ranker's own)."""
    classes: tuple[str, ...] = CLASSES
    """Told apart by the classifiers; the paper's four by default."""
    classes_only: bool = False
    """Classifiers and lesions of the classes only; key neurons are of all tags all the same."""
    per_tag: int | None = 200
    """Predictions (or tokens) per tag that key neurons are chosen on; None takes all."""
    test_share: float | None = None
    """Of the documents: held out from the choice of neurons and from learning. None: a fifth, or none of them where another
    lake is measured."""
    shifts: tuple[int, ...] = (0, 1)
    """Classified: the token's own word (0), the word after it (1)."""
    layers: tuple[int, ...] | None = None
    """Classifiers on the key neurons of these; None means each."""
    random_draws: int = 5
    """Draws of as many random neurons, per classifier."""
    train_tokens: int | None = 50_000
    """Words' tokens that classifiers are learned on, of whole training documents drawn at random; None takes all."""
    lesion_k: int = 200
    """Key neurons of every tag, of all layers, that are lesioned together."""
    random: int = 20
    """Layer-matched random sets per lesion."""
    tokens: int = 2000
    """Words to predict, at least."""
    least: int = 30
    """Of each lesioned tag, if there are so many."""
    seed: int = 0
    draws: int = 1000
    """Bootstrap resamples of documents."""

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise InputError(f"unknown method {self.method!r}: known are {', '.join(METHODS)}")
        if len(set(self.classes)) < 2:
            raise InputError(f"--classes needs two different tags or more, got {', '.join(self.classes) or 'none'}")
        least = {"k": 1, "lesion_k": 1, "random": 0, "random_draws": 0, "tokens": 1, "least": 1, "seed": 0, "draws": 1}
        for name, smallest in least.items():
            if (given := getattr(self, name)) < smallest:
                raise InputError(f"--{name.replace('_', '-')} must be at least {smallest}, got {given}")
        for name in ("per_tag", "train_tokens"):
            if (given := getattr(self, name)) is not None and given < 1:
                raise InputError(f"--{name.replace('_', '-')} must be at least 1, got {given}")
        if not 0 < self.fdr <= 1:
            raise InputError(f"--fdr must be above 0 and at most 1, got {self.fdr}")


@dataclass(frozen=True, kw_only=True)
class Study:
    """The lakes, the documents on either side, and what is asked."""

    lake: Lake
    test: Lake | None
    on: Lake
    settings: StudySettings
    labels: LabelVector = field(repr=False)
    """Of the lake's words, by their last token."""
    split: Split = field(repr=False)

    @property
    def tags(self) -> tuple[str, ...]:
        """Of the label."""
        return tuple(self.labels.tags)

    @property
    def train_where(self) -> str:
        """SQL of the documents that neurons are chosen and classifiers learned on."""
        return _documents(self.split.train)

    @property
    def learn_where(self) -> str:
        """SQL of the training documents that classifiers are learned on: drawn until they hold `train_tokens`."""
        most, labels = self.settings.train_tokens, self.labels
        if most is None:
            return self.train_where
        order = np.random.default_rng(self.settings.seed).permutation(self.split.train)
        documents, counts = np.unique(labels.documents[labels.codes >= 0], return_counts=True)
        held = np.cumsum(counts[np.searchsorted(documents, order)])
        return _documents(np.sort(order[: max(2, int(np.searchsorted(held, most)) + 1)]))

    @property
    def test_where(self) -> str:
        """SQL of the documents that are measured."""
        return _EVERYTHING if self.elsewhere else _documents(self.split.test)

    @property
    def elsewhere(self) -> bool:
        """Whether another lake is measured, and nothing held out of the first."""
        return self.on is not self.lake


def begin(lake: Lake, settings: StudySettings, *, test: Lake | None, on: Lake | None) -> Study:
    """Divide the lake's documents, and refuse at once what would be refused after hours.

    Raises
    ------
    InputError
        When a class is no tag of the lake, there are not so many neurons, the other lakes are of another model, or there is
        a single document.
    """
    if on is not None and settings.test_share is not None:
        raise InputError("--test-share holds documents of the lake out, --on measures on another: give one of the two")
    labels = token_labels(lake, settings.by, min_tokens=1)
    for tag in settings.classes:
        if tag not in labels.tags:
            raise InputError(
                f"--classes: no word of {lake.path} has {settings.by} {tag!r}: known are {', '.join(labels.tags)}"
            )
    if settings.k > lake.neurons:
        raise InputError(
            f"-k {settings.k:,}: a layer of this model has {lake.neurons:,} neurons, choose 1 to {lake.neurons:,}"
        )
    every = lake.neurons * len(lake.layers)
    if settings.lesion_k > every:
        raise InputError(f"--lesion-k {settings.lesion_k:,}: the lake has {every:,} neurons, choose 1 to {every:,}")
    for layer in settings.layers or ():
        if layer not in lake.layers:
            raise InputError(f"--layers: no layer {layer}: stored are {lake.layers[0]} to {lake.layers[-1]}")
    for other in (test, on):
        if other is not None:
            check_same_model(lake, other)
    if on is None:
        share = _TEST_SHARE if settings.test_share is None else settings.test_share
        split = split_documents(labels, test_share=share, seed=settings.seed)
    else:
        train = np.unique(labels.documents[labels.codes >= 0]).astype(np.int64)
        split = Split(unit="document", train=train, test=train[:0], test_share=0, seed=settings.seed)
    if len(split.train) < 2:
        raise InputError(f"{lake.path} has {len(split.train)} document to learn from: a classifier needs two or more")
    return Study(lake=lake, test=test, on=on or lake, settings=settings, labels=labels, split=split)


def explain(
    study: Study,
    source: "ModelSource",
    run: dict[str, Any],
    *,
    say: Callable[[str], None],
    progress: Callable[[int, int], None],
) -> dict[str, Any]:
    """Attribute the predictions of the training documents' words; kept in the lake, and found there again.

    Parameters
    ----------
    run
        Where and how gradients are computed: device, batch_targets, trust_remote_code. Only passed on.

    Returns
    -------
    dict
        The pass' record; `timed`: whether all of it was computed now.
    """
    from neuronlake.extractor import AttributionSettings, attribute

    settings = study.settings
    report = attribute(
        study.lake.path,
        source,
        lambda opened: token_labels(opened, settings.by, where=study.train_where, subword="first", min_tokens=1),
        AttributionSettings(method=settings.method, per_tag=settings.per_tag, seed=settings.seed, **run),
        say=say,
        progress=progress,
    )
    left_out = ("lake", "made", "resumed", "key", "error", "effect", "layers", "model")
    key = {name: value for name, value in report.attribution.key.items() if name not in ("blocks", "where", "lake")}
    return {
        **{name: value for name, value in report.as_dict().items() if name not in left_out},
        "timed": report.made and not report.resumed,
        "key": key,
        "by_layer": _completeness(report),
    }


def key_neurons(
    study: Study, attribution: str | None, *, progress: Callable[[int, int], None] = lambda done, total: None
) -> dict[str, Any]:
    """Choose neurons: of every tag the best per layer, and the best of all layers.

    Parameters
    ----------
    attribution
        Its name in the lake, for the methods that need one.
    """
    settings = study.settings
    scores = _scores(study, attribution, progress)
    per_layer = choose_key_neurons(scores, k=settings.k, per="layer", fdr=settings.fdr)
    overall = choose_key_neurons(scores, k=settings.lesion_k, per="overall", fdr=settings.fdr)
    selected = per_layer["selected"].transpose("tag", "layer", "neuron").to_numpy()
    layers = [int(layer) for layer in per_layer["layer"].to_numpy()]
    tags = [str(tag) for tag in per_layer["tag"].to_numpy()]
    best: dict[str, list[dict[str, Any]]] = {tag: [] for tag in tags}
    for entry in key_list(overall):
        best[entry["tag"]].append({name: value for name, value in entry.items() if name != "tag"})
    return {
        "tags": tags,
        "layers": layers,
        "samples": [int(count) for count in per_layer["count"].to_numpy()],
        "per_layer": {
            tag: {
                str(layer): np.flatnonzero(selected[place, row]).tolist()
                for row, layer in enumerate(layers)
                if selected[place, row].any()
            }
            for place, tag in enumerate(tags)
        },
        "best": best,
        "best_by_layer": overall["by_layer"].to_numpy().tolist(),
        "jaccard": _no_nan(overall["jaccard"].to_numpy()),
        "jaccard_per_layer": _no_nan(per_layer["jaccard"].to_numpy()),
    }


def _scores(study: Study, attribution: str | None, progress: Callable[[int, int], None]) -> "xr.Dataset":
    settings, lake = study.settings, study.lake
    if settings.method in ATTRIBUTED:
        return scores_of(lake, settings.by, ATTRIBUTION, name=attribution)
    if settings.method == SURROGATE:
        how: dict[str, Any] = {"per_tag": settings.per_tag, "seed": settings.seed, "shift": _SHIFT, "progress": progress}
        return scores_of(lake, settings.by, SURROGATE, where=study.train_where, **how)
    statistics = compute_statistics(
        lake,
        settings.by,
        shift=_SHIFT,
        documents=study.split.train,
        also=get_ranker(settings.method).also,
        keep=False,
        progress=progress,
    )
    return ranker_scores(statistics, settings.method)


def _completeness(report: Any) -> list[float | None]:
    """Completeness error of every layer; None where the method has no such identity."""
    if report.completeness is None:
        return []
    error, effect = (np.array(report.attribution.record[name], dtype=np.float64) for name in ("error", "effect"))
    return [float(each / whole) if whole > 0 else None for each, whole in zip(error, effect, strict=True)]


def layer_neurons(found: dict[str, Any], tags: Iterable[str], layer: int) -> list[tuple[int, int]]:
    """Key neurons of one layer, of several tags together."""
    return sorted({(layer, neuron) for tag in tags for neuron in found["per_layer"][tag].get(str(layer), ())})


def best_neurons(found: dict[str, Any], tags: Iterable[str]) -> list[tuple[int, int]]:
    """The best key neurons of all layers, of several tags together."""
    return sorted({(entry["layer"], entry["neuron"]) for tag in tags for entry in found["best"][tag]})


def classify(
    study: Study,
    neurons: Sequence[tuple[int, int]],
    *,
    classifier: str,
    shift: int,
    tags: Sequence[str] | None,
    tag: str | None = None,
    random_draws: int,
    transfer: bool = False,
) -> dict[str, Any]:
    """Fit a classifier on given neurons of the training documents, and test it on those that are measured or a third lake.

    Parameters
    ----------
    tags, tag
        As for `probe`.
    transfer
        Test on the whole of `study.test`.
    """
    there = study.test if transfer else study.on if study.elsewhere else None
    found = probe(
        study.lake,
        study.settings.by,
        test=there,
        where=study.learn_where,
        test_where=_EVERYTHING if there is not None else study.test_where,
        tags=tags,
        tag=tag,
        shift=shift,
        neurons=list(neurons),
        classifier=classifier,
        seed=study.settings.seed,
        random_draws=random_draws,
        bootstrap_draws=study.settings.draws,
        test_share=_LEAST_SHARE,
        keep=False,
    )
    whole = found.to_dict()
    controls = {
        name: {**scores, "draws": [each["accuracy"] for each in scores["draws"]]} for name, scores in found.controls.items()
    }
    return {
        **{name: whole[name] for name in _KEPT_SCORES},
        "controls": controls,
        "classifier": classifier,
        "shift": shift,
        "rows": [row for row in found.rows() if row["metric"] == "accuracy"],
    }


def lesion_sets(study: Study, found: dict[str, Any]) -> tuple[list[NeuronSet], dict[str, str]]:
    """Sets to lesion, best first; and of the tags left out, why."""
    labels = token_labels(study.on, study.settings.by, subword="first", min_tokens=1)
    here = labels if study.elsewhere else labels.keep(np.isin(labels.documents, study.split.test))
    there = {tag for tag, count in zip(here.tags, here.counts, strict=True) if count}
    wanted = [tag for tag in found["tags"] if not study.settings.classes_only or tag in study.settings.classes]
    sets, left_out = [], {}
    for tag in wanted:
        pairs = [(entry["layer"], entry["neuron"]) for entry in found["best"].get(tag, ())]
        if not pairs:
            left_out[tag] = "no key neuron"
        elif tag not in there:
            left_out[tag] = "no word to predict"
        else:
            sets.append(NeuronSet.of(tag, pairs))
    if not sets:
        raise InputError("no tag has key neurons and words to predict: raise --fdr or --per-tag, or give more text")
    return sets, left_out


def lesion(
    study: Study,
    source: "ModelSource",
    sets: Sequence[NeuronSet],
    run: dict[str, Any],
    out: Path,
    *,
    say: Callable[[str], None],
    progress: Callable[[int, int], None],
) -> dict[str, Any]:
    """Zero the sets in the live model, beside random ones."""
    from neuronlake.cli.lesion_run import LesionSettings, run_lesions

    settings = study.settings
    result = run_lesions(
        study.lake,
        study.on,
        source,
        sets,
        token_labels(study.on, settings.by, subword="first", min_tokens=1),
        LesionSettings(
            random=settings.random,
            tokens=settings.tokens,
            least=settings.least,
            seed=settings.seed,
            draws=settings.draws,
            device=run["device"],
            trust_remote_code=run["trust_remote_code"],
        ),
        documents=None if study.elsewhere else study.split.test,
        chosen={"method": settings.method, "k": settings.lesion_k, "fdr": settings.fdr},
        out=out,
        suffix="png",
        say=say,
        progress=progress,
    )
    wanted = ("text", "clean", "summary", "lesions", "cost", "provenance")
    return {name: result[name] for name in wanted}


def _documents(numbers: NDArray[np.int64]) -> str:
    return f"document IN ({','.join(map(str, numbers.tolist()))})"


def _no_nan(values: NDArray[np.float64]) -> list[list[float | None]]:
    return [[None if np.isnan(value) else float(value) for value in line] for line in values]
