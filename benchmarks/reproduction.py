"""The study of key neurons on EWT train → dev, and PUD: classifiers, lesions, and what each step takes (hours, once)."""

import json
from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.common import EWT_DEV, EWT_TRAIN, ROOT, corpora, ewt_lake, keep, scratch, smollm2, whole_train_lake

_PUD = "en_pud-ud-test.conllu.gz"
_SCORES = ("task", "where", "layer", "classifier", "shift", "n_features", "n_test", "accuracy", "macro_f1", "selectivity")
_CONCEPT = ("concept", "layer", "classifier", "n_features", "balanced_accuracy", "selectivity")
STUDIES: dict[str, tuple[str, ...]] = {
    "gradient": ("--tokens", "500", "--least", "15"),
    "ig": ("--method", "ig", "--per-tag", "50", "--classes-only"),
}
"""Arguments of every study, beside the lakes and the model."""


def run(sentences: int | None = None, studies: Mapping[str, tuple[str, ...]] = STUDIES) -> dict[str, Any]:
    """Run the studies, or what is left of them, and print their tables; what is finished lies under build/.

    Parameters
    ----------
    sentences
        Of each corpus; by default all. With a number, nothing is left under build/.
    studies
        As `STUDIES`.
    """
    if sentences is None:
        return _run(ROOT / "build", (whole_train_lake(), ewt_lake("int8a"), pud_lake(ROOT / "build")), studies)
    with scratch() as name:
        folder = Path(name)
        lakes = [_lake(folder / f"{corpus}.lake", corpus, sentences) for corpus in (EWT_TRAIN, EWT_DEV, _PUD)]
        return _run(folder, (lakes[0], lakes[1], lakes[2]), studies)


def _run(folder: Path, lakes: tuple[Path, Path, Path], studies: Mapping[str, tuple[str, ...]]) -> dict[str, Any]:
    from neuronlake.cli.main import main

    train, on, test = map(str, lakes)
    found = {}
    for name, arguments in studies.items():
        out = folder / f"reproduction-{name}"
        where = ["--model", smollm2(), "--on", on, "--test", test, "--out", str(out)]
        if main(["reproduce", train, *where, *arguments]) != 0:
            raise SystemExit(f"the study {name} failed")
        found[name] = summary(json.loads((out / "reproduce.json").read_text(encoding="utf-8")))
        _show(name, found[name])
    keep("reproduction", found)
    return found


def summary(study: dict[str, Any]) -> dict[str, Any]:
    """What a study found, without its neurons."""
    attribution, lesions = study["attribution"], study["lesions"]
    steps = {name: sum(each["seconds"] for each in study[name]) for name in ("probes", "concepts", "transfer")}
    steps |= {"attribution": attribution["seconds"], "key_neurons": study["key_neurons"]["seconds"]}
    steps["lesions"] = lesions["seconds"]
    return {
        "settings": study["settings"],
        "documents": study["documents"],
        "seconds": steps,
        "threads": attribution["provenance"]["threads"],
        "completeness_error": attribution["completeness_error"],
        "completeness_by_layer": attribution["by_layer"],
        "predictions": sum(attribution["samples"]),
        "key_neurons_by_layer": study["key_neurons"]["best_by_layer"],
        "best_layer": study["best_layer"],
        "skipped": study["skipped"],
        "probes": [_scores(each) for each in study["probes"]],
        "transfer": [_scores(each) for each in study["transfer"]],
        "concepts": [{name: each[name] for name in _CONCEPT} for each in study["concepts"]],
        "lesions": lesions["lesions"],
        "lesions_text": lesions["text"],
        "lesions_cost": lesions["cost"],
        "lesions_summary": lesions["summary"],
        "left_out": study["left_out"],
    }


def _scores(probe: dict[str, Any]) -> dict[str, Any]:
    return {
        **{name: probe[name] for name in _SCORES},
        "interval": probe["intervals"]["accuracy"],
        "word_type": probe["baselines"]["most_frequent_tag_per_word"]["accuracy"],
        "majority": probe["baselines"]["majority"]["accuracy"],
        "random": probe["controls"].get("random_neurons", {}).get("accuracy"),
    }


def _show(name: str, found: dict[str, Any]) -> None:
    total = sum(found["seconds"].values())
    split = ", ".join(f"{step} {seconds / 60:.1f}" for step, seconds in found["seconds"].items())
    print(f"\n## {name}: {total / 60:.1f} minutes on {found['threads']} threads ({split})")
    if found["completeness_error"] is not None:
        print(f"completeness error {found['completeness_error']:.2%}; worst layer {max(found['completeness_by_layer']):.1%}")
    print(f"best layer for the classes: {found['best_layer']}")
    for group in ("probes", "transfer"):
        shown = {None, found["best_layer"], max(each["layer"] or 0 for each in found[group])}
        print(f"| {group} | classifier | shift | neurons | accuracy | random | word type | majority | selectivity |")
        for each in found[group]:
            if each["layer"] in shown:
                about = (f"{each['task']}, {each['where']}", each["classifier"], each["shift"], f"{each['n_features']:,}")
                scores = (each[score] for score in ("accuracy", "random", "word_type", "majority", "selectivity"))
                _print_row(*about, *scores)
    for kind in ("cav", "car"):
        best = {}
        for each in found["concepts"]:
            if each["classifier"] == kind:
                best[each["concept"]] = max(best.get(each["concept"], 0), each["balanced_accuracy"])
        print(f"{kind}: balanced accuracy in the best layer, median over {len(best)} tags {median(best.values()):.3f}")
    print("| tag | words | neurons | own Δ | others | random, largest | p | other keys |")
    for each in found["lesions"]:
        effects = (each["own"]["value"], each["others"]["value"], max(each["random"]), each["p"], each["other_keys_mean"])
        _print_row(each["tag"], each["targets"], each["neurons"], *effects)
    print(found["lesions_summary"])


def _print_row(*cells: Any) -> None:
    shown = ("–" if cell is None else f"{cell:.3f}" if isinstance(cell, float) else str(cell) for cell in cells)
    print("|", " | ".join(shown), "|")


def pud_lake(folder: Path) -> Path:
    """A lake of the English PUD through SmolLM2, extracted once (a minute and a half)."""
    return _lake(folder / "benchmark-smollm2-pud-en.lake", _PUD, None)


def _lake(root: Path, corpus: str, sentences: int | None) -> Path:
    from neuronlake.extractor import ConlluCorpus, ExtractSettings, extract, resolve_model

    text = ConlluCorpus(paths=(corpora() / corpus,), limit_sentences=sentences)
    extract(root, text, resolve_model(smollm2()), ExtractSettings(encoding="int8a"))
    return root
