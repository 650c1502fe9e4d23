"""Rankers against SciPy and scikit-learn on raw values, and the order, signs and edge cases of rankings."""

import itertools
import json
import math

import numpy as np
import pytest
import scipy.optimize
import scipy.stats
import xarray as xr
from memory_lake import MemoryLake
from sklearn.feature_selection import f_classif
from sklearn.metrics import average_precision_score, jaccard_score, mutual_info_score, roc_auc_score

from neuronlake.analysis import RANKERS, benjamini_hochberg, compute_statistics, rank, score, token_labels
from neuronlake.analysis.contrast import absolute_contrast
from neuronlake.analysis.rankers import PROBE, get_ranker
from neuronlake.store.errors import InputError

METHODS = [name for name, ranker in RANKERS.items() if PROBE not in ranker.needs]
PROBES = [name for name in RANKERS if name not in METHODS]
TESTED = [name for name in METHODS if not RANKERS[name].test.startswith("none")]
UPWARDS = ("iou", "lape", "chi_squared")  # see little of neurons that a tag lowers
TAGS = ("ADJ", "NOUN", "VERB", "X")
SHAPE = (2, 10)  # layers, neurons
DIMS = ("tag", "layer", "neuron")


def raw_values(rows: int = 600) -> tuple[np.ndarray, np.ndarray]:
    """Values (rows, layers, neurons) and tags; L2.N4 is raised by NOUN, L2.N5 lowered by VERB."""
    rng = np.random.default_rng(4)
    codes = rng.choice(4, size=rows, p=[0.2, 0.4, 0.3, 0.1])
    centre = rng.normal(0, 0.3, SHAPE)
    centre[1, 4:6] = 0
    values = rng.standard_t(4, size=(rows, *SHAPE)) * rng.uniform(0.5, 2, SHAPE) + centre
    values[:, 0, 0] = np.abs(values[:, 0, 0])
    values[:, 0, 1] = np.maximum(values[:, 0, 1], 0)  # many ties
    values[:, 0, 2] += 1000  # far from zero
    values[codes == 1, 1, 4] += 8
    values[codes == 2, 1, 5] -= 8
    return values, codes


def statistics_of(values: np.ndarray, codes: np.ndarray, tags: tuple[str, ...] = TAGS) -> xr.Dataset:
    """What `compute_statistics` gives, by NumPy and scikit-learn; 16 bins per neuron."""
    groups = [values[codes == tag] for tag in range(len(tags))]
    flat = values.reshape(len(values), -1)
    threshold = np.quantile(values, 0.95, axis=0)
    binned = np.stack([np.digitize(x, np.quantile(x, np.linspace(0, 1, 17)[1:-1])) for x in flat.T], axis=1)

    def each(function) -> np.ndarray:
        found = [
            [function(codes == tag, flat[:, j], binned[:, j]) for j in range(flat.shape[1])] for tag in range(len(tags))
        ]
        return np.reshape(found, (len(tags), *values.shape[1:]))

    per_tag = {
        "mean": np.array([group.mean(axis=0) for group in groups]),
        "variance": np.array([group.var(axis=0, ddof=1) for group in groups]),
        "third_moment": np.array([((group - group.mean(axis=0)) ** 3).mean(axis=0) for group in groups]),
        "fourth_moment": np.array([((group - group.mean(axis=0)) ** 4).mean(axis=0) for group in groups]),
        "minimum": np.array([group.min(axis=0) for group in groups]),
        "maximum": np.array([group.max(axis=0) for group in groups]),
        "mean_absolute": np.array([np.abs(group).mean(axis=0) for group in groups]),
        "fraction_active": np.array([(group > 0).mean(axis=0) for group in groups]),
        "auroc": each(lambda mine, x, _: roc_auc_score(mine, x)),
        "average_precision": each(lambda mine, x, _: average_precision_score(mine, x)),
        "average_precision_low": each(lambda mine, x, _: average_precision_score(mine, -x)),
        "hits": np.array([(group > threshold).sum(axis=0) for group in groups]),
        "mutual_information": each(lambda mine, _, bins: mutual_info_score(mine, bins) / np.log(2)),
    }
    bins = [len(np.unique(column)) for column in binned.T]
    return xr.Dataset(
        {
            "count": ("tag", [len(group) for group in groups]),
            "bins": (DIMS[1:], np.reshape(bins, values.shape[1:])),
            "hit_threshold": (DIMS[1:], threshold),
            **{name: (DIMS, array) for name, array in per_tag.items()},
        },
        coords={"tag": list(tags), "layer": [0, 2], "neuron": np.arange(values.shape[2])},
        attrs={"by": "upos"},
    )


