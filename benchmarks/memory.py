"""Peak memory of extraction and of statistics at 1× and 4× the tokens: it must not grow."""

from pathlib import Path

from benchmarks.common import EWT_DEV, corpora, keep, peak_memory_bytes, scratch, smollm2

_EXTRACT = """
import sys
from pathlib import Path
from neuronlake.extractor import ConlluCorpus, ExtractSettings, extract, resolve_model
corpus = ConlluCorpus(paths=(Path(sys.argv[2]),), limit_sentences=int(sys.argv[4]))
extract(sys.argv[1], corpus, resolve_model(sys.argv[3]), ExtractSettings(block_rows=1024))
"""
_STATISTICS = """
import sys
from neuronlake.analysis import compute_statistics
from neuronlake.store import open_lake
compute_statistics(open_lake(sys.argv[1]), "upos")
"""


def run(sentences: int = 240, factor: int = 4) -> dict[str, dict[str, float]]:
    """Print peak memory in MB and tokens at both sizes."""
    from neuronlake.store import open_lake

    result: dict[str, dict[str, float]] = {}
    with scratch() as folder:
        for times in (1, factor):
            root = Path(folder) / f"{times}.lake"
            extraction = peak_memory_bytes(_EXTRACT, str(root), str(corpora() / EWT_DEV), smollm2(), str(sentences * times))
            statistics = peak_memory_bytes(_STATISTICS, str(root))
            lake = open_lake(root)
            result[f"{times}x"] = {
                "tokens": lake.plan.counts["tokens"],
                "blocks": lake.plan.blocks,
                "extraction_MB": extraction / 1e6,
                "statistics_MB": statistics / 1e6,
            }
    print("| size | tokens | blocks | extraction MB | statistics MB |\n|---|---|---|---|---|")
    for name, row in result.items():
        print(f"| {name} | {row['tokens']:,} | {row['blocks']} | {row['extraction_MB']:.0f} | {row['statistics_MB']:.0f} |")
    keep("memory", result)
    return result
