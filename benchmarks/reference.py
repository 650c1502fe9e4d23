"""Known results on EWT dev: single-neuron AUROC by part of speech, and a linear SVM on layer 0."""

import time

from benchmarks.common import ewt_lake, keep


def run() -> dict[str, object]:
    """Print the best neurons of every tag, the probes and the minutes of each phase."""
    from neuronlake.analysis import compute_statistics, probe, rank
    from neuronlake.store import open_lake

    lake = open_lake(ewt_lake())
    start = time.perf_counter()
    statistics = {policy: compute_statistics(lake, "upos", subword=policy) for policy in ("last", "all")}
    seconds = (time.perf_counter() - start) / 2
    best = {policy: {entry["tag"]: entry for entry in rank(found, "auroc", top=1)} for policy, found in statistics.items()}
    print("| tag | tokens | best neuron (last sub-word) | AUROC | best neuron (all sub-words) | AUROC |", end="\n|")
    print("---|" * 6)
    for tag, entry in best["last"].items():
        other = best["all"][tag]
        neurons = " | ".join(f"{found['name']} | {found['auroc']:.3f}" for found in (entry, other))
        print(f"| {tag} | {entry['count']:,} | {neurons} |")
    print("\n| probe on layer 0 | split | accuracy | macro-F1 | majority | most frequent tag per word |", end="\n|")
    print("---|" * 6)
    probes = {}
    for classifier in ("svm", "lda"):
        for split in ("sentence", "document"):
            found = probe(lake, "upos", layer=0, classifier=classifier, split=split)
            probes[f"{classifier}/{split}"] = found.to_dict()
            baselines = [found.baselines[name]["accuracy"] for name in ("majority", "most_frequent_tag_per_word")]
            print(
                f"| {classifier} | {split} | {found.accuracy:.3f} | {found.macro_f1:.3f} | "
                f"{' | '.join(f'{value:.3f}' for value in baselines)} |",
                flush=True,
            )
    print(f"\nstatistics with exact AUROC, 46,080 neurons: {seconds:.1f} s a pass")
    result = {
        "best": best,
        "probes": {
            name: {key: found[key] for key in ("accuracy", "macro_f1", "baselines")} for name, found in probes.items()
        },
        "statistics_s": seconds,
    }
    keep("reference", result)
    return result
