"""Rankers that start from moments: means, variances, mean magnitudes and shares of active tokens.

Two constant groups have no spread to measure a difference by: see `contrast.positive_variances`. Equal ones give no
difference, F = 0 and p = 1; different ones a finite, huge value.
"""

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from scipy import special

from neuronlake.analysis.contrast import Contrast, absolute_contrast, as_array, contrast, counts, with_rest
from neuronlake.analysis.rankers_scores import scores
from neuronlake.analysis.selective import selectivity
from neuronlake.analysis.tails import absolute_population, count_p, mean_p, population


def mean_difference(dataset: xr.Dataset) -> xr.Dataset:
    """Difference of means, μ_tag − μ_rest, in units of activation.

    Not comparable between neurons of different scale; a first look, and what steering moves along.
    """
    c = contrast(dataset)
    return scores(dataset, "mean_difference", c.mean - c.mean_rest)


def cohen_d(dataset: xr.Dataset) -> xr.Dataset:
    """Cohen's d with the pooled deviation: (μ_tag − μ_rest)/√(((P−1)·s²_tag + (N−1)·s²_rest)/(P+N−2)).

    Cohen (1988), Statistical Power Analysis for the Behavioral Sciences, eq. 2.5.2.
    """
    c = contrast(dataset)
    pooled = ((c.count - 1) * c.variance + (c.count_rest - 1) * c.variance_rest) / (c.count + c.count_rest - 2)
    return scores(dataset, "cohen_d", (c.mean - c.mean_rest) / np.sqrt(pooled))


def welch_t(dataset: xr.Dataset) -> xr.Dataset:
    """Welch's t, (μ_tag − μ_rest)/√(s²_tag/P + s²_rest/N), with two-sided p.

    Welch (1947), Biometrika 34, 28–35; degrees of freedom by Welch–Satterthwaite. With few tokens of a heavy-tailed neuron
    that is far too small: p is the larger of it and of `tails.mean_p`, which holds for any distribution.
    """
    t, p = _welch(contrast(dataset))
    return scores(dataset, "welch_t", t, p=np.maximum(p, mean_p(population(dataset))))


def localizer(dataset: xr.Dataset) -> xr.Dataset:
    """Welch's t of magnitudes |x|, tag against rest, with two-sided p; the sign says whose magnitudes are larger.

    AlKhamissi et al. (2025), "The LLM language network", arXiv 2411.02280, who take the top 1 % of units; the second moment
    of |x| is that of x: see `contrast.absolute_contrast`. p as for `welch_t`, of magnitudes.
    """
    t, p = _welch(absolute_contrast(dataset))
    return scores(dataset, "localizer", t, p=np.maximum(p, mean_p(absolute_population(dataset))))


def f_statistic(dataset: xr.Dataset) -> xr.Dataset:
    """F of a one-way analysis of variance of tag against rest, with its p.

    F = B/(W/(P+N−2)) with B = (μ_tag − μ_rest)²·P·N/(P+N) and W = (P−1)·s²_tag + (N−1)·s²_rest: the square of Student's t.
    Fisher (1925), Statistical Methods for Research Workers; ``sklearn.feature_selection.f_classif`` of two classes. As F
    takes means for normal, p is the larger of its own and of `tails.mean_p`, which holds for any distribution.
    """
    c = contrast(dataset)
    between, within = _anova(c)
    f = between / (within / (c.count + c.count_rest - 2))
    return scores(dataset, "f_statistic", f, direction=c.mean - c.mean_rest, p=_p_of_f(f, c, dataset))


def eta_squared(dataset: xr.Dataset) -> xr.Dataset:
    """Share of the sum of squares that lies between tag and rest, B/(B + W), with the p of `f_statistic`.

    B and W as in `f_statistic`. Cohen (1973), Educ. Psychol. Meas. 33, 107–112.
    """
    c = contrast(dataset)
    between, within = _anova(c)
    f = between / (within / (c.count + c.count_rest - 2))
    return scores(
        dataset, "eta_squared", between / (between + within), direction=c.mean - c.mean_rest, p=_p_of_f(f, c, dataset)
    )


