"""Everything about one neuron: its distribution, its tags, its tokens in context, and what it writes."""

from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from scipy.stats import rankdata

from neuronlake.analysis.chosen_rows import token_mask
from neuronlake.analysis.labels import MIN_TOKENS, LabelVector, token_labels
from neuronlake.analysis.listings import NeuronDescription
from neuronlake.analysis.neuron import check_neuron, neuron_name
from neuronlake.analysis.queries import top_tokens
from neuronlake.analysis.ranking import score
from neuronlake.analysis.source import LakeSource, versions
from neuronlake.analysis.textualization import ACTIVATIONS, textualize
from neuronlake.analysis.weights import vocabulary
from neuronlake.store.errors import InputError
from neuronlake.store.lake import Lake
from neuronlake.store.layout import DEFAULT_SITE
from neuronlake.store.parallel import map_ordered
from neuronlake.store.weights import NORMS, find_weights

QUANTILES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)
SPARSITY = "Treves–Rolls sparseness of |x|, scaled to [0, 1]: (1 − (Σ|x|/n)² / (Σx²/n)) / (1 − 1/n); Vinje & Gallant 2000"
TOKENS = "all tokens but special ones and padding"
DEFAULT_LABEL = "upos"


def describe_neuron(
    source: LakeSource,
    layer: int,
    neuron: int,
    *,
    by: str | None = None,
    k: int = 10,
    subword: str = "last",
    shift: int = 0,
) -> NeuronDescription:
    """Describe one neuron from its stored values, the index, and the model's weights where the lake holds them.

    Everything is exact: the neuron's column is read once, and nothing else of the activations but blocks that a list of top
    tokens needs.

    Parameters
    ----------
    source
        The lake.
    layer, neuron
        Which neuron.
    by
        Label of the tag profile, as for `token_labels`; None means ``upos`` where the lake has it, or else no profile.
    k
        Tokens of each list.
    subword, shift
        Which tokens carry which tag, as for `token_labels`.

    Returns
    -------
    NeuronDescription
        A dictionary that a notebook shows as tables. JSON-compatible; what is not defined (of a constant neuron, say) is
        None. name, layer, neuron, site, lake, model, encoding, versions, and

        - ``moments``, of all ordinary tokens, labelled or not: see `moments_of`;
        - ``tags``: by, subword, shift, labelled (tokens), dropped (tags of fewer than two tokens), profile (of every tag:
          see `tag_profile`); None without a label;
        - ``strongest_tag``: the first of the profile, with ``direction`` (above or below) and a ``sentence``;
        - ``top``, ``bottom``, ``top_per_document``, ``bottom_per_document``: see `top_tokens`; the latter two with one token
          of each document at most;
        - ``weights``: None where the lake holds none (see `neuronlake weights`), else ``norm`` ‖w_out‖, ``contribution``
          mean |x|·‖w_out‖ (arXiv 2406.09265: |m_i|·‖v_i‖), ``vocabulary`` (see `vocabulary`) and ``textualization``
          (see `textualize`; None without embeddings).

    Raises
    ------
    InputError
        When the neuron or the label does not exist, a policy is unknown, `k` is below 1, or the lake holds no token.
    DamageError
        When a chunk, or what is stored of the weights, is damaged.
    """
    check_neuron(source, layer, neuron)
    if k < 1:
        raise InputError(f"k must be at least 1, got {k}")
    if by is None and DEFAULT_LABEL in source.label_columns:
        by = DEFAULT_LABEL
    labels = None if by is None else token_labels(source, by, subword=subword, shift=shift)
    column = read_column(source, layer, neuron)
    values = column[token_mask(source, None, special=False)]
    if not values.size:
        raise InputError("the lake holds no token but special ones")
    moments = moments_of(values)
    profile = None if labels is None else tag_profile(column, labels)
    return NeuronDescription(
        {
            "name": neuron_name(layer, neuron),
            "layer": layer,
            "neuron": neuron,
            "site": source.site,
            "lake": source.fingerprint,
            "model": source.spec.model["name"] if isinstance(source, Lake) else None,
            "encoding": source.encoding,
            "versions": versions(),
            "moments": moments,
            "tags": None if labels is None else {**_of_labels(labels), "profile": profile},
            "strongest_tag": _strongest(profile),
            **_tokens(source, layer, neuron, k, by if by in source.label_columns else None),
            "weights": _weights(source, layer, neuron, k, moments["mean_absolute"]),
        }
    )


def read_column(source: LakeSource, layer: int, neuron: int) -> NDArray[np.float32]:
    """One neuron's value on every committed row, float32 (lines of the token table,)."""

    def read(block: int) -> NDArray[np.float32]:
        return source.read_block(layer=layer, block=block, neurons=[neuron])[:, 0]

    return np.concatenate([np.empty(0, dtype=np.float32), *map_ordered(read, source.blocks)])