@pytest.fixture(scope="module")
def raw():
    return raw_values()


@pytest.fixture(scope="module")
def dataset(raw):
    return statistics_of(*raw)


def table_of(hit, mine):
    """2×2 counts: hit or not × tag or rest."""
    return np.array([[np.sum(hit & mine), np.sum(hit & ~mine)], [np.sum(~hit & mine), np.sum(~hit & ~mine)]])


def chernoff(x, mine):
    """The bound of `tails.mean_p` from raw values, minimised by SciPy; of magnitudes, E|x|³ is known by bounds alone."""
    z = (x - x.mean()) / x.std()
    third, fourth = np.mean(z**3), np.mean(z**4)
    return _chernoff(z, mine, (third, -third), fourth, (z.max(), -z.min()))


def chernoff_of_magnitudes(x, mine):
    y = np.abs(x)
    m, s = y.mean(), y.std()
    least, most = np.mean(x**2) ** 2 / m, np.sqrt(np.mean(x**2) * np.mean(x**4))
    third = [cube - 3 * m * np.mean(x**2) + 2 * m**3 for cube in (least, most)]
    fourth = (np.mean(x**4) - 4 * m * least + 6 * m**2 * np.mean(x**2) - 3 * m**4) / s**4
    return _chernoff((y - m) / s, mine, (third[1] / s**3, -third[0] / s**3), fourth, ((y.max() - m) / s, m / s))


def _chernoff(z, mine, third, fourth, reach):
    d, side = abs(z[mine].mean()), 0 if z[mine].mean() > 0 else 1
    b, m3 = min(reach[side], (fourth * len(z)) ** 0.25), third[side]

    def exponent(logarithm):
        rate = np.exp(logarithm)
        tail = sum((rate * b) ** k / math.factorial(k) for k in range(4, 150)) / b**4
        return np.log1p(rate**2 / 2 + m3 * rate**3 / 6 + fourth * tail) - rate * d

    grid = np.linspace(-12, np.log(40 / b), 200)
    near = grid[np.argmin([exponent(point) for point in grid])]
    best = scipy.optimize.minimize_scalar(
        exponent, bounds=(near - 0.2, near + 0.2), method="bounded", options={"xatol": 1e-7}
    )
    return min(1.0, 2 * np.exp(mine.sum() * best.fun))


def fisher(table):
    """Twice the smaller tail."""
    seen, law = table[0, 0], scipy.stats.hypergeom(table.sum(), table[0].sum(), table[:, 0].sum())
    return min(1.0, 2 * min(law.cdf(seen), law.sf(seen - 1)))


