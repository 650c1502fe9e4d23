"""Document bootstrap: the same scores as scikit-learn on repeated rows, and intervals that hold the truth."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, f1_score

from neuronlake.analysis.probing import bootstrap
from neuronlake.analysis.probing.bootstrap import METRICS, bootstrap_documents
from neuronlake.store.errors import InputError


def sklearn_scores(truth: np.ndarray, predicted: np.ndarray) -> dict[str, float]:
    return {
        "accuracy": accuracy_score(truth, predicted),
        "macro_f1": f1_score(truth, predicted, average="macro", zero_division=0),
    }


def drawn_rows(groups: np.ndarray, draws: int, seed: int) -> list[np.ndarray]:
    """Rows of every resample, a document's rows as often as it was drawn."""
    ids = np.unique(groups)
    weights = np.concatenate(list(bootstrap._weights(len(ids), draws, seed))).astype(int)
    rows = [np.flatnonzero(groups == name) for name in ids]
    return [np.concatenate([np.repeat(mine, times) for mine, times in zip(rows, line, strict=True)]) for line in weights]


@settings(max_examples=15, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    tokens=st.integers(2, 40),
    tags=st.integers(1, 6),
    models=st.integers(1, 3),
    own_truth=st.booleans(),
)
def test_scores_are_those_of_scikit_learn_on_repeated_rows(
    seed: int, tokens: int, tags: int, models: int, own_truth: bool
) -> None:
    rng = np.random.default_rng(seed)
    groups = rng.choice([7, -3, 100, 12], size=tokens)
    groups[:2] = 7, 12  # at least two documents
    truth = rng.integers(tags, size=(models, tokens) if own_truth else tokens).astype(np.int16)
    predicted = rng.integers(tags, size=(models, tokens)).astype(np.int16)
    draws = 8
    found = bootstrap_documents(truth, predicted, groups, tags=tags, draws=draws, level=0.8, seed=seed)
    assert found.documents == len(np.unique(groups))
    assert found.reason is None
    rows = drawn_rows(groups, draws, seed)
    plain = {metric: np.empty((models, draws)) for metric in METRICS}
    for model in range(models):
        mine = truth[model] if own_truth else truth
        whole = sklearn_scores(mine, predicted[model])
        for draw, chosen in enumerate(rows):
            for metric, value in sklearn_scores(mine[chosen], predicted[model][chosen]).items():
                plain[metric][model, draw] = value
        for metric in METRICS:
            np.testing.assert_allclose(found.resampled[metric][model], plain[metric][model], rtol=1e-12)
            estimate = found.estimate(metric, model)
            assert estimate.value == pytest.approx(whole[metric])
            assert (estimate.low, estimate.high) == pytest.approx(tuple(np.quantile(plain[metric][model], [0.1, 0.9])))
    for metric in METRICS:
        paired = found.difference(metric, 0, models - 1)
        assert paired.value == pytest.approx(found.values[metric][0] - found.values[metric][models - 1])
        ends = np.quantile(plain[metric][0] - plain[metric][models - 1], [0.1, 0.9])
        assert (paired.low, paired.high) == pytest.approx(tuple(ends))


def test_tags_that_a_resample_lacks_do_not_count_there() -> None:
    """Tag 3 is only in one of six documents, tag 4 in none."""
    rng = np.random.default_rng(5)
    groups = np.repeat(np.arange(6), 20)
    truth, predicted = rng.integers(3, size=(2, 120))
    truth[100:105] = predicted[103:108] = 3
    found = bootstrap_documents(truth, predicted, groups, tags=5, draws=200, seed=1)
    scores: dict[int, list[float]] = {tag: [] for tag in range(5)}
    for rows in drawn_rows(groups, 200, 1):
        present = np.union1d(truth[rows], predicted[rows])
        for tag, value in zip(present, f1_score(truth[rows], predicted[rows], labels=present, average=None), strict=True):
            scores[int(tag)].append(value)
    assert len(scores[3]) < 200 == len(scores[0])
    for tag in range(4):
        estimate = found.tag_f1(0, tag)
        assert estimate is not None
        assert estimate.value == pytest.approx(f1_score(truth == tag, predicted == tag))
        assert (estimate.low, estimate.high) == pytest.approx(tuple(np.quantile(scores[tag], [0.025, 0.975])))
    assert found.tag_f1(0, 4) is None


def test_documents_are_drawn_alike() -> None:
    weights = np.concatenate(list(bootstrap._weights(50, 4000, 3)))
    assert weights.shape == (4000, 50)
    assert np.all(weights.sum(axis=1) == 50)
    assert np.abs(weights.mean(axis=0) - 1).max() < 5 * np.sqrt(0.98 / 4000)
    assert weights.var() == pytest.approx(1 - 1 / 50, rel=0.03)  # of a multinomial with 50 equal shares


