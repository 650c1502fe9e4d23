"""Rankers: how strongly does a neuron tell a tag from all others? One registry of pure functions of the statistics.

Every ranker returns a Dataset (tag, layer, neuron) with ``score`` (larger is stronger, whatever the direction), ``sign``
(+1 where the tag's tokens are the higher ones, −1 where they are the lower ones), the statistic itself under the ranker's
name, and ``p`` and ``q`` where a test is defined. q is Benjamini–Hochberg over all neurons × tags of the dataset. The
functions are in `rankers_moments` and `rankers_histogram`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import xarray as xr

from neuronlake.analysis import rankers_histogram as from_histograms
from neuronlake.analysis import rankers_moments as from_moments
from neuronlake.analysis.contrast import counts
from neuronlake.analysis.derived import REQUESTED, requested
from neuronlake.store.errors import InputError

PROBE = "probe"
"""In place of variables: what the statistics do not hold."""
_NO_TEST = "none; permutation"
_BASIC = ("count", "mean", "variance")


@dataclass(frozen=True, kw_only=True)
class Ranker:
    """One way of scoring neurons."""

    name: str
    description: str
    formula: str
    source: str
    """Where the formula comes from."""
    needs: tuple[str, ...]
    """Variables of the statistics that it reads; ``("probe",)`` for what no statistics can answer."""
    test: str
    """Where p comes from, or "none; permutation": `permutation_test` gives one, as for any ranker."""
    compute: Callable[[xr.Dataset], xr.Dataset]
    """Statistics → scores, without any check."""

    @property
    def also(self) -> tuple[str, ...]:
        """What `compute_statistics` must be asked for by its argument of that name."""
        return requested(name for name in self.needs if name in REQUESTED)

    def function(self, dataset: xr.Dataset) -> xr.Dataset:
        """Score a dataset of `compute_statistics`; see the module.

        Raises
        ------
        InputError
            When a variable that it needs is absent, there are fewer than two tags, or it needs a probe.
        """
        if missing := [name for name in self.needs if name not in dataset and name != PROBE]:
            raise InputError(f"method {self.name!r} reads {', '.join(map(repr, missing))}, {_absent(missing)}")
        counts(dataset)  # refuses a single tag
        return self.compute(dataset)


def _absent(missing: list[str]) -> str:
    if groups := requested(name for name in missing if name in REQUESTED):
        return f"which is computed on request: compute the statistics with also={list(groups)}, of all folds"
    return "which these statistics lack: compute them with basic=False, of all folds"


def _refuse(name: str) -> Callable[[xr.Dataset], xr.Dataset]:
    def refuse(_: xr.Dataset) -> xr.Dataset:
        raise InputError(
            f"method {name!r} ranks neurons by a probe, which statistics alone cannot fit: use neuronlake.analysis.probe "
            "(on the command line: neuronlake probe), or a method of the statistics such as cohen_d or auroc"
        )

    return refuse


_RANKERS = (
    Ranker(
        name="mean_difference",
        description="difference of mean activations; depends on the neuron's scale",
        formula="|μ_tag − μ_rest|",
        source="elementary",
        needs=_BASIC,
        test=_NO_TEST,
        compute=from_moments.mean_difference,
    ),
    Ranker(
        name="cohen_d",
        description="difference of means in pooled standard deviations",
        formula="|μ_tag − μ_rest| / √(((P−1)·s²_tag + (N−1)·s²_rest)/(P+N−2))",
        source="Cohen 1988, Statistical Power Analysis for the Behavioral Sciences",
        needs=_BASIC,
        test=_NO_TEST,
        compute=from_moments.cohen_d,
    ),
    Ranker(
        name="welch_t",
        description="Welch's t-test, unequal variances; grows with the number of tokens",
        formula="|μ_tag − μ_rest| / √(s²_tag/P + s²_rest/N)",
        source="Welch 1947, Biometrika 34, 28–35",
        needs=_BASIC,
        test="Welch's t, two-sided; never below a bound for any distribution",
        compute=from_moments.welch_t,
    ),
    Ranker(
        name="f_statistic",
        description="one-way analysis of variance, tag against rest; grows with the number of tokens",
        formula="B / (W/(P+N−2)), B = (μ_tag − μ_rest)²·P·N/(P+N), W = (P−1)·s²_tag + (N−1)·s²_rest",
        source="Fisher 1925, Statistical Methods for Research Workers; scikit-learn's f_classif",
        needs=_BASIC,
        test="F with 1 and P+N−2 degrees of freedom; never below a bound for any distribution",
        compute=from_moments.f_statistic,
    ),
    Ranker(
        name="eta_squared",
        description="share of the sum of squares between tag and rest; independent of scale, favours frequent tags",
        formula="B / (B + W), as for f_statistic",
        source="Cohen 1973, Educ. Psychol. Meas. 33, 107–112",
        needs=_BASIC,
        test="F with 1 and P+N−2 degrees of freedom; never below a bound for any distribution",
        compute=from_moments.eta_squared,
    ),
    Ranker(
        name="variance_reduction",
        description="share of the variance that knowing the tag removes; η² less what chance removes",
        formula="(σ² − (w_tag·s²_tag + w_rest·s²_rest)) / σ², unbiased variances, w the shares of tokens",
        source="Gurnee et al. 2024, Universal neurons in GPT2 language models",
        needs=_BASIC,
        test=_NO_TEST,
        compute=from_moments.variance_reduction,
    ),
    Ranker(
        name="probeless",
        description="distance of the tag's mean to those of all other tags, each counted once; depends on scale",
        formula="Σ_c' |μ_c − μ_c'|",
        source="Antverg & Belinkov 2022, On the pitfalls of analyzing individual neurons in language models",
        needs=_BASIC,
        test=_NO_TEST,
        compute=from_moments.probeless,
    ),
    Ranker(
        name="localizer",
        description="Welch's t-test of magnitudes; the sign says whose magnitudes are larger",
        formula="|μ_tag − μ_rest| / √(s²_tag/P + s²_rest/N) of |x|",
        source="AlKhamissi et al. 2025, The LLM language network, arXiv 2411.02280",
        needs=(*_BASIC, "mean_absolute"),
        test="Welch's t, two-sided; never below a bound for any distribution",
        compute=from_moments.localizer,
    ),
    Ranker(
        name="lape",
        description="how selectively a neuron is active, for the tags it is active for; 0 if rarely active for all",
        formula="(ln K − H(p'))·p'_tag, p' = p/Σp, p = P(x > 0 | tag), some p above the 95th percentile of all p",
        source="after Tang et al. 2024, Language-specific neurons, arXiv 2402.16438",
        needs=("count", "fraction_active"),
        test=_NO_TEST,
        compute=from_moments.lape,
    ),
    Ranker(
        name="fraction_active_difference",
        description="difference of the shares of active tokens",
        formula="|P(x > 0 | tag) − P(x > 0 | rest)|",
        source="elementary; Fisher 1935, J. R. Stat. Soc. 98, 39–82 (test)",
        needs=("count", "fraction_active"),
        test="Fisher's exact, two-sided (twice the smaller tail)",
        compute=from_moments.fraction_active_difference,
    ),
    Ranker(
        name="auroc",
        description="how often a token of the tag exceeds one of another tag; independent of scale and outliers",
        formula="max(a, 1 − a), a = P(x_tag > x_rest) + ½·P(x_tag = x_rest)",
        source="Mann & Whitney 1947, Ann. Math. Stat. 18, 50–60; Hanley & McNeil 1982, Radiology 143, 29–36",
        needs=("count", "auroc"),
        test="Mann–Whitney, normal approximation, two-sided",
        compute=from_histograms.auroc,
    ),
    Ranker(
        name="average_precision",
        description="area under precision and recall of a detector of the tag; chance is the tag's share of tokens",
        formula="max(AP(x), AP(−x)), AP = Σ_k (R_k − R_{k−1})·P_k",
        source="Suau et al. 2020, Finding experts in transformer models",
        needs=("count", "average_precision", "average_precision_low"),
        test=_NO_TEST,
        compute=from_histograms.average_precision,
    ),
    Ranker(
        name="iou",
        description="overlap of the neuron's top 5 % of tokens with the tag's; high activations alone",
        formula="|x > τ ∧ c| / |x > τ ∨ c|, τ the edge nearest to the 95th percentile",
        source="Mu & Andreas 2020, Compositional explanations of neurons",
        needs=("count", "hits"),
        test="none; permutation (chi_squared tests the same table)",
        compute=from_histograms.iou,
    ),
    Ranker(
        name="chi_squared",
        description="association of the neuron's top 5 % of tokens with the tag, as Cramér's V",
        formula="√(χ²/tokens), χ² of (x > τ) × (tag or rest)",
        source="Pearson 1900, Phil. Mag. 50, 157–175; Cramér 1946, Mathematical Methods of Statistics",
        needs=("count", "hits"),
        test="Fisher's exact, two-sided (twice the smaller tail)",
        compute=from_histograms.chi_squared,
    ),
    Ranker(
        name="mutual_information",
        description="bits that the activation tells about having the tag, whatever the form of the dependence",
        formula="Σ_{b,c} p(b,c)·log₂(p(b,c)/(p(b)·p(c))) over histogram bins b and c in {tag, rest}",
        source="Cover & Thomas 2006, Elements of Information Theory; Woolf 1957, Ann. Hum. Genet. 21, 397–409 (test)",
        needs=("count", "mutual_information", "bins", "auroc"),
        test="G-test, a gamma law that allows for bins of few tokens",
        compute=from_histograms.mutual_information,
    ),
    *(
        Ranker(
            name=name,
            description=description,
            formula=formula,
            source=source,
            needs=(PROBE,),
            test=_NO_TEST,
            compute=_refuse(name),
        )
        for name, description, formula, source in (
            (
                "linear_weights",
                "needs a probe: weights of an elastic-net classifier on standardised activations",
                "|w_c|, the largest that cover a share of the weight's mass",
                "Dalvi et al. 2019, What is one grain of sand in the desert?",
            ),
            (
                "gaussian_probe",
                "needs a probe: greedy selection by a Gaussian classifier",
                "mutual information of the tag and class Gaussians with a normal-inverse-Wishart prior",
                "Torroba Hennigen et al. 2020, Intrinsic probing through dimension selection",
            ),
            (
                "sparse_probe",
                "needs a probe: logistic regression on k neurons at a time",
                "score of a k-sparse classifier, k = 1, 2, 4 …, after a screen by a fast ranker",
                "Gurnee et al. 2023, Finding neurons in a haystack",
            ),
        )
    ),
)
RANKERS: Mapping[str, Ranker] = MappingProxyType({ranker.name: ranker for ranker in _RANKERS})


def get_ranker(name: str) -> Ranker:
    """Return the ranker of that name.

    Raises
    ------
    InputError
        When there is none (the known ones are listed), or it needs a probe (what to use instead is named).
    """
    ranker = RANKERS.get(name)
    if ranker is None:
        known = ", ".join(other for other, candidate in RANKERS.items() if PROBE not in candidate.needs)
        raise InputError(f"unknown method {name!r}: known are {known}")
    if PROBE in ranker.needs:
        ranker.compute(xr.Dataset())  # says what to use instead
    return ranker