def by_scipy(x, mine, others):
    """Statistic, score, direction and p by independent implementations, of one neuron and tag; None: no test."""
    a, b = x[mine], x[~mine]
    difference = a.mean() - b.mean()
    welch = scipy.stats.ttest_ind(a, b, equal_var=False)
    magnitude = scipy.stats.ttest_ind(np.abs(a), np.abs(b), equal_var=False)
    f, p_of_f = scipy.stats.f_oneway(a, b)
    pooled = np.sqrt(((len(a) - 1) * a.var(ddof=1) + (len(b) - 1) * b.var(ddof=1)) / (len(x) - 2))
    total = x.var(ddof=1)
    inside = mine.mean() * a.var(ddof=1) + (~mine).mean() * b.var(ddof=1)
    reduction = (total - inside) / total
    mann_whitney = scipy.stats.mannwhitneyu(a, b).statistic / (len(a) * len(b))
    bound, bound_of_magnitudes = chernoff(x, mine), chernoff_of_magnitudes(x, mine)
    t_p, magnitude_p, f_p = (
        max(welch.pvalue, bound), max(magnitude.pvalue, bound_of_magnitudes), max(p_of_f, bound),
    )  # fmt: skip
    precisions = average_precision_score(mine, x), average_precision_score(mine, -x)
    hit = x > np.quantile(x, 0.95)
    table = table_of(hit, mine)
    squared = scipy.stats.chi2_contingency(table, correction=False)
    overlap = jaccard_score(mine, hit)
    excess = np.mean(hit[mine]) - np.mean(hit[~mine])
    rates = np.mean(a > 0) - np.mean(b > 0)
    return {
        "mean_difference": (difference, abs(difference), difference, None),
        "cohen_d": (difference / pooled, abs(difference / pooled), difference, None),
        "welch_t": (welch.statistic, abs(welch.statistic), difference, t_p),
        "localizer": (magnitude.statistic, abs(magnitude.statistic), magnitude.statistic, magnitude_p),
        "f_statistic": (f, f, difference, f_p),
        "eta_squared": (eta := scipy.stats.pearsonr(x, mine).statistic ** 2, eta, difference, f_p),
        "variance_reduction": (reduction, reduction, difference, None),
        "probeless": (far := sum(abs(a.mean() - x[other].mean()) for other in others), far, difference, None),
        "fraction_active_difference": (rates, abs(rates), rates, fisher(table_of(x > 0, mine))),
        # ranksums: the normal approximation without ties
        "auroc": (mann_whitney, max(mann_whitney, 1 - mann_whitney), mann_whitney - 0.5, None),
        "average_precision": (max(precisions), max(precisions), precisions[0] - precisions[1], None),
        "iou": (overlap, overlap, excess, None),
        "chi_squared": (
            squared.statistic,
            scipy.stats.contingency.association(table, method="cramer"),
            excess,
            fisher(table),
        ),
    }


@pytest.fixture(scope="module")
def oracle(raw):
    values, codes = raw
    places = itertools.product(range(len(TAGS)), *map(range, SHAPE))
    return {
        (tag, layer, neuron): by_scipy(
            values[:, layer, neuron], codes == tag, [codes == other for other in range(len(TAGS)) if other != tag]
        )
        for tag, layer, neuron in places
    }


@pytest.mark.parametrize("name", [name for name in METHODS if name not in ("lape", "mutual_information")])
def test_against_scipy_and_sklearn(name, dataset, oracle):
    found = score(dataset, name)
    # a mean of 1000 takes digits from a deviation of 1, in the oracles as well
    rtol = np.full(SHAPE, 1e-10)
    rtol[0, 2] = 1e-9
    for place, expected in oracle.items():
        statistic, strength, direction, p = expected[name]
        tolerance = {"rtol": rtol[place[1:]], "atol": 1e-13}
        np.testing.assert_allclose(found[name].to_numpy()[place], statistic, **tolerance)
        np.testing.assert_allclose(found["score"].to_numpy()[place], strength, **tolerance)
        assert found["sign"].to_numpy()[place] == (-1 if direction < 0 else 1)
        if p is not None:
            np.testing.assert_allclose(found["p"].to_numpy()[place], p, rtol=1e-6)
    assert ("p" in found) == (name in TESTED)


def test_f_is_that_of_sklearn(raw, dataset):
    values, codes = raw
    found = score(dataset, "f_statistic").drop_sel(neuron=2)  # sklearn's sums of squares lose digits to a mean of 1000
    for place, tag in enumerate(TAGS):
        f, p = f_classif(np.delete(values, 2, axis=2).reshape(len(values), -1), codes == place)
        np.testing.assert_allclose(found["score"].sel(tag=tag).to_numpy().ravel(), f, rtol=1e-10)
        assert np.all(found["p"].sel(tag=tag).to_numpy().ravel() >= p * (1 - 1e-9))  # see tails