def moments_of(values: NDArray[np.float32]) -> dict[str, Any]:
    """Describe the distribution of some values, in float64.

    Returns
    -------
    dict
        tokens (which they are of), count, mean, standard_deviation (ddof = 1), skewness (m₃/m₂^1.5) and excess_kurtosis
        (m₄/m₂² − 3; both of the population, as scipy's default), mean_absolute, fraction_active (x > 0), fraction_zero,
        minimum, maximum, quantiles (share → the smallest value that at least that share of the tokens does not exceed:
        numpy's ``inverted_cdf``), sparsity (value and measure: 0 where all magnitudes are equal, 1 where one token has all).
    """
    x = values.astype(np.float64)
    n, mean = len(x), float(x.mean())
    away = x - mean
    second, third, fourth = (float(np.mean(away**power)) for power in (2, 3, 4))
    constant = x.min() == x.max()
    absolute, square = float(np.abs(x).mean()), float(np.mean(x**2))
    sparse = n > 1 and square > 0
    return {
        "tokens": TOKENS,
        "count": n,
        "mean": mean,
        "standard_deviation": float(x.std(ddof=1)) if n > 1 else None,
        "skewness": None if constant else third / second**1.5,
        "excess_kurtosis": None if constant else fourth / second**2 - 3,
        "mean_absolute": absolute,
        "fraction_active": float(np.mean(x > 0)),
        "fraction_zero": float(np.mean(x == 0)),
        "minimum": float(x.min()),
        "maximum": float(x.max()),
        "quantiles": dict(zip(map(str, QUANTILES), np.quantile(x, QUANTILES, method="inverted_cdf").tolist(), strict=True)),
        "sparsity": {
            "value": (1 - min(absolute**2 / square, 1.0)) / (1 - 1 / n) if sparse else None,
            "measure": SPARSITY,
        },
    }


def tag_profile(column: NDArray[np.float32], labels: LabelVector) -> list[dict[str, Any]]:
    """How a neuron's values differ between tags, the tag that it tells best from the others first.

    Parameters
    ----------
    column : float32 (lines,)
        Value on every committed row.
    labels
        Their tags; those of fewer than two tokens are left out already.

    Returns
    -------
    list of dict
        tag, count, mean, fraction_active, auroc (P(x₊ > x₋) + ½P(x₊ = x₋) against all other labelled tokens, from the ranks
        of all values: Mann & Whitney 1947), auroc_error (0: it is exact), cohen_d (as the ranker of that name); by
        |auroc − ½|, then tag. With a single tag the last three are None.
    """
    labelled = labels.codes >= 0
    x, codes = column[labelled].astype(np.float64), labels.codes[labelled]
    tags = len(labels.tags)
    count = np.bincount(codes, minlength=tags)
    mean = np.bincount(codes, x, minlength=tags) / count
    variance = np.bincount(codes, (x - mean[codes]) ** 2, minlength=tags) / (count - 1)
    active = np.bincount(codes, x > 0, minlength=tags) / count
    entries: list[dict[str, Any]] = [
        {"tag": tag, "count": int(count[at]), "mean": float(mean[at]), "fraction_active": float(active[at])}
        for at, tag in enumerate(labels.tags)
    ]
    if tags == 1:
        return [{**entries[0], "auroc": None, "auroc_error": None, "cohen_d": None}]
    # ranks count from 1, ties share their mean
    above = np.bincount(codes, rankdata(x), minlength=tags) - count * (count + 1) / 2
    auroc = above / (count * (len(x) - count))
    statistics = xr.Dataset(
        {
            "count": ("tag", count),
            **{
                name: (("tag", "layer", "neuron"), values[:, None, None])
                for name, values in (("mean", mean), ("variance", variance))
            },
        },
        coords={"tag": list(labels.tags), "layer": [0], "neuron": [0]},
    )
    cohen_d = score(statistics, "cohen_d")["cohen_d"].to_numpy().ravel()
    for at, entry in enumerate(entries):
        entry |= {"auroc": float(auroc[at]), "auroc_error": 0.0, "cohen_d": float(cohen_d[at])}
    return sorted(entries, key=lambda entry: (-abs(entry["auroc"] - 0.5), entry["tag"]))


def _of_labels(labels: LabelVector) -> dict[str, Any]:
    return {
        "by": labels.by,
        "subword": labels.subword,
        "shift": labels.shift,
        "labelled": labels.tokens,
        "dropped": labels.dropped,
        "min_tokens": MIN_TOKENS,
    }


def _strongest(profile: list[dict[str, Any]] | None) -> dict[str, Any] | None:
    if not profile or profile[0]["auroc"] is None:
        return None
    best = profile[0]
    direction = "below" if best["auroc"] < 0.5 else "above"
    either = max(best["auroc"], 1 - best["auroc"])
    end = "lowest" if direction == "below" else "highest"
    return {
        **best,
        "direction": direction,
        "sentence": f"{end} on {best['tag']} (AUROC {either:.3f}, from {direction})",
    }


def _tokens(source: LakeSource, layer: int, neuron: int, k: int, label: str | None) -> dict[str, Any]:
    labels = [] if label is None else [label]
    return {
        f"{end}{'' if cap is None else '_per_document'}": top_tokens(
            source, layer, neuron, k, bottom=end == "bottom", per_document=cap, labels=labels
        )
        for cap in (None, 1)
        for end in ("top", "bottom")
    }


def _weights(source: LakeSource, layer: int, neuron: int, k: int, mean_absolute: float) -> dict[str, Any] | None:
    if not isinstance(source, Lake) or source.site != DEFAULT_SITE:
        return None
    weights = find_weights(source.path, source.spec.model.get("sha256"))
    if weights is None:
        return None
    norm = float(weights.neuron(NORMS, source.layers.index(layer), neuron))
    texts = None
    if weights.embedded:
        ends = (("top", False), ("bottom", True))
        found = {name: textualize(source, layer, neuron, k, bottom=bottom, weights=weights) for name, bottom in ends}
        texts = {"activations": ACTIVATIONS, **found}
    return {
        "norm": norm,
        "contribution": mean_absolute * norm,
        "vocabulary": vocabulary(source, layer, neuron, min(k, weights.listed), weights=weights),
        "textualization": texts,
    }
