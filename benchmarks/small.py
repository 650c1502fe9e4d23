"""Small forms of the benchmarks, as arguments of each one's `run`."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

SIZES = ("full", "quick", "tiny")


@dataclass(frozen=True)
class Small:
    """How one benchmark runs small."""

    tiny: Mapping[str, Any]
    """In the tests, where its figures say nothing."""
    quick: Mapping[str, Any] | None = None
    """With ``--quick``, for figures that say something within a minute; as in the tests where there is none."""


SMALL: dict[str, Small] = {
    "alignment": Small({"pattern": "en_pud*"}),
    "analysis": Small(
        {
            "peer_layers": 1,
            "tools": (
                *("lake_moments", "numpy_moments", "flox_moments", "dask_moments", "lake_probeless"),
                *("lake_top", "npy_top"),
            ),
            "sentences": 60,
            "apart": False,
        },
        {
            "peer_layers": 1,
            "tools": (
                *("lake_moments", "numpy_moments", "flox_moments", "dask_moments", "lake_auroc", "scipy_auroc"),
                *("lake_probeless", "neurox_probeless", "lake_logistic", "sklearn_logistic", "lake_top", "npy_top"),
            ),
            "sentences": 120,
            "make_environments": False,
        },
    ),
    "encodings": Small({"share": 0.01, "step": 96, "layers": (0,), "names": ("int8a",)}),
    "explorer": Small({"sentences": 60, "pages": 3}),
    "extraction": Small({"blocks": 1, "block_rows": 512}),
    "faults": Small({"step": 90, "flips": 40, "truncations": 8}),
    "growth": Small(
        {
            "sizes": (1, 2),
            "works": ("extraction", "statistics", "one column"),
            "apart": ("one column",),
            "blocks": {"tall": 1, "wide": 1, "blocks": 1},
            "tokens": 100,
            "rounds": 1,
            "sentences": 60,
            "filtered": (8,),
        },
        {
            "sizes": (1, 2, 4),
            "works": ("extraction", "statistics", "top 64 tokens in context", "one column", "LDA probe"),
            "apart": (),
            "blocks": {"tall": 4, "wide": 1, "blocks": 1},
            "tokens": 150,
            "rounds": 1,
            "sentences": 120,
        },
    ),
    "kill": Small({"rounds": 2}),
    "languages": Small({"models": ("smollm2",), "sentences": 12}),
    "memory": Small({"sentences": 40, "factor": 2}),
    "neighbours": Small({"sentences": 60, "neurons": 4, "tokens": 5, "layers": (3,)}),
    "objects": Small({"objects": 4, "small": 8, "repeats": 1, "rounds": 1, "seeds": 1}),
    "peers": Small(
        {"sentences": 12, "tools": ("neuronlake, int8a",), "bare_tokens": 100, "block_rows": 512},
        {
            "sentences": 60,
            "tools": ("hooks + memory map", "neuronlake, int8a", "TransformerLens", "nnsight"),
            "bare_tokens": 1000,
            "block_rows": 1024,
            "make_environments": False,
            "bare_between": False,
        },
    ),
    "planted": Small(
        {
            "tokens": 2000,
            "layers": 2,
            "neurons": 900,
            "lakes": ((0, "int8a"),),
            "draws": 4,
            "every": 15,
            "small_draws": 1,
            "document_draws": 1,
            "sentences": 60,
        }
    ),
    "probes": Small({"sentences": 60, "peer_layers": (0,), "peer_iterations": 5, "blocks": (1, 2)}),
    "queries": Small({"sentences": 60, "neurons": 4}),
    "replay": Small(
        {"shapes": {"small": (2, 700)}, "blocks": 2, "block_rows": 512, "sentences": 60},
        {"shapes": {"SmolLM2-135M": (30, 1536)}, "blocks": 1, "block_rows": 2048, "sentences": 120},
    ),
    "reproduction": Small(
        {
            "sentences": 60,
            "studies": {
                "gradient": (
                    *("--classes-only", "--layers", "29", "--per-tag", "5", "--fdr", "1", "--tokens", "60", "--least", "3"),
                    *("--random", "3", "--random-draws", "1", "--lesion-k", "20", "-k", "20", "--shift", "0"),
                )
            },
        }
    ),
    "scaling": Small({"sentences": 60, "layers": 2, "repeats": 1, "pieces": 40}),
    "statistics": Small({"sentences": 60, "layers": 2, "repeats": 1}),
    "storage": Small(
        {
            "layers": 2,
            "blocks": 2,
            "repeats": 1,
            "formats": ("neuronlake int8a", "npy, memory map"),
            "sentences": 60,
            "apart": False,
        },
        {
            "layers": 2,
            "blocks": 2,
            "repeats": 1,
            "formats": (
                *("neuronlake int8a", "neuronlake float16", "zarr-python, its defaults", "blosc2, its defaults"),
                *("h5py, a data set per layer", "npy, memory map"),
            ),
            "sentences": 120,
            "block_rows": 8192,
        },
    ),
    "writers": Small({"rounds": 1, "writers": (2,), "blocks": 20, "hosts": False}),
}


def arguments(name: str, size: str) -> Mapping[str, Any]:
    """Return the arguments of a benchmark's `run` for one of `SIZES`."""
    if size == "full":
        return {}
    found = SMALL[name]
    return found.tiny if size == "tiny" or found.quick is None else found.quick
