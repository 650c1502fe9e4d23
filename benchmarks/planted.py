"""Do rankers find planted neurons among 46,080, and do their tests keep to their false discovery rate on noise?"""

import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy import special, stats

from benchmarks.common import ewt_lake, keep, scratch, small_lake
from benchmarks.swiglu import FORMS, TAGS, choose_neurons, corpus, write_activations

_EACH = 20  # neurons per tag and form
ON_REQUEST = ("average_precision", "mutual_information")
_ALPHA = 0.05
_TEXTBOOK_DRAWS = 20
_TOGETHER = 4  # draws of labels per pass over the activations
_TEXTBOOK = ("welch_t", "localizer", "f_statistic", "fraction_active_difference", "chi_squared", "mutual_information")
"""Rankers whose p is not the textbook's; see `neuronlake.analysis.tails`."""


def run(
    *,
    tokens: int = 30_000,
    layers: int = 30,
    neurons: int = 1536,
    lakes: Sequence[tuple[int, str]] = ((0, "int8a"), (1, "int8a"), (2, "int8a"), (0, "float16")),
    draws: int = 100,
    every: int = 6,
    small_draws: int = 100,
    document_draws: int = 20,
    sentences: int | None = None,
) -> dict[str, Any]:
    """Print recall of planted neurons by ranker, then rejections among random labels.

    Parameters
    ----------
    tokens, layers, neurons
        Of the synthetic lakes.
    lakes
        Seed and encoding of every lake with planted neurons.
    draws
        Of random labels, on a synthetic and on a real lake.
    every
        Every so many layers of the real lake take part, and the synthetic one has as many.
    small_draws
        Of labels in a small lake, for p-values by permutation.
    document_draws
        Of labels that whole documents share.
    sentences
        Only so many sentences of EWT dev for the real lake.
    """
    from neuronlake.store import open_lake

    with scratch() as name:
        folder = Path(name)
        planted = {
            f"seed {seed}, {encoding}": _planted(folder, seed, encoding, (layers, neurons), tokens)
            for seed, encoding in lakes
        }
        _print_recall(planted)
        noise = write_activations(
            folder / "noise.lake",
            seed=100,
            tokens=corpus(tokens, 100),
            layers=-(-layers // every),
            neurons=neurons,
            encoding="int8a",
        )
        ewt = open_lake(ewt_lake("int8a") if sentences is None else small_lake(folder, sentences))
        null = {"synthetic": _null(noise, draws, 1), "SmolLM2 over EWT dev": _null(ewt, draws, every)}
        _print_null(null, draws)
        result = {
            "tokens": tokens,
            "neurons": layers * neurons,
            "tokens_per_tag": _counts(corpus(tokens, 0)["upos"]),
            "planted_per_tag_and_form": _EACH,
            "recall": planted,
            "null": null,
            "null_permutation": _permuted(folder, small_draws),
            "null_of_documents": _documents(ewt, document_draws),
            "gold_upos_found": _gold(ewt),
        }
    keep("planted", result)
    return result


def methods() -> list[str]:
    """Rankers of the statistics."""
    from neuronlake.analysis import RANKERS
    from neuronlake.analysis.rankers import PROBE

    return [name for name, ranker in RANKERS.items() if PROBE not in ranker.needs]


def tested() -> list[str]:
    """Those with a test of their own."""
    from neuronlake.analysis import RANKERS

    return [name for name in methods() if not RANKERS[name].test.startswith("none")]


def recall(lake: Any, planted: dict[str, dict[str, Any]], chosen: Sequence[str]) -> dict[str, dict[str, dict[str, float]]]:
    """Recall@n per ranker, form and tag, n the neurons planted for the tag so; those planted otherwise are left out."""
    from neuronlake.analysis import compute_statistics, rank, refine

    statistics = compute_statistics(lake, "upos", also=ON_REQUEST)
    found: dict[str, dict[str, dict[str, float]]] = {}
    for method in chosen:
        mine: dict[str, dict[str, float]] = {form: {} for form in planted}
        each = {tag: len(places) for tag, places in next(iter(planted.values())).items()}
        top = len(planted) * max(each.values())
        listed: dict[str, list[int]] = {tag: [] for tag in each}
        for entry in rank(refine(lake, statistics, method, top=top), method, top=top):
            listed[entry["tag"]].append(entry["layer"] * lake.neurons + entry["neuron"])
        for form, tags in planted.items():
            for tag, places in tags.items():
                others = np.concatenate([other[tag] for name, other in planted.items() if name != form] or [[]])
                best = [place for place in listed[tag] if place not in set(others.tolist())][: len(places)]
                mine[form][tag] = len(set(best) & set(places.tolist())) / len(places)
        found[method] = mine
    return found


def random_labels(lake: Any, draws: int, seed: int = 0) -> Iterator[list[Any]]:
    """The lake's labels permuted among all labelled tokens, some draws at a time."""
    from neuronlake.analysis import token_labels

    labels, rng = token_labels(lake, "upos"), np.random.default_rng(seed)
    rows = np.flatnonzero(labels.codes >= 0)
    for first in range(0, draws, _TOGETHER):
        batch = []
        for _ in range(min(_TOGETHER, draws - first)):
            codes = np.full_like(labels.codes, -1)
            codes[rows] = rng.permutation(labels.codes[rows])
            batch.append(replace(labels, codes=codes))
        yield batch


def most_allowed(draws: int) -> int:
    """Draws with a rejection that an honest test at 5 % exceeds in at most one of twenty benchmarks like this."""
    return int(stats.binom.isf(_ALPHA, draws, _ALPHA))


def textbook_p(statistics: Any, method: str) -> Any:
    """p of the test that a ranker is named after, as textbooks and SciPy have it."""
    from neuronlake.analysis import score
    from neuronlake.analysis.contrast import absolute_contrast, contrast, counts

    count, rest = counts(statistics)
    if method in ("welch_t", "localizer"):
        c = contrast(statistics) if method == "welch_t" else absolute_contrast(statistics)
        groups = (c.mean, np.sqrt(c.variance), count, c.mean_rest, np.sqrt(c.variance_rest), rest)
        return stats.ttest_ind_from_stats(*groups, equal_var=False).pvalue
    found = score(statistics, method)[method].to_numpy()
    if method == "f_statistic":
        return special.fdtrc(1, count + rest - 2, found)
    if method == "fraction_active_difference":
        active = statistics["fraction_active"].to_numpy()
        share = (active * count).sum(axis=0) / (count[0] + rest[0])
        spread = share * (1 - share)
        found = found**2 / np.where(spread > 0, spread, 1) / (1 / count + 1 / rest)
    if method == "mutual_information":
        return special.chdtrc(statistics["bins"].to_numpy() - 1, 2 * np.log(2) * (count + rest) * found)
    return special.chdtrc(1, found)


def _planted(folder: Path, seed: int, encoding: str, shape: tuple[int, int], tokens: int) -> dict[str, Any]:
    start = time.perf_counter()
    table, planted = corpus(tokens, seed), choose_neurons(seed, shape, each=_EACH, tags=list(TAGS))
    root = folder / f"planted-{seed}-{encoding}.lake"
    lake = write_activations(
        root, seed=seed, tokens=table, layers=shape[0], neurons=shape[1], encoding=encoding, planted=planted
    )
    print(f"{root.name} written in {time.perf_counter() - start:.0f} s", flush=True)
    # of float16, making precision exact for the short lists takes many minutes
    chosen = [name for name in methods() if encoding != "float16" or name != "average_precision"]
    found = recall(lake, planted, chosen)
    shutil.rmtree(root)
    return {
        method: {
            form: {
                "mean": float(np.mean(list(tags.values()))),
                "worst": min(tags.values()),
                "worst_tag": min(tags, key=lambda tag: tags[tag]),
            }
            for form, tags in forms.items()
        }
        for method, forms in found.items()
    }


def _null(lake: Any, draws: int, every: int) -> dict[str, Any]:
    """Draws with any q ≤ 0.05; false rejections of all draws; share of p below 0.05 and below 1e-4; the textbook's too."""
    from neuronlake.analysis import benjamini_hochberg, score
    from neuronlake.analysis.statistics import statistics_of_labels

    layers = list(lake.layers[::every])
    names = [*tested(), *(f"{name}, textbook" for name in _TEXTBOOK)]
    counts = {name: {"of": 0, "draws": 0, "rejections": 0, "p_0.05": 0.0, "p_1e-4": 0.0} for name in names}
    done = 0
    for batch in random_labels(lake, draws):
        for statistics in statistics_of_labels(lake, batch, layers=layers, also=("mutual_information",)):
            for name in names if done < _TEXTBOOK_DRAWS else tested():
                method, _, textbook = name.partition(", ")
                p = textbook_p(statistics, method) if textbook else score(statistics, method)["p"].to_numpy()
                rejected = int((benjamini_hochberg(p) <= _ALPHA).sum())
                counts[name]["of"] += 1
                counts[name]["draws"] += rejected > 0
                counts[name]["rejections"] += rejected
                counts[name]["p_0.05"] += float((p <= 0.05).mean())
                counts[name]["p_1e-4"] += float((p <= 1e-4).mean())
            done += 1
        if done % 20 == 0:
            print(f"{done} draws: { ({name: count['draws'] for name, count in counts.items()}) }", flush=True)
    for count in counts.values():
        interval = stats.binomtest(int(count["draws"]), int(count["of"])).proportion_ci()
        count |= {"low": float(interval.low), "high": float(interval.high)}
        count |= {name: count[name] / count["of"] for name in ("p_0.05", "p_1e-4")}
    return {
        "draws": draws,
        "layers": len(layers),
        "neurons": len(layers) * lake.neurons,
        "most_allowed": most_allowed(draws),
        "rankers": counts,
    }


def _permuted(folder: Path, draws: int, permutations: int = 99) -> dict[str, Any]:
    """p by permutation of Cohen's d, which has no other: a lake of 256 neurons with a label column per draw."""
    from neuronlake.analysis import compute_statistics, permutation_test

    tags = {"A": 40, "B": 30, "C": 25, "D": 5}
    table = corpus(2000, 200, tags, documents=20)
    labels = {f"draw{draw}": corpus(2000, 1000 + draw, tags)["upos"] for draw in range(draws)}
    lake = write_activations(
        folder / "permuted.lake", seed=200, tokens={**table, **labels}, layers=1, neurons=256, encoding="int8a"
    )
    family = alone = 0
    for draw, name in enumerate(labels):
        statistics = compute_statistics(lake, name, keep=False)
        found = permutation_test(lake, statistics, "cohen_d", permutations=permutations, seed=draw)
        family += int((found["p_family"] * len(tags) <= _ALPHA).any())
        alone += int((found["q"] <= _ALPHA).any())
    print(
        f"\nCohen's d by {permutations} permutations, {draws} draws: {family} with any p_family ≤ 0.05/{len(tags)}, "
        f"{alone} with any q ≤ 0.05 (at most {most_allowed(draws)} allowed)"
    )
    return {"draws": draws, "permutations": permutations, "family": family, "q": alone, "most_allowed": most_allowed(draws)}


def _documents(lake: Any, draws: int, permutations: int = 99, tags: int = 4) -> dict[str, Any]:
    """Labels that all tokens of a document share, one layer: tokens are no longer independent."""
    from neuronlake.analysis import compute_statistics, permutation_test, score

    layer = lake.layers[len(lake.layers) // 2]
    found: dict[str, Any] = {"draws": draws, "tags": tags, "neurons": lake.neurons, "analytic": dict.fromkeys(tested(), 0)}
    rejections, family = dict.fromkeys(tested(), 0), 0
    for draw in range(draws):
        by = f"'t' || (hash(document * 1000 + {draw}) % {tags})"
        statistics = compute_statistics(lake, by, layers=[layer], keep=False, also=("mutual_information",))
        for name in tested():
            rejected = int((score(statistics, name)["q"] <= _ALPHA).sum())
            found["analytic"][name] += rejected > 0
            rejections[name] += rejected
        permuted = permutation_test(lake, statistics, "cohen_d", permutations=permutations, seed=draw)
        if permuted.attrs["permuted"] != "documents":
            raise AssertionError("whole documents must be permuted")
        family += int((permuted["p_family"] * tags <= _ALPHA).any())
    found |= {
        "share_of_tests_rejected": {name: count / (draws * tags * lake.neurons) for name, count in rejections.items()},
        "permuted": family,
        "permutations": permutations,
    }
    print(
        f"labels of whole documents, {draws} draws: any q ≤ 0.05 in {found['analytic']}; by permuting documents "
        f"{family} (at most {most_allowed(draws)} allowed)"
    )
    return found


def _gold(lake: Any) -> dict[str, Any]:
    """Share of neurons × tags with q ≤ 0.05 for the real upos, by our p and by the textbook's: what being honest costs."""
    from neuronlake.analysis import benjamini_hochberg, compute_statistics, score

    statistics = compute_statistics(lake, "upos", also=ON_REQUEST, keep=False)
    found = {}
    for name in tested():
        found[name] = float((score(statistics, name)["q"] <= _ALPHA).mean())
        if name in _TEXTBOOK:
            found[f"{name}, textbook"] = float((benjamini_hochberg(textbook_p(statistics, name)) <= _ALPHA).mean())
    print("gold upos, share of neurons × tags with q ≤ 0.05: " + ", ".join(f"{n} {s:.3f}" for n, s in found.items()))
    return found


def _print_recall(planted: dict[str, Any]) -> None:
    print("\nrecall@20, mean over tags (worst tag), the lowest of the lakes\n\n| ranker | " + " | ".join(FORMS) + " |")
    print("|---|" + "---|" * len(FORMS))
    for method in methods():
        cells = []
        for form in FORMS:
            found = [lake[method][form] for lake in planted.values() if method in lake]
            worst = min(found, key=lambda each: each["worst"])
            cells.append(f"{min(each['mean'] for each in found):.3f} ({worst['worst']:.2f} {worst['worst_tag']})")
        print(f"| {method} | " + " | ".join(cells) + " |", flush=True)


def _print_null(null: dict[str, Any], draws: int) -> None:
    print(f"\nrandom labels: draws with any q ≤ 0.05; at most {most_allowed(draws)} of {draws} allowed\n")
    print("| ranker | " + " | ".join(f"{name} | p ≤ 1e-4, of 1e-4" for name in null) + " |\n|---|" + "---|---|" * len(null))
    for method in next(iter(null.values()))["rankers"]:
        cells = [
            f"{found['draws']} of {found['of']} | {found['p_1e-4'] / 1e-4:.2f}"
            for found in (lake["rankers"][method] for lake in null.values())
        ]
        print(f"| {method} | " + " | ".join(cells) + " |", flush=True)


def _counts(values: Any) -> dict[str, int]:
    return {str(name): int(count) for name, count in zip(*np.unique(values, return_counts=True), strict=True)}