def test_p_of_auroc_is_the_normal_approximation(raw, dataset):
    values, codes = raw
    p = score(dataset, "auroc")["p"].to_numpy()
    for tag, layer, neuron in [(0, 0, 3), (1, 0, 7), (3, 1, 0)]:  # no ties: ranksums does not correct for them
        x = values[:, layer, neuron]
        assert p[tag, layer, neuron] == pytest.approx(
            scipy.stats.ranksums(x[codes == tag], x[codes != tag]).pvalue, rel=1e-8
        )


def test_mutual_information_and_its_test(raw, dataset):
    values, codes = raw
    found = score(dataset, "mutual_information")
    for tag, layer, neuron in itertools.product(range(len(TAGS)), *map(range, SHAPE)):
        x = values[:, layer, neuron]
        bins = np.digitize(x, np.quantile(x, np.linspace(0, 1, 17)[1:-1]))
        table = np.array(
            [[np.sum((bins == b) & (codes == tag)), np.sum((bins == b) & (codes != tag))] for b in np.unique(bins)]
        )
        test = scipy.stats.chi2_contingency(table, correction=False, lambda_="log-likelihood")
        place = tag, layer, neuron
        share = min(np.mean(codes == tag), np.mean(codes != tag))
        mean, variance = (1.17 + share / 2) * len(table) - 1, (2.42 + 1.1 * share) * len(table)
        law = scipy.stats.gamma(mean**2 / variance, scale=variance / mean)
        assert found["p"].to_numpy()[place] == pytest.approx(law.sf(test.statistic), rel=1e-9)
        assert found["p"].to_numpy()[place] > test.pvalue or test.pvalue > 0.9
        bits = found["mutual_information"].to_numpy()[place]
        assert bits == pytest.approx(test.statistic / (2 * np.log(2) * len(x)), rel=1e-10)
        assert found["score"].to_numpy()[place] == bits
    one_bin = dataset.assign(bins=xr.ones_like(dataset["bins"]), mutual_information=dataset["mutual_information"] * 0)
    assert np.all(score(one_bin, "mutual_information")["p"] == 1)


def seldom_active(dataset):
    """Most neurons seldom active, L2.N4 nearly always for NOUN alone."""
    share = dataset["fraction_active"] * 0.1
    share[{"layer": 1, "neuron": 4}] = [0.01, 0.95, 0.02, 0.01]
    share[{"layer": 0, "neuron": 9}] = 0
    return dataset.assign(fraction_active=share)


def test_lape_is_entropy_weighted_by_activity(dataset):
    dataset = seldom_active(dataset)
    active = dataset["fraction_active"].to_numpy()
    found = score(dataset, "lape")
    bar = np.sort(active.ravel())[round(active.size * 0.95) - 1]
    for tag, layer, neuron in itertools.product(range(len(TAGS)), *map(range, SHAPE)):
        p = active[:, layer, neuron]
        entropy = scipy.stats.entropy(p) if p.any() else np.log(len(TAGS))
        assert found["entropy"].to_numpy()[layer, neuron] == pytest.approx(entropy, rel=1e-12)
        expected = (np.log(len(TAGS)) - entropy) * p[tag] / p.sum() if p.max() > bar else 0
        assert found["score"].to_numpy()[tag, layer, neuron] == pytest.approx(expected, rel=1e-10, abs=1e-14)
        sign = -1 if p[tag] < np.delete(p, tag).mean() else 1
        assert found["sign"].to_numpy()[tag, layer, neuron] == sign
    assert (found["score"] > 0).any()


def test_probeless_of_all_tags_together(dataset):
    mean = dataset["mean"].to_numpy()
    pairs = [np.abs(mean[a] - mean[b]) for a, b in itertools.combinations(range(len(TAGS)), 2)]
    np.testing.assert_allclose(score(dataset, "probeless")["probeless_overall"], np.sum(pairs, axis=0), rtol=1e-10)


