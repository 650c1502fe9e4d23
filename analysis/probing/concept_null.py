"""How well a probe tells concepts that mean nothing: the null distribution of its held-out accuracy."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.base import clone
from sklearn.utils import check_random_state
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from neuronlake.analysis.probing.class_labels import balanced_accuracy, classes_and_codes
from neuronlake.store.errors import InputError
from neuronlake.store.parallel import map_ordered


@dataclass(frozen=True, kw_only=True)
class RandomConcepts:
    """How well a probe tells a concept on held-out rows, and how well concepts that mean nothing."""

    balanced_accuracy: float
    """Mean recall of the two classes on held-out rows, 0.5 by chance."""
    null: NDArray[np.float64] = field(repr=False)
    """The same of every random concept, (draws,)."""
    p_value: float
    """(1 + #{null ≥ balanced accuracy}) / (1 + draws): Phipson & Smyth 2010, never zero."""
    permuted: str
    """What exchanged its labels: ``rows``, ``rows of a group`` or ``groups``."""
    n_train: int
    n_test: int


def random_concepts(
    probe: Any, X: Any, y: Any, groups: Any = None, *, draws: int = 99, test_share: float = 0.2, random_state: Any = 0
) -> RandomConcepts:
    """Compare a probe's held-out balanced accuracy with those of probes of permuted labels.

    Some groups are held out; the same for all draws. A random concept has the labels of the rows exchanged within each
    group, so that what groups differ in explains nothing and both sides keep their class counts. Where every group has one
    label, whole groups exchange theirs; without groups, all rows do. Draws that leave one side fewer than two rows of a
    class are drawn again, as such a concept could not be asked about.

    Parameters
    ----------
    probe
        A binary classifier of scikit-learn's kind, fitted or not: clones of it are fitted, 1 + `draws` times.
    X : (n, features)
    y : (n,)
        Of two classes.
    groups : (n,), optional
        Document or sentence of every row; None means that rows are independent.
    draws
        Random concepts.
    test_share
        Share of the groups held out, in (0, 1).
    random_state
        Of split and permutations.

    Raises
    ------
    InputError
        When a setting is wrong, lengths differ, or either side of the split has fewer than two rows of a class.
    """
    values, labels = np.asarray(X), np.asarray(y)
    if draws < 1:
        raise InputError(f"draws must be at least 1, got {draws}")
    if not 0 < test_share < 1:
        raise InputError(f"test_share must lie between 0 and 1, got {test_share}")
    _, codes = classes_and_codes(labels, binary=True)
    names = np.arange(len(labels)) if groups is None else np.asarray(groups)
    if not len(values) == len(labels) == len(names):
        raise InputError(f"X, y and groups must be of the same rows, got {len(values)}, {len(labels)} and {len(names)}")
    random = np.random.default_rng(check_random_state(random_state).randint(2**32, dtype=np.int64))
    group = np.unique(names, return_inverse=True)[1].astype(np.int64)
    test = _held_out(group, test_share, random)
    if not _both_sides(codes, test):
        raise InputError(
            f"with {group.max() + 1} groups, of which {test_share:.0%} are held out, one side has fewer than two rows of a "
            "class: give more rows or smaller groups, or another random_state"
        )
    permute, permuted = _permutation(codes, group, grouped=groups is not None)

    def score(concept: NDArray[np.int64]) -> float:
        fitted = clone(probe).fit(values[~test], concept[~test])
        return balanced_accuracy(concept[test], fitted.predict(values[test]))

    def draw(one: np.random.Generator) -> float:
        concept = permute(one)
        while not _both_sides(concept, test):  # never where labels stay within groups
            concept = permute(one)
        return score(concept)

    accuracy = score(codes)
    with threadpool_limits(1, user_api="blas"):
        null = np.array(list(map_ordered(draw, random.spawn(draws))))
    return RandomConcepts(
        balanced_accuracy=accuracy,
        null=null,
        p_value=float(1 + np.sum(null >= accuracy - 1e-12)) / (1 + draws),
        permuted=permuted,
        n_train=int((~test).sum()),
        n_test=int(test.sum()),
    )


def _held_out(group: NDArray[np.int64], share: float, random: np.random.Generator) -> NDArray[np.bool_]:
    count = int(group.max()) + 1
    chosen = np.zeros(count, dtype=np.bool_)
    chosen[random.permutation(count)[: max(1, round(share * count))]] = True
    return chosen[group]


def _both_sides(codes: NDArray[np.int64], test: NDArray[np.bool_]) -> bool:
    return all(np.bincount(codes[side], minlength=2).min() >= 2 for side in (test, ~test))


def _permutation(
    codes: NDArray[np.int64], group: NDArray[np.int64], *, grouped: bool
) -> tuple[Callable[[np.random.Generator], NDArray[np.int64]], str]:
    if not grouped:
        return lambda random: random.permutation(codes), "rows"
    first = np.unique(group, return_index=True)[1]
    if (codes == codes[first][group]).all():
        return lambda random: random.permutation(codes[first])[group], "groups"
    order = np.argsort(group, kind="stable")

    def within(random: np.random.Generator) -> NDArray[np.int64]:
        found = np.empty_like(codes)
        found[order] = codes[np.lexsort((random.random(len(codes)), group))]
        return found

    return within, "rows of a group"
