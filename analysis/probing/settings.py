"""Everything that decides a probe."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from numbers import Integral
from typing import Any

from neuronlake.analysis.probing.features import NeuronRef
from neuronlake.analysis.probing.fitting import ELASTIC_NET, LINEAR, PENALTIES, FitSettings
from neuronlake.analysis.probing.sampled import BINARY, SAMPLED
from neuronlake.analysis.probing.task import TaskSettings
from neuronlake.analysis.rankers import get_ranker
from neuronlake.store.errors import InputError

CLASSIFIERS = (*LINEAR, *SAMPLED)


@dataclass(frozen=True, kw_only=True)
class ProbeSettings:
    """What is learned, from which neurons, by what, and what it is held against.

    Raises
    ------
    InputError
        When a setting is unknown, out of range, or contradicts another.
    """

    by: str = "upos"
    """Label column, several joined by ``×``, or an SQL expression."""
    tags: Sequence[str] | None = None
    """Only tokens of these tags; None means all."""
    tag: str | None = None
    """Tell this tag from all others, instead of all tags from each other."""
    where: str | None = None
    """SQL predicate that the tokens fulfil: training tokens, and test tokens too unless there is `test_where`."""
    test_where: str | None = None
    """SQL predicate of the test tokens: to learn from one genre or language and test on another."""
    subword: str = "last"
    """Which tokens of a word count: ``last``, ``first`` or ``all``."""
    shift: int = 0
    """Read the label of the word so many words later."""
    layer: int | Sequence[int] | str | None = None
    """A layer, several, or ``"all"`` (also None): whose neurons are used, together, or chosen from."""
    neurons: Sequence[NeuronRef] | None = None
    """Exactly these, as names or (layer, neuron) pairs, instead of layers."""
    top_k: int | None = None
    """Use the best neurons of every tag, so many, chosen by `method` on training tokens only."""
    k: int | None = None
    """Use so many neurons in all, chosen one after the other on training tokens (`selection.select_forward`); of more than
    4,096 neurons, from the 100 best of every tag by `method`, or from the `top_k` best."""
    method: str = "auroc"
    """Ranker that `top_k` neurons are chosen by."""
    classifier: str = "logistic"
    """``logistic`` (multinomial) or ``svm`` (squared hinge, one tag against the rest), streamed over the training tokens;
    ``lda`` or ``ridge``, in closed form from covariances that the lake keeps; ``elastic_net`` (multinomial logistic,
    sparse), streamed, with these covariances. From a sample of the training tokens in memory: ``gaussian``, a Gaussian per
    tag, whose `k` neurons are chosen by their information (`GaussianProbe`); with `tag`, ``cav``, a direction (`CAVProbe`),
    and ``car``, a region (`CARProbe`)."""
    shrinkage: float = 0.01
    """Of ``lda``: λ of its covariance, above 0 and at most 1."""
    penalty: float | None = None
    """Of the others: λ per token, positive; None means 0.001, for ``svm`` 1/64. scikit-learn's C is 1/(λ·tokens)."""
    l1_ratio: float = 0.5
    """Of ``elastic_net``: share of λ that goes to Σ|w|, which sets weights to zero; the rest to ½·Σw²; 0 … 1."""
    epochs: int = 4
    """Of ``logistic`` and ``svm``: passes in mini-batches."""
    max_passes: int | None = None
    """Of the streamed classifiers: most full passes after that, by L-BFGS (None means 10); 0 leaves it at the mini-batches.
    Of ``elastic_net``: most proximal steps, a pass each (None means 60)."""
    tolerance: float = 1e-4
    """Relative decrease of the objective at which these end."""
    split: str = "document"
    """What is held out: ``document``, or ``sentence`` where there are too few documents."""
    test_share: float = 0.2
    """Share of them that is held out."""
    seed: int = 0
    """Of the split, of every random draw and of the mini-batches' order."""
    control_draws: int = 1
    """Control tasks fitted; 0 does without them and without shuffled labels."""
    random_draws: int = 10
    """Draws of random neurons."""
    random_share: float = 0.1
    """Of whole layers, the share of their neurons that a random draw has; of chosen neurons it has as many."""
    bootstrap_draws: int = 1000
    """Resamples of the test documents."""
    keep: bool = True
    """Use covariances kept in the lake, and keep them."""
    max_bytes: int = 8 << 30  # 8 GiB
    """Largest memory for matrices."""

    def __post_init__(self) -> None:
        if self.classifier not in CLASSIFIERS:
            raise InputError(f"unknown classifier {self.classifier!r}: known are {', '.join(CLASSIFIERS)}")
        if not 0 < self.shrinkage <= 1:
            raise InputError(f"shrinkage must be above 0 and at most 1, got {self.shrinkage}")
        if self.penalty is not None and not 0 < self.penalty < math.inf:
            raise InputError(f"penalty must be above 0 and finite, got {self.penalty}")
        if not 0 <= self.l1_ratio <= 1:
            raise InputError(f"l1_ratio must lie between 0 and 1, got {self.l1_ratio}")
        if self.neurons is not None and (self.layer is not None or self.top_k is not None):
            raise InputError("neurons are given: layer and top_k would choose others; give only one of them")
        if self.tag is not None and self.tags is not None:
            raise InputError("tag tells one tag from all others, tags compares several: give only one of them")
        if self.tags is not None and len(set(self.tags)) < 2:
            raise InputError(f"tags needs two different tags or more, got {', '.join(self.tags) or 'none'}")
        if self.classifier in BINARY and self.tag is None:
            raise InputError(f"{self.classifier} tells one tag from all others: give tag, for example tag='NOUN'")
        for name, least in (
            ("top_k", 1), ("k", 1), ("epochs", 0), ("max_passes", 0), ("control_draws", 0), ("random_draws", 0),
            ("bootstrap_draws", 1),
        ):  # fmt: skip
            value = getattr(self, name)
            if value is not None and not _whole(value, least):
                raise InputError(f"{name} must be at least {least}, and whole, got {value}")
        if not _whole(self.seed, 0):
            raise InputError(f"seed must be a whole number from 0, got {self.seed!r}")
        if self.epochs == self.max_passes == 0:
            raise InputError("epochs and max_passes are both 0: nothing would be fitted")
        if self.classifier == ELASTIC_NET and self.max_passes == 0:
            raise InputError("max_passes is 0: elastic_net has no mini-batches, nothing would be fitted")
        if not 0 < self.random_share <= 1:
            raise InputError(f"random_share must be above 0 and at most 1, got {self.random_share}")
        get_ranker(self.method)

    @property
    def layers(self) -> list[int] | None:
        """The layers asked for; None means all."""
        if self.layer is None or self.layer == "all":
            return None
        if isinstance(self.layer, str):
            raise InputError(f"layer must be a number, several, or 'all', got {self.layer!r}")
        asked: Any = self.layer
        return [int(asked)] if isinstance(asked, Integral) else [int(one) for one in asked]

    @property
    def task(self) -> TaskSettings:
        """Those that decide tokens, labels and documents."""
        return TaskSettings(
            **{field.name: getattr(self, field.name) for field in fields(TaskSettings) if field.name != "tags"},
            tags=None if self.tags is None else tuple(self.tags),
        )

    @property
    def fit(self) -> FitSettings:
        """Those that decide how classifiers are fitted."""
        values: dict[str, Any] = {field.name: getattr(self, field.name) for field in fields(FitSettings)}
        passes = (60 if self.classifier == ELASTIC_NET else 10) if self.max_passes is None else self.max_passes
        penalty = self.penalty or PENALTIES.get(self.classifier, 0.0)
        return FitSettings(**values | {"penalty": penalty, "max_passes": passes})


def _whole(value: Any, least: int) -> bool:
    """Whether a value is an integer, NumPy's too, of at least so much."""
    return isinstance(value, Integral) and int(value) >= least