def test_cramers_v_is_given_beside_chi_squared(dataset):
    found = score(dataset, "chi_squared")
    np.testing.assert_allclose(found["cramers_v"] ** 2 * 600, found["chi_squared"], rtol=1e-12)


def test_variance_reduction_is_eta_squared_less_chance(raw):
    values, codes = raw
    values = np.concatenate([values] * 40)  # with many tokens both are the same
    many = statistics_of(values[:, :, :3], np.tile(codes, 40))
    reduction, eta = (score(many, name)["score"].to_numpy() for name in ("variance_reduction", "eta_squared"))
    np.testing.assert_allclose(reduction, eta, atol=1e-3)
    assert np.all(reduction < eta)


def test_magnitudes_of_one_sign_are_the_values(raw, dataset):
    rounded = dataset.assign(mean_absolute=dataset["mean_absolute"] * (1 + 4e-16))
    t, magnitudes = (score(rounded, name)[name].isel(layer=0) for name in ("welch_t", "localizer"))
    np.testing.assert_array_equal(t.sel(neuron=[0, 2]), magnitudes.sel(neuron=[0, 2]))
    values, codes = raw
    turned = score(statistics_of(-values, codes), "localizer")["localizer"].isel(layer=0)
    np.testing.assert_allclose(turned, magnitudes, rtol=1e-6)


def test_rounding_is_no_spread():
    """Of a constant magnitude, what is left of cancelling squares is not taken for a variance, whichever sign it has."""
    rng = np.random.default_rng(0)
    sizes = rng.uniform(0.1, 9, (2, 50))
    signs = np.sign(rng.normal(size=(2, 40, 50)))
    signs[0, :, :10] = 1  # of one sign: variance 0, but mean and mean of magnitudes rounded differently
    groups = sizes[:, None] * signs
    mean = groups.mean(axis=1)
    made = xr.Dataset(
        {
            "count": ("tag", [40, 40]),
            "mean": (DIMS, mean[:, None]),
            "variance": (DIMS, np.where(np.abs(mean) < sizes * (1 - 1e-9), groups.var(axis=1, ddof=1), 0)[:, None]),
            "mean_absolute": (DIMS, (sizes * (1 + 4e-16 * rng.integers(-2, 3, sizes.shape)))[:, None]),
        },
        coords={"tag": ["a", "b"], "layer": [0], "neuron": np.arange(50)},
    )
    found = absolute_contrast(made)
    expected = (np.finfo(np.float32).eps * sizes.max(axis=0)) ** 2
    np.testing.assert_allclose(found.variance, np.broadcast_to(expected, (2, 1, 50)), rtol=1e-12)
    np.testing.assert_array_equal(found.variance, found.variance_rest)