def test_slices_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    truth, predicted = rng.integers(7, size=(2, 2, 500))
    groups = rng.integers(40, size=500)
    whole = bootstrap_documents(truth, predicted, groups, tags=7, draws=30)
    monkeypatch.setattr(bootstrap, "_SLICE_BYTES", 1300)  # 4 draws, 7 documents
    assert len(list(bootstrap._weights(40, 30, 0))) == 8
    sliced = bootstrap_documents(truth, predicted, groups, tags=7, draws=30)
    for metric in METRICS:
        np.testing.assert_array_equal(whole.resampled[metric], sliced.resampled[metric])
    np.testing.assert_array_equal(whole.f1_interval, sliced.f1_interval)


def test_a_pair_that_differs_alike_everywhere_is_sure() -> None:
    """Both models vary with the documents, their difference does not: intervals of a difference are paired."""
    rng = np.random.default_rng(2)
    groups = np.repeat(np.arange(30), 20)
    truth = np.zeros(600, dtype=np.int16)
    weak = np.tile(np.arange(20), 30) < np.repeat(rng.integers(3, 15, size=30), 20)
    strong = np.tile(np.arange(20), 30) < np.repeat(rng.integers(3, 15, size=30), 20)
    strong[:] = weak
    strong[15::20] = True  # one more of every document's twenty
    predicted = np.stack([~strong, ~weak]).astype(np.int16)
    found = bootstrap_documents(truth, predicted, groups, tags=2, draws=300)
    alone = found.estimate("accuracy", 0)
    assert alone.low is not None
    assert alone.high is not None
    assert alone.high - alone.low > 0.05
    paired = found.difference("accuracy", 0, 1)
    assert (paired.value, paired.low, paired.high) == pytest.approx((0.05, 0.05, 0.05))


def test_documents_cover_the_truth_and_tokens_do_not() -> None:
    """200 corpora of 50 documents whose own accuracies scatter around 0.75."""
    rng = np.random.default_rng(11)
    groups = np.repeat(np.arange(50), 20)
    covered = np.zeros(2, dtype=int)
    for seed in range(200):
        own = rng.beta(3, 1, size=50)
        wrong = (rng.random(1000) > own[groups]).astype(np.int16)
        for which, units in enumerate((groups, np.arange(1000))):
            found = bootstrap_documents(np.zeros(1000, dtype=np.int16), wrong, units, tags=2, draws=200, seed=seed)
            estimate = found.estimate("accuracy", 0)
            assert estimate.low is not None
            assert estimate.high is not None
            covered[which] += estimate.low <= 0.75 <= estimate.high
    assert covered[0] >= 180
    assert covered[1] < 140


def test_one_document_has_no_interval() -> None:
    found = bootstrap_documents(np.array([0, 1, 1]), np.array([0, 1, 0]), np.array([4, 4, 4]), tags=2)
    assert found.reason == "all test tokens are of one document, and one document cannot be resampled"
    assert found.draws == 0
    assert vars(found.estimate("accuracy", 0)) == {"value": pytest.approx(2 / 3), "low": None, "high": None}
    assert vars(found.difference("macro_f1", 0, 0)) == {"value": 0.0, "low": None, "high": None}
    of_tag = found.tag_f1(0, 1)
    assert of_tag is not None
    assert vars(of_tag) == {"value": pytest.approx(2 / 3), "low": None, "high": None}


def test_the_same_seed_gives_the_same_intervals() -> None:
    rng = np.random.default_rng(1)
    truth, predicted, groups = rng.integers(3, size=(3, 90))
    first, again, other = (bootstrap_documents(truth, predicted, groups, tags=3, draws=50, seed=s) for s in (4, 4, 5))
    np.testing.assert_array_equal(first.resampled["accuracy"], again.resampled["accuracy"])
    assert not np.array_equal(first.resampled["accuracy"], other.resampled["accuracy"])


RIGHT = {"truth": [0, 1], "predicted": [[0, 1]], "groups": [0, 1]}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"draws": 0}, "draws must be at least 1, got 0"),
        ({"level": 1.0}, r"level must lie between 0 and 1, got 1\.0"),
        ({"truth": [0, 1, 1]}, r"truth \(1, 3\), predictions \(1, 2\) and groups \(2,\) do not fit"),
        ({"truth": [[0, 1]] * 3}, "do not fit"),
        ({"groups": [0]}, "do not fit"),
        ({"truth": [], "predicted": [[]], "groups": []}, "at least one token"),
        ({"truth": [0, 2]}, "truth hold tags from 0 to 2: expected 0 to 1"),
        ({"predicted": [[-1, 0]]}, "predictions hold tags from -1 to 0: expected 0 to 1"),
    ],
)
def test_wrong_input(change: dict, message: str) -> None:
    given = {**RIGHT, **change}
    arrays = {name: np.array(given.pop(name), dtype=np.int64) for name in RIGHT}
    with pytest.raises(InputError, match=message):
        bootstrap_documents(**arrays, tags=2, **given)


def test_unknown_questions() -> None:
    found = bootstrap_documents(*(np.array(value) for value in RIGHT.values()), tags=2, draws=2)
    with pytest.raises(InputError, match="unknown metric 'f1': known are accuracy, macro_f1"):
        found.estimate("f1", 0)
    with pytest.raises(InputError, match="no model 1 among 1"):
        found.difference("accuracy", 0, 1)
    with pytest.raises(InputError, match="no tag 2 among 2"):
        found.tag_f1(0, 2)
