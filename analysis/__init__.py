"""Questions to a lake: statistics per tag, rankings of neurons, top tokens, probes, pictures.

Names are imported when first used, so that a question needs only the libraries it uses. Nothing here imports a model
library.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from neuronlake.analysis.features import FeatureSet
    from neuronlake.analysis.figures import layer_tag_heatmap
    from neuronlake.analysis.labels import LabelVector, token_labels
    from neuronlake.analysis.neuron import neuron_name, parse_neuron
    from neuronlake.analysis.probes import ProbeResult, probe
    from neuronlake.analysis.queries import top_tokens
    from neuronlake.analysis.rankers import RANKERS, Ranker
    from neuronlake.analysis.ranking import rank, score
    from neuronlake.analysis.significance import benjamini_hochberg
    from neuronlake.analysis.source import LakeSource
    from neuronlake.analysis.splits import Split, split_documents
    from neuronlake.analysis.statistics import compute_statistics

__all__ = [
    "RANKERS",
    "FeatureSet",
    "LabelVector",
    "LakeSource",
    "ProbeResult",
    "Ranker",
    "Split",
    "benjamini_hochberg",
    "compute_statistics",
    "layer_tag_heatmap",
    "neuron_name",
    "parse_neuron",
    "probe",
    "rank",
    "score",
    "split_documents",
    "token_labels",
    "top_tokens",
]

_HOMES = {
    "features": ("FeatureSet",),
    "figures": ("layer_tag_heatmap",),
    "labels": ("LabelVector", "token_labels"),
    "neuron": ("neuron_name", "parse_neuron"),
    "probes": ("ProbeResult", "probe"),
    "queries": ("top_tokens",),
    "rankers": ("RANKERS", "Ranker"),
    "ranking": ("rank", "score"),
    "significance": ("benjamini_hochberg",),
    "source": ("LakeSource",),
    "splits": ("Split", "split_documents"),
    "statistics": ("compute_statistics",),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    try:
        home = _HOME_OF[name]
    except KeyError:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}") from None
    return getattr(import_module(f"{__name__}.{home}"), name)


def __dir__() -> list[str]:
    return __all__
