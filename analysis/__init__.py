"""Questions to a lake: statistics per tag, rankings of neurons, top tokens, probes, pictures.

Names are imported when first used, so that a question needs only the libraries it uses. Nothing here imports a model
library.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from neuronlake.analysis.activation_share import activation_hits
    from neuronlake.analysis.attribution import read_attribution
    from neuronlake.analysis.building import StatisticsBuilder
    from neuronlake.analysis.chosen_tokens import choose_tokens
    from neuronlake.analysis.correlation import coactivation
    from neuronlake.analysis.describe import describe_neuron
    from neuronlake.analysis.figure_histogram import neuron_histogram
    from neuronlake.analysis.figure_style import figure_bytes
    from neuronlake.analysis.figure_volcano import volcano
    from neuronlake.analysis.figures import layer_class_counts, layer_tag_heatmap, tag_bars
    from neuronlake.analysis.firing import firing_neurons, strongest_neurons
    from neuronlake.analysis.key_neurons import choose_key_neurons, hit_scores, key_list, ranker_scores, scores_of
    from neuronlake.analysis.labels import LabelRequest, LabelVector, token_labels
    from neuronlake.analysis.listings import NeuronDescription, Ranking, TokenList
    from neuronlake.analysis.neuron import neuron_name, parse_neuron
    from neuronlake.analysis.neuron_columns import column_table, write_columns
    from neuronlake.analysis.neuron_neighbours import neighbours
    from neuronlake.analysis.permutation import permutation_test
    from neuronlake.analysis.probing.concept import CARProbe, CAVProbe
    from neuronlake.analysis.probing.concept_null import random_concepts
    from neuronlake.analysis.probing.elastic_net import ranked_by_weight
    from neuronlake.analysis.probing.estimators import (
        ElasticNetProbe,
        LDAProbe,
        LinearSVMProbe,
        LogisticProbe,
        RidgeProbe,
        SparseProbe,
    )
    from neuronlake.analysis.probing.features import FeatureSet
    from neuronlake.analysis.probing.gaussian import GaussianProbe
    from neuronlake.analysis.probing.labelled import labelled_matrix
    from neuronlake.analysis.probing.probes import probe, probe_sweep
    from neuronlake.analysis.probing.result import ProbeResult, ProbeResults
    from neuronlake.analysis.probing.settings import ProbeSettings
    from neuronlake.analysis.probing.splits import Split, split_documents
    from neuronlake.analysis.queries import describe_lines, top_tokens
    from neuronlake.analysis.rankers import RANKERS, Ranker
    from neuronlake.analysis.ranking import rank, score
    from neuronlake.analysis.redundancy import redundancy_clusters
    from neuronlake.analysis.refinement import refine
    from neuronlake.analysis.selective import SharedCategories, language_classes, lape
    from neuronlake.analysis.significance import benjamini_hochberg
    from neuronlake.analysis.source import LakeSource
    from neuronlake.analysis.statistics import compute_several, compute_statistics
    from neuronlake.analysis.tag_building import TagListsBuilder, complete_tag_lists
    from neuronlake.analysis.textualization import textualize
    from neuronlake.analysis.threshold import TokensBeyond, tokens_above
    from neuronlake.analysis.token_neighbours import similar_tokens
    from neuronlake.analysis.token_rows import token_activations, write_token_activations
    from neuronlake.analysis.weighted import parse_weights, top_tokens_weighted
    from neuronlake.analysis.weights import output_vectors, vocabulary

__all__ = [
    "RANKERS",
    "CARProbe",
    "CAVProbe",
    "ElasticNetProbe",
    "FeatureSet",
    "GaussianProbe",
    "LDAProbe",
    "LabelRequest",
    "LabelVector",
    "LakeSource",
    "LinearSVMProbe",
    "LogisticProbe",
    "NeuronDescription",
    "ProbeResult",
    "ProbeResults",
    "ProbeSettings",
    "Ranker",
    "Ranking",
    "RidgeProbe",
    "SharedCategories",
    "SparseProbe",
    "Split",
    "StatisticsBuilder",
    "TagListsBuilder",
    "TokenList",
    "TokensBeyond",
    "activation_hits",
    "benjamini_hochberg",
    "choose_key_neurons",
    "choose_tokens",
    "coactivation",
    "column_table",
    "complete_tag_lists",
    "compute_several",
    "compute_statistics",
    "describe_lines",
    "describe_neuron",
    "figure_bytes",
    "firing_neurons",
    "hit_scores",
    "key_list",
    "labelled_matrix",
    "language_classes",
    "lape",
    "layer_class_counts",
    "layer_tag_heatmap",
    "neighbours",
    "neuron_histogram",
    "neuron_name",
    "output_vectors",
    "parse_neuron",
    "parse_weights",
    "permutation_test",
    "probe",
    "probe_sweep",
    "random_concepts",
    "rank",
    "ranked_by_weight",
    "ranker_scores",
    "read_attribution",
    "redundancy_clusters",
    "refine",
    "score",
    "scores_of",
    "similar_tokens",
    "split_documents",
    "strongest_neurons",
    "tag_bars",
    "textualize",
    "token_activations",
    "token_labels",
    "tokens_above",
    "top_tokens",
    "top_tokens_weighted",
    "vocabulary",
    "volcano",
    "write_columns",
    "write_token_activations",
]

_HOMES = {
    "activation_share": ("activation_hits",),
    "attribution": ("read_attribution",),
    "building": ("StatisticsBuilder",),
    "chosen_tokens": ("choose_tokens",),
    "correlation": ("coactivation",),
    "describe": ("describe_neuron",),
    "figure_histogram": ("neuron_histogram",),
    "figure_style": ("figure_bytes",),
    "figure_volcano": ("volcano",),
    "figures": ("layer_class_counts", "layer_tag_heatmap", "tag_bars"),
    "firing": ("firing_neurons", "strongest_neurons"),
    "key_neurons": ("choose_key_neurons", "hit_scores", "key_list", "ranker_scores", "scores_of"),
    "labels": ("LabelRequest", "LabelVector", "token_labels"),
    "listings": ("NeuronDescription", "Ranking", "TokenList"),
    "neuron": ("neuron_name", "parse_neuron"),
    "neuron_columns": ("column_table", "write_columns"),
    "neuron_neighbours": ("neighbours",),
    "permutation": ("permutation_test",),
    "probing.concept": ("CARProbe", "CAVProbe"),
    "probing.concept_null": ("random_concepts",),
    "probing.elastic_net": ("ranked_by_weight",),
    "probing.estimators": (
        "ElasticNetProbe",
        "LDAProbe",
        "LinearSVMProbe",
        "LogisticProbe",
        "RidgeProbe",
        "SparseProbe",
    ),
    "probing.features": ("FeatureSet",),
    "probing.gaussian": ("GaussianProbe",),
    "probing.labelled": ("labelled_matrix",),
    "probing.probes": ("probe", "probe_sweep"),
    "probing.result": ("ProbeResult", "ProbeResults"),
    "probing.settings": ("ProbeSettings",),
    "probing.splits": ("Split", "split_documents"),
    "queries": ("describe_lines", "top_tokens"),
    "rankers": ("RANKERS", "Ranker"),
    "ranking": ("rank", "score"),
    "redundancy": ("redundancy_clusters",),
    "refinement": ("refine",),
    "selective": ("SharedCategories", "language_classes", "lape"),
    "significance": ("benjamini_hochberg",),
    "source": ("LakeSource",),
    "statistics": ("compute_several", "compute_statistics"),
    "tag_building": ("TagListsBuilder", "complete_tag_lists"),
    "textualization": ("textualize",),
    "threshold": ("TokensBeyond", "tokens_above"),
    "token_neighbours": ("similar_tokens",),
    "token_rows": ("token_activations", "write_token_activations"),
    "weighted": ("parse_weights", "top_tokens_weighted"),
    "weights": ("output_vectors", "vocabulary"),
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