@pytest.mark.parametrize("name", TESTED)
def test_q_covers_all_neurons_and_tags(dataset, name):
    scores = score(dataset, name)
    expected = scipy.stats.false_discovery_control(scores["p"].to_numpy().ravel())
    np.testing.assert_allclose(scores["q"].to_numpy().ravel(), expected, rtol=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_benjamini_hochberg_against_scipy(seed):
    p = np.random.default_rng(seed).random((3, 50)) ** (seed + 1)
    p[0, :10] = p[0, 0]
    expected = scipy.stats.false_discovery_control(p, axis=None).reshape(p.shape)
    np.testing.assert_allclose(benjamini_hochberg(p), expected, rtol=1e-12)


def test_benjamini_hochberg_of_extremes():
    assert benjamini_hochberg(np.array([])).shape == (0,)
    np.testing.assert_array_equal(benjamini_hochberg(np.array([0.0, 1.0, 1.0])), [0, 1, 1])


@pytest.mark.parametrize("method", METHODS)
def test_planted_neurons_come_first(dataset, method):
    if method == "lape":
        dataset = seldom_active(dataset)
    if method in ("mean_difference", "probeless"):  # they follow the scale
        dataset = dataset.drop_sel(neuron=2)
    best = {entry["tag"]: entry for entry in rank(dataset, method, top=1)}
    assert (best["NOUN"]["name"], best["NOUN"]["sign"]) == ("L2.N4", 1)
    if method not in UPWARDS:
        assert (best["VERB"]["name"], best["VERB"]["sign"]) == ("L2.N5", 1 if method == "localizer" else -1)


@pytest.mark.parametrize("method", METHODS)
def test_rank_follows_the_scores(dataset, method):
    entries = rank(dataset, method, top=1000, tags=["VERB"])
    assert len(entries) == 20  # all neurons
    assert [entry["rank"] for entry in entries] == list(range(1, 21))
    scores = score(dataset, method).sel(tag="VERB")
    assert [entry["score"] for entry in entries] == sorted(scores["score"].to_numpy().ravel(), reverse=True)
    for entry in json.loads(json.dumps(entries, allow_nan=False)):
        found = scores.sel(layer=entry["layer"], neuron=entry["neuron"])
        for name in {method, "p", "q", "mean", "mean_rest", "score", "sign", "count"} & set(scores):
            assert entry[name] == found[name]
        assert {"tag", "layer", "neuron", "name", "rank", "score", "sign", method, "mean", "mean_rest", "count"} <= set(
            entry
        )


def constant_values() -> tuple[np.ndarray, np.ndarray]:
    """All zero; all equal; two constants; one group constant; a negative constant; of one magnitude. Tags a and b."""
    columns = {
        "a": [[0, 0], [0.1, 0.1], [0.25, 0.25], [1, 1], [-3, -3], [-2, 2]],
        "b": [[0] * 5, [0.1] * 5, [-0.5] * 5, [0, 4, 2, 0, 4], [-3.5] * 5, [2, -2, 2, -2, 2]],
    }
    values = np.concatenate([np.array(columns[tag], dtype=float).T for tag in "ab"])
    return np.stack([values, values], axis=1), np.array([0] * 2 + [1] * 5)


@pytest.mark.parametrize("method", METHODS)
def test_constant_neurons_stay_finite(method):
    dataset = statistics_of(*constant_values(), tags=("a", "b")).isel(layer=[0])
    entries = rank(dataset, method, top=6, tags=["a"])
    json.dumps(entries, allow_nan=False)
    found = score(dataset, method)
    for variable in found.data_vars.values():
        assert np.isfinite(variable).all()
    by_neuron = {entry["neuron"]: entry for entry in entries}
    neutral = {"auroc": 0.5, "average_precision": 2 / 7}.get(method, 0)
    if method != "iou":  # chance for IoU depends on the number of hits
        assert by_neuron[0]["score"] == by_neuron[1]["score"] == pytest.approx(neutral)
    if method in TESTED:
        assert by_neuron[0]["p"] == by_neuron[1]["p"] == pytest.approx(1)
        assert all(0 <= entry["p"] <= 1 for entry in entries)
    if method == "localizer":
        assert by_neuron[5]["score"] == 0  # |x| is 2 everywhere
        assert by_neuron[5]["p"] == 1
    if method in ("cohen_d", "welch_t", "f_statistic", "eta_squared", "variance_reduction"):
        assert by_neuron[2]["sign"] == 1
        assert by_neuron[2]["score"] > (1e6 if method in ("cohen_d", "welch_t", "f_statistic") else 0.999)
    if method in ("cohen_d", "welch_t", "f_statistic"):
        # the better separated pair of constants, relative to its size, ranks higher
        assert [entry["neuron"] for entry in entries if entry["neuron"] < 5] == [2, 4, 3, 0, 1]
        assert [entry["neuron"] for entry in entries][:2] == [2, 4]


@pytest.mark.parametrize("name", ["auroc", "average_precision", "chi_squared", "iou", "localizer", "lape", "probeless"])
def test_a_lake_with_millions_of_tokens_does_not_overflow(dataset, name):
    large = dataset.assign(count=dataset["count"] * 20_000_000, hits=dataset["hits"] * 20_000_000)
    found, small = score(large, name), score(dataset, name)
    assert np.isfinite(found["score"]).all()
    if name != "localizer":
        np.testing.assert_allclose(found["score"], small["score"], rtol=1e-12)


def test_equal_scores_are_ordered_by_layer_and_neuron(dataset):
    flat = dataset.assign(auroc=xr.full_like(dataset["auroc"], 0.75))
    names = [entry["name"] for entry in rank(flat, "auroc", top=12, tags=["ADJ"])]
    assert names == [f"L0.N{neuron}" for neuron in range(10)] + ["L2.N0", "L2.N1"]


def test_unknown_names_list_the_known_ones(dataset):
    with pytest.raises(InputError, match=f"unknown method 'magic': known are {', '.join(METHODS)}$"):
        rank(dataset, "magic")
    with pytest.raises(InputError, match="unknown tag 'Y': known are ADJ, NOUN, VERB"):
        rank(dataset, "auroc", tags=["Y"])
    with pytest.raises(InputError, match="top must be at least 1"):
        rank(dataset, "auroc", top=0)


@pytest.mark.parametrize("name", PROBES)
def test_what_needs_a_probe_says_what_to_use(dataset, name):
    assert name in RANKERS
    for refused in (get_ranker, lambda name: rank(dataset, name), lambda name: RANKERS[name].function(dataset)):
        with pytest.raises(InputError, match=rf"'{name}' ranks neurons by a probe.*analysis\.probe .*cohen_d or auroc"):
            refused(name)


@pytest.mark.parametrize("method", METHODS)
def test_a_missing_variable_is_named(dataset, method):
    for name in RANKERS[method].needs:
        with pytest.raises(InputError, match=f"method '{method}' reads '{name}'"):
            RANKERS[method].function(dataset.drop_vars(name))
    needed = dataset[list(RANKERS[method].needs)]
    assert np.isfinite(RANKERS[method].function(needed)["score"]).all()
    with pytest.raises(InputError, match="ranking compares tags, but 'upos' has 1 of them"):
        RANKERS[method].function(dataset.isel(tag=[0]))


def test_statistics_without_histograms_say_so(dataset):
    moments = dataset.drop_vars(["auroc", "hits", "bins", "mutual_information", "average_precision"])
    for method in ("auroc", "average_precision", "iou", "chi_squared", "mutual_information"):
        with pytest.raises(InputError, match="compute the"):
            rank(moments, method)
    assert rank(moments, "welch_t")


def test_the_registry_describes_itself():
    assert len(METHODS) == 15
    for name, ranker in RANKERS.items():
        assert ranker.name == name
        for text in (ranker.description, ranker.formula, ranker.source, ranker.test):
            assert text
        assert ranker.needs


@pytest.fixture(scope="module")
def lake():
    made = MemoryLake(seed=3)
    labels = token_labels(made, "upos")
    made.values[2][labels.codes == 1, 4] += 3  # NOUN raises L2.N4
    made.values[2][labels.codes == 2, 5] -= 3  # VERB lowers L2.N5
    return made


@pytest.mark.parametrize("method", ["welch_t", "localizer", "eta_squared", "probeless", "auroc"])
def test_statistics_of_a_lake(lake, method):
    """What compute_statistics gives is what rankers take."""
    computed = compute_statistics(lake)
    labels = token_labels(lake, "upos")
    rows = labels.codes >= 0
    values = np.stack([lake.stored(layer)[rows] for layer in lake.layers], axis=1).astype(np.float64)
    expected = score(statistics_of(values, labels.codes[rows], labels.tags), method)
    found = score(computed, method)
    # 256 bins leave AUROC open; all others are exact
    atol = float(computed["auroc_error"].max()) if method == "auroc" else 1e-12
    np.testing.assert_allclose(found["score"], expected["score"], rtol=1e-9, atol=atol)
    best = {entry["tag"]: entry["name"] for entry in rank(computed, method, top=1)}
    assert (best["NOUN"], best["VERB"]) == ("L2.N4", "L2.N5")