def variance_reduction(dataset: xr.Dataset) -> xr.Dataset:
    """Share of the variance that knowing the tag removes, (σ² − (w_tag·s²_tag + w_rest·s²_rest))/σ².

    Gurnee et al. (2024), "Universal neurons in GPT2 language models"; w are the shares of tokens. All variances are
    unbiased: with population variances this would be η² exactly, with these a useless split comes out just below zero, and
    the score may be negative.
    """
    dataset = with_rest(dataset)
    c = contrast(dataset)
    between, within = _anova(c)
    tokens = c.count + c.count_rest
    total = (between + within) / (tokens - 1)
    inside = (c.count * c.variance + c.count_rest * c.variance_rest) / tokens
    constant = (as_array(dataset, "variance") == 0) & (as_array(dataset, "variance_rest") == 0) & (between == 0)
    reduction = np.where(constant, 0.0, (total - inside) / total)
    return scores(dataset, "variance_reduction", reduction, score=reduction, direction=c.mean - c.mean_rest)


def probeless(dataset: xr.Dataset) -> xr.Dataset:
    """Distances of the tag's mean to those of all other tags, Σ_c' |μ_c − μ_c'|; the sign is that of μ_tag − μ_rest.

    Antverg & Belinkov (2022), "On the pitfalls of analyzing individual neurons in language models", who rank neurons by the
    sum over all pairs of tags: ``probeless_overall`` (layer, neuron), each pair once.
    """
    c = contrast(dataset)
    order = np.argsort(c.mean, axis=0)
    gaps = np.diff(
        np.take_along_axis(c.mean, order, 0), axis=0
    )  # (tags - 1, layers, neurons), none negative: no cancellation
    below = np.arange(1, len(c.mean))[:, None, None]
    distance = np.zeros_like(c.mean)
    distance[1:] += np.cumsum(gaps * below, axis=0)
    distance[:-1] += np.cumsum((gaps * (len(c.mean) - below))[::-1], axis=0)[::-1]
    summed = np.empty_like(distance)
    np.put_along_axis(summed, order, distance, 0)
    found = scores(dataset, "probeless", summed, direction=c.mean - c.mean_rest)
    return found.assign(probeless_overall=(("layer", "neuron"), summed.sum(axis=0) / 2))


def fraction_active_difference(dataset: xr.Dataset) -> xr.Dataset:
    """Difference of the shares of tokens with x > 0, tag minus rest, with the p of Fisher's exact test.

    Of the table (active or not) × (tag or rest): see `tails.count_p`.
    """
    count, rest = counts(dataset)
    active = np.rint(as_array(dataset, "fraction_active") * count)  # whole numbers, exactly
    active_rest = active.sum(axis=0) - active
    difference = active / count - active_rest / rest
    return scores(dataset, "fraction_active_difference", difference, p=count_p(active, count, active_rest, rest))


def lape(dataset: xr.Dataset) -> xr.Dataset:
    """How selectively a neuron is active, for the tags that it is active for: (ln K − H(p'))·p'_tag.

    p' are the K shares of active tokens, divided by their sum, and H their entropy in nats. Neurons that no tag activates
    more than the 95th percentile of all shares score 0: Tang et al. (2024), arXiv 2402.16438, who rank neurons by H alone
    (see `selective.lape`); weighting by p'_tag, which tells the tags of one neuron apart, is ours. The sign is that of
    p_tag against the mean share of the other tags. ``entropy`` (layer, neuron) is H.
    """
    active = as_array(dataset, "fraction_active")
    found = selectivity(active, activity_percentile=95.0)
    score = np.where(found.passes, (np.log(len(active)) - found.entropy) * found.share, 0.0)
    # of a neuron that is equally active for all tags, rounding may leave the difference just below zero
    strength = np.maximum(score, 0.0)
    direction = active - (active.sum(axis=0) - active) / (len(active) - 1)
    scored = scores(dataset, "lape", strength, direction=direction)
    return scored.assign(entropy=(("layer", "neuron"), found.entropy, {"units": "nat"}))


def _welch(c: Contrast) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Welch's t and its two-sided p."""
    error, error_rest = c.variance / c.count, c.variance_rest / c.count_rest
    t = (c.mean - c.mean_rest) / np.sqrt(error + error_rest)
    share = error / (error + error_rest)
    freedom = 1 / (share**2 / (c.count - 1) + (1 - share) ** 2 / (c.count_rest - 1))
    return t, 2 * special.stdtr(freedom, -np.abs(t))


def _anova(c: Contrast) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Sums of squares between and within tag and rest."""
    between = (c.mean - c.mean_rest) ** 2 * (c.count * (c.count_rest / (c.count + c.count_rest)))
    return between, (c.count - 1) * c.variance + (c.count_rest - 1) * c.variance_rest


def _p_of_f(f: NDArray[np.float64], c: Contrast, dataset: xr.Dataset) -> NDArray[np.float64]:
    p: NDArray[np.float64] = special.fdtrc(1, c.count + c.count_rest - 2, f)
    return np.maximum(p, mean_p(population(dataset)))
