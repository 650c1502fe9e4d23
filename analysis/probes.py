"""Probes: how well do neurons predict a label, on documents never used for fitting or for choosing neurons?"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neuronlake.analysis.baselines import baseline_predictions
from neuronlake.analysis.features import NeuronRef, chosen_neurons, top_features, whole_layers
from neuronlake.analysis.labels import MIN_TOKENS, LabelVector, token_labels
from neuronlake.analysis.lda import fit_lda, predict_rows
from neuronlake.analysis.metrics import accuracy_and_f1, confusion_counts, per_tag_scores
from neuronlake.analysis.rankers import get_ranker
from neuronlake.analysis.refinement import refine
from neuronlake.analysis.scatter import gather_scatter
from neuronlake.analysis.source import DEFAULT_SITE, LakeSource, versions
from neuronlake.analysis.splits import split_documents
from neuronlake.analysis.statistics import statistics_of_labels
from neuronlake.analysis.svm import fit_svm, load_rows
from neuronlake.store.errors import InputError

CLASSIFIERS = ("lda", "svm")
SHRINKAGE = 0.01
MAX_BYTES = 8 << 30  # 8 GiB of matrices


@dataclass(frozen=True, kw_only=True)
class ProbeResult:
    """Scores on held-out documents, with everything needed to repeat them."""

    accuracy: float
    macro_f1: float
    """Mean F1 of the tags that occur in the test documents or among the predictions."""
    tags: tuple[str, ...]
    per_tag: dict[str, dict[str, float]]
    """precision, recall, f1 and support (test tokens) of every tag; undefined ratios are 0."""
    confusion: NDArray[np.int64] = field(repr=False)
    """(true tag, predicted tag)."""
    baselines: dict[str, dict[str, float]]
    """accuracy and macro_f1 of predictions that see no activation."""
    counts: dict[str, int]
    """Tokens, documents and sentences on either side, and features."""
    dropped: dict[str, int]
    """Tags with fewer than two training tokens, and their tokens on both sides; they are neither learned nor tested."""
    neurons: list[str] | None = field(repr=False)
    """Names of the neurons used, None for whole layers."""
    settings: dict[str, Any]
    lake: str
    versions: dict[str, str]

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {
            "accuracy": self.accuracy,
            "macro_f1": self.macro_f1,
            "baselines": self.baselines,
            "tags": list(self.tags),
            "per_tag": self.per_tag,
            "confusion": self.confusion.tolist(),
            **self.counts,
            "dropped": self.dropped,
            "neurons": self.neurons,
            "settings": self.settings,
            "lake": self.lake,
            "versions": self.versions,
        }


def probe(
    source: LakeSource,
    by: str = "upos",
    *,
    layer: int | Sequence[int] | str | None = None,
    neurons: Sequence[NeuronRef] | None = None,
    top_k: int | None = None,
    method: str = "auroc",
    classifier: str = "lda",
    subword: str = "last",
    shift: int = 0,
    split: str = "document",
    test_share: float = 0.2,
    seed: int = 0,
    shrinkage: float = SHRINKAGE,
    max_bytes: int = MAX_BYTES,
    site: str = DEFAULT_SITE,
    scheduler: Any = None,
) -> ProbeResult:
    """Fit a linear classifier of a label on neurons, and test it on held-out documents.

    Parameters
    ----------
    source
        The lake.
    by, subword, shift
        Label column, tokens of a word that count, and how many words ahead the label is read.
    layer
        A layer, several, or ``"all"`` (also None): the neurons used, or those that `top_k` chooses from.
    neurons
        Exactly these, as names or (layer, neuron) pairs, instead of layers.
    top_k, method
        Use the `top_k` best neurons of every tag, chosen by that ranker on the training documents only.
    classifier
        ``lda``: closed form, out of core (see `lda.fit_lda`); ``svm``: linear, training rows in memory (see
        `svm.fit_svm`).
    split, test_share, seed
        How documents (or sentences) are held out, see `splits.split_documents`.
    shrinkage
        λ of the discriminant analysis, in (0, 1].
    max_bytes
        Largest memory for matrices.
    site
        Site of the activations.
    scheduler
        A Dask scheduler; None means threads.

    Returns
    -------
    ProbeResult

    Raises
    ------
    InputError
        When a setting is unknown or they contradict each other; when there are fewer than two documents or tags; when
        the matrices would not fit in `max_bytes`.
    """
    if classifier not in CLASSIFIERS:
        raise InputError(f"unknown classifier {classifier!r}: known are {', '.join(CLASSIFIERS)}")
    if not 0 < shrinkage <= 1:
        raise InputError(f"shrinkage must be above 0 and at most 1, got {shrinkage}")
    if neurons is not None and (layer is not None or top_k is not None):
        raise InputError("neurons are given: layer and top_k would choose others; give only one of them")
    ranker = get_ranker(method)
    layers = _layers(layer)
    whole = whole_layers(source, layers) if neurons is None else chosen_neurons(source, neurons)
    labels = token_labels(source, by, subword=subword, shift=shift)
    held_out = split_documents(labels, test_share=test_share, seed=seed, unit=split)
    train, test, dropped = _train_and_test(labels, *held_out.rows(labels))
    features = whole
    if top_k is not None:
        statistics = statistics_of_labels(
            source,
            [train],
            layers=whole.layers,
            also=ranker.also,
            site=site,
            scheduler=scheduler,
        )[0]
        statistics = refine(source, statistics, method, top=top_k, labels=train, scheduler=scheduler)
        features = top_features(source, statistics, method, top_k)
    options: dict[str, Any] = {"site": site, "scheduler": scheduler}
    fitted: dict[str, Any] = {"shrinkage": shrinkage} if classifier == "lda" else {}
    if classifier == "lda":
        scatter = gather_scatter(source, train, features, max_bytes=max_bytes, **options)
        model = fit_lda(scatter, shrinkage=shrinkage)
    else:
        model, fitted["converged"] = fit_svm(*load_rows(source, train, features, site=site, max_bytes=max_bytes), seed=seed)
    predicted = predict_rows(source, test, features, model, **options)
    truth = test.codes[test.codes >= 0]
    baselines = {
        name: accuracy_and_f1(truth, guesses) for name, guesses in baseline_predictions(source, train, test).items()
    }
    return ProbeResult(
        **accuracy_and_f1(truth, predicted),
        tags=train.tags,
        per_tag=per_tag_scores(truth, predicted, train.tags),
        confusion=confusion_counts(truth, predicted, len(train.tags)),
        baselines=baselines,
        counts={
            "n_train": train.tokens,
            "n_test": test.tokens,
            "n_train_documents": _distinct(train, train.documents),
            "n_test_documents": _distinct(test, test.documents),
            "n_train_sentences": _distinct(train, train.sentences),
            "n_test_sentences": _distinct(test, test.sentences),
            "n_features": features.size,
        },
        dropped=dropped,
        neurons=None if features is whole and neurons is None else features.names(),
        settings={
            "by": by,
            "subword": subword,
            "shift": shift,
            "layers": features.layers if neurons is not None else whole.layers,
            "top_k": top_k,
            "method": method if top_k is not None else None,
            "classifier": classifier,
            **fitted,
            "split": split,
            "test_share": test_share,
            "seed": seed,
            "site": site,
            "encoding": source.encoding,
        },
        lake=source.fingerprint,
        versions=versions(),
    )


def _layers(layer: int | Sequence[int] | str | None) -> list[int] | None:
    if layer is None or layer == "all":
        return None
    if isinstance(layer, str):
        raise InputError(f"layer must be a number, several, or 'all', got {layer!r}")
    return [layer] if isinstance(layer, int | np.integer) else [int(one) for one in layer]


def _train_and_test(
    labels: LabelVector, train_rows: NDArray[np.bool_], test_rows: NDArray[np.bool_]
) -> tuple[LabelVector, LabelVector, dict[str, int]]:
    """Both sides with the tags that can be learned, and the tags that cannot with their tokens."""
    train = labels.keep(train_rows).without_rare(MIN_TOKENS)
    if len(train.tags) < 2:
        raise InputError(
            f"the training documents hold two tokens or more only of {train.tags[0]!r}: a probe needs two values of "
            f"{labels.by!r}"
        )
    test = labels.keep(test_rows).with_tags(train.tags)
    if not test.tokens:
        raise InputError("the test documents hold no token of a tag that was learned: raise test_share, or change seed")
    left_out = {tag: int(n) for tag, n in zip(labels.tags, labels.counts, strict=True) if tag not in train.tags}
    return train, test, {**labels.dropped, **left_out}


def _distinct(labels: LabelVector, ids: NDArray[Any]) -> int:
    return int(np.unique(ids[labels.codes >= 0]).size)
