"""The report of a study: from its results to headings, paragraphs, tables and figures. Nothing here reads a lake."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from neuronlake.analysis.lesion_effects import BEYOND
from neuronlake.analysis.report_render import Block, Grid, Heading, Picture, Points, Text
from neuronlake.analysis.report_text import METHODS, OF_OTHERS, OF_OURS, OF_PAPER, PAPER_ACCURACY

_NAMED = 5  # neurons per tag in the table
_CAPTIONS = {
    "concepts": "CAV's balanced accuracy by layer and tag, and what CAR adds.",
    "layers": "In which layers the best key neurons of every tag lie.",
    "overlap": "Overlap of the best key neurons between tags.",
    "intersections": "How many of the best key neurons belong to exactly which classes.",
    "matrix": "Lesions (rows) and what they do to words of every tag (columns).",
    "effects": "Lesions on their own tag, beside random sets, other tags' words and other tags' key neurons.",
}


def report_blocks(result: Mapping[str, Any], figures: Mapping[str, str]) -> list[Block]:
    """Lay the report out.

    Parameters
    ----------
    result
        Of `neuronlake reproduce`, as in reproduce.json.
    figures
        Of `draw_report_figures`.
    """
    pictures = {name: Picture(path, _CAPTIONS.get(name) or _curve(name)) for name, path in figures.items()}
    return [
        Heading("Key neurons of word classes: a reproduction with controls", 1),
        Text(
            f"The study of arXiv 2511.06519 on {result['model']['name']}, by neuronlake reproduce. Label: "
            f"{result['settings']['by']}; classes: {', '.join(result['settings']['classes'])}."
        ),
        Heading("In short"),
        Points(_short(result)),
        Heading("Attribution and key neurons"),
        *_key(result, pictures),
        Heading("Classifiers on key neurons"),
        *_probes(result, pictures),
        Heading("Lesions"),
        *_lesions(result, pictures),
        Heading("Whose method is what"),
        Heading("The paper's", 3),
        Points(OF_PAPER),
        Heading("Others'", 3),
        Points(OF_OTHERS),
        Heading("Ours", 3),
        Points(OF_OURS),
        Heading("Settings and provenance"),
        *_provenance(result),
    ]


def _short(result: Mapping[str, Any]) -> list[str]:
    best = _best(result)
    last = max((each for each in result["probes"] if _alike(each, best)), key=lambda each: int(each["layer"]), default=best)
    found, lesions = result["lesions"]["summary"], result["lesions"]["lesions"]
    word = best["baselines"]["most_frequent_tag_per_word"]["accuracy"]
    random = best["controls"].get("random_neurons", {}).get("accuracy")
    last_layer = "which is the last layer" if last is best else f"layer {last['layer']} {_number(last['accuracy'])}"
    compared = "not above" if best["accuracy"] <= word else "above"
    lines = [
        f"Classifier ({best['classifier']}, own word's class, {_measured(result)}): best layer {best['layer']} "
        f"{_number(best['accuracy'])} from {best['n_features']:,} key neurons, {last_layer}; the paper reports "
        f"{PAPER_ACCURACY} for another model.",
        f"That is {compared} the most frequent tag of the word type ({_number(word)}); as many random neurons of the layer "
        f"reach {_number(random)}, the majority {_number(best['baselines']['majority']['accuracy'])}; selectivity "
        f"{_number(best['selectivity'])}.",
        f"Lesions: key neurons hurt their own tag more than the other tags for {found['above_others']} of {found['tags']} "
        f"tags, and more than at least {BEYOND:.0%} of the layer-matched random sets do for {found['above_random']}; both "
        f"hold for {found['both']} of {found['tags']} ({', '.join(_holding(lesions)) or 'none'}).",
        "Stricter: the whole interval of the difference is above zero against other tags for "
        f"{found['above_others_interval']} tags, against the mean random set for {found['above_random_interval']}; no other "
        f"tag's key neurons hurt the tag as much for {found['largest_of_keys']}.",
    ]
    if result["settings"]["shifts"][0] != 0:
        lines[0] = lines[0].replace("own word's class", f"class of the word {result['settings']['shifts'][0]} later")
    if result["test"] is not None and (there := [each for each in result["transfer"] if _alike(each, best, best["layer"])]):
        lines.append(
            f"On the other lake, with the same neurons and training: {_number(there[0]['accuracy'])} (word type "
            f"{_number(there[0]['baselines']['most_frequent_tag_per_word']['accuracy'])})."
        )
    return lines


def _measured(result: Mapping[str, Any]) -> str:
    if result["on"] is not None:
        return f"all of {result['on']['path']}"
    return f"{result['documents']['held_out']:,} held-out documents of the lake"


def _key(result: Mapping[str, Any], pictures: Mapping[str, Picture]) -> list[Block]:
    key, settings = result["key_neurons"], result["settings"]
    per_tag = "all" if settings["per_tag"] is None else f"{settings['per_tag']:,}"
    blocks: list[Block] = [
        Text(
            f"Method: {METHODS.get(settings['method'], settings['method'])}. Chosen on {result['documents']['train']:,} "
            f"training documents of the lake, {per_tag} predictions per tag; measured on {_measured(result)}. "
            f"q at most {settings['fdr']:g} (Benjamini–Hochberg over all neurons × tags)."
        )
    ]
    if (attribution := result["attribution"]) is not None:
        blocks.append(Text(f"{_cost(attribution, result['lesions'])} {_sums(attribution)}"))
    share = "share of samples" if settings["method"] != "auroc" else "score"
    rows = []
    for tag, count, by_layer in zip(key["tags"], key["samples"], key["best_by_layer"], strict=True):
        best, all_layers = key["best"][tag], key["per_layer"][tag]
        total = sum(len(neurons) for neurons in all_layers.values())
        for place, entry in enumerate(best[:_NAMED] or [None]):
            about = ["", "", "", "", ""]
            if place == 0:
                about = [tag, f"{count:,}", f"{total:,}", f"{len(best):,}", _middle(by_layer, key["layers"])]
            rows.append([*about, *_neuron(entry)])
    blocks += [
        Text(
            f"Up to {settings['k']:,} neurons per tag and layer go into the classifiers; the best "
            f"{settings['lesion_k']:,} of all layers per tag into the lesions; {_filtered(key, settings)} "
            f"The first {_NAMED} of each tag:"
        ),
        Grid(
            ["tag", ">samples", ">per layer, sum", ">best", "layers (middle half)", "neuron", f">{share}",
             ">mean attribution", ">q", ">Cramér's V"],
            rows,
        ),
        *(pictures[name] for name in ("layers", "overlap", "intersections") if name in pictures),
    ]  # fmt: skip
    return blocks


def _filtered(key: Mapping[str, Any], settings: Mapping[str, Any]) -> str:
    """Where the filter left fewer neurons than were asked for."""
    places = len(key["tags"]) * len(key["layers"])
    full = sum(len(neurons) >= settings["k"] for found in key["per_layer"].values() for neurons in found.values())
    whole = sum(len(found) >= settings["lesion_k"] for found in key["best"].values())
    return (
        f"so many pass the filter for {full:,} of {places:,} pairs of a tag and a layer, and for {whole} of "
        f"{len(key['tags'])} tags; elsewhere there are fewer."
    )


def _cost(attribution: Mapping[str, Any], lesions: Mapping[str, Any]) -> str:
    """What the attribution took, as a multiple of the lesions' clean run where it can be compared."""
    samples, clean = sum(attribution["samples"]), lesions["cost"]["clean_s"]
    if not attribution["timed"]:
        return f"{samples:,} predictions explained; part of that was in the lake already, so it is not timed."
    text = f"{samples:,} predictions explained in {attribution['seconds']:.0f} s, the model's loading included"
    if not samples or not clean:
        return f"{text}."
    multiple = attribution["seconds"] / samples / (clean / lesions["text"]["positions"])
    return (
        f"{text}: each takes {multiple:.1f} times as long as one position of a forward pass, as timed by the lesions' clean "
        "run. The words before it are computed for it too."
    )


def _sums(attribution: Mapping[str, Any]) -> str:
    missed = attribution["completeness_error"]
    if missed is None:
        return "Gradients promise no completeness: their sums need not equal an effect."
    worst = max((each for each in attribution["by_layer"] if each is not None), default=0.0)
    return (
        f"Completeness: sums miss the layers' effects by {missed:.2%} (mean over layers), in the worst layer by {worst:.2%}."
    )


def _neuron(entry: Mapping[str, Any] | None) -> list[str]:
    if entry is None:
        return ["none", "–", "–", "–", "–"]
    small, v = entry.get("q"), entry.get("cramers_v")
    mean = entry.get("attribution")
    return [
        entry["name"], _number(entry["score"]), "–" if mean is None else f"{mean:.2e}",
        "–" if small is None else f"{small:.1e}", _number(v),
    ]  # fmt: skip


def _probes(result: Mapping[str, Any], pictures: Mapping[str, Picture]) -> list[Block]:
    best, layer = _best(result), result["best_layer"]
    concepts = result["concepts"]
    blocks: list[Block] = [
        Text(
            f"Learned on {best['n_train']:,} tokens of {best['n_train_documents']:,} training documents, tested on "
            f"{best['n_test']:,} tokens of {best['n_test_documents']:,} documents, {_measured(result)} (best layer; last "
            "sub-word of each word). 95 %: intervals by document bootstrap. Paper: "
            f"{PAPER_ACCURACY}, final layer, four classes, Llama 3. “Best”: the key neurons that are lesioned, of all "
            "layers; “all”: every key neuron of every layer."
        )
    ]
    tasks = dict.fromkeys((each["task"], each["shift"]) for each in result["probes"])
    for task, shift in tasks:
        mine = [each for each in result["probes"] if (each["task"], each["shift"]) == (task, shift)]
        whose = "own word" if shift == 0 else f"word {shift} later"
        what = ", ".join(result["settings"]["classes"]) if task == "classes" else f"all tags of {result['settings']['by']}"
        blocks += [Heading(f"{what}; {whose}", 3), _probe_grid(mine)]
        blocks += [
            pictures[name] for name in pictures if name.startswith(f"accuracy-{task}-") and name.endswith(f"-shift{shift}")
        ]
    if result["skipped"]:
        blocks.append(Points([f"Not computed: {each}." for each in result["skipped"]]))
    blocks += [
        Heading("Concepts: a direction or a region?", 3),
        Text(
            "Each tag against all other words, on its own key neurons of the layer: CAV, a direction, and CAR, a region. "
            f"Balanced accuracy is 0.5 by chance; random neurons (accuracy) in the classes' best layer, {layer}."
        ),
        Grid(
            ["tag", ">layers", ">CAV, best", ">in layer", ">CAR, best", ">in layer", ">CAR above CAV in",
             f">neurons, layer {layer}", ">CAV", ">accuracy", ">random neurons"],
            [_concept(concepts, tag, layer) for tag in dict.fromkeys(each["concept"] for each in concepts)],
        ),
        *(pictures[name] for name in ("concepts",) if name in pictures),
    ]  # fmt: skip
    if result["test"] is not None:
        blocks += [
            Heading("On another corpus", 3),
            Text(f"The same neurons and training documents, tested on all of {result['test']['path']}."),
        ]
        for task, shift in dict.fromkeys((each["task"], each["shift"]) for each in result["transfer"]):
            mine = [each for each in result["transfer"] if (each["task"], each["shift"]) == (task, shift)]
            blocks += [Text(f"{task}, shift {shift}:"), _probe_grid(mine)]
    return blocks


def _concept(concepts: Sequence[Mapping[str, Any]], tag: str, layer: int) -> list[str]:
    """Cells of one tag."""
    found = {
        kind: {each["layer"]: each for each in concepts if (each["concept"], each["classifier"]) == (tag, kind)}
        for kind in ("cav", "car")
    }
    cells = [tag, f"{len(found['cav'])}"]
    for scores in found.values():
        best = max(scores.values(), key=lambda each: (each["balanced_accuracy"], -each["layer"]))
        cells += [_number(best["balanced_accuracy"]), str(best["layer"])]
    above = sum(each["balanced_accuracy"] > found["cav"][at]["balanced_accuracy"] for at, each in found["car"].items())
    cells.append(f"{above} of {len(found['car'])}")
    if layer not in found["cav"]:
        return [*cells, "0", "–", "–", "–"]
    here = found["cav"][layer]
    random = here["controls"].get("random_neurons", {}).get("accuracy")
    return [
        *cells,
        f"{here['n_features']:,}",
        _number(here["balanced_accuracy"]),
        _number(here["accuracy"]),
        _number(random),
    ]


def _probe_grid(probes: Sequence[Mapping[str, Any]]) -> Grid:
    return Grid(
        ["neurons from", "classifier", ">neurons", ">accuracy", "95 %", ">paper", ">macro-F1", ">word type", ">majority",
         ">random neurons", ">control task", ">selectivity"],
        [
            [
                f"layer {each['layer']}" if each["layer"] is not None else each["where"],
                each["classifier"],
                f"{each['n_features']:,}",
                _number(each["accuracy"]),
                _interval(each["intervals"]["accuracy"]),
                str(PAPER_ACCURACY) if each["task"] == "classes" else "–",
                _number(each["macro_f1"]),
                _number(each["baselines"]["most_frequent_tag_per_word"]["accuracy"]),
                _number(each["baselines"]["majority"]["accuracy"]),
                _number(each["controls"].get("random_neurons", {}).get("accuracy")),
                _number(each["controls"].get("control_task", {}).get("accuracy")),
                _number(each["selectivity"]),
            ]
            for each in probes
        ],
    )  # fmt: skip


def _lesions(result: Mapping[str, Any], pictures: Mapping[str, Picture]) -> list[Block]:
    found, settings = result["lesions"], result["settings"]
    lesions, text = found["lesions"], found["text"]
    holding = _holding(lesions)
    random = [sorted(each["random"]) for each in lesions]
    blocks: list[Block] = [
        Text(
            f"Key neurons set to zero in the live model; {text['targets']:,} words of {text['documents']:,} documents "
            f"predicted, {_measured(result)}. Δ is the rise of −log p of the word's first token, in nats per word. Random "
            f"sets have as many neurons in every layer as the key neurons, none of them among these; {settings['random']} "
            f"each. With {settings['random']} sets p is at least {1 / (1 + settings['random']):.3f}."
        ),
        Text(
            f"Own effect larger than on other tags and than at least {BEYOND:.0%} of random sets: {len(holding)} of "
            f"{len(lesions)} tags"
            + (f" ({', '.join(holding)})." if holding else ".")
        ),
        Grid(
            ["tag", ">words", ">neurons", ">own Δ", "95 %", ">other tags Δ", ">random mean", ">random 95 % point", ">p",
             ">q", ">other keys Δ", ">Δ accuracy", "above others?", "above 95 % of random?", "both?"],
            [
                [
                    each["tag"],
                    f"{each['targets']:,}",
                    f"{each['neurons']:,}",
                    _number(each["own"]["value"]),
                    _interval([each["own"]["low"], each["own"]["high"]]),
                    _number(each["others"]["value"]),
                    _number(each["random_mean"]),
                    _number(_point(drawn)),
                    _number(each["p"]),
                    _number(each["q"]),
                    _number(each["other_keys_mean"]),
                    _number(each["own_accuracy"]["value"]),
                    _yes(each["selectivity"]["value"] > 0),
                    _yes((each["exceeded"] or 0) >= BEYOND) if drawn else "–",
                    _yes(each["tag"] in holding),
                ]
                for each, drawn in zip(lesions, random, strict=True)
            ],
        ),
        *(pictures[name] for name in ("matrix", "effects") if name in pictures),
        Heading("Matrix: Δ log-loss of every lesion on words of every tag", 3),
        _matrix(lesions),
    ]  # fmt: skip
    if result["left_out"]:
        blocks.append(Points([f"Not lesioned: {tag} ({why})." for tag, why in result["left_out"].items()]))
    return blocks


def _matrix(lesions: Sequence[Mapping[str, Any]]) -> Grid:
    tags = list(dict.fromkeys(tag for each in lesions for tag in each["by_target"]))
    return Grid(
        ["lesion of", *(f">{tag}" for tag in tags)],
        [[each["tag"], *(_number(each["by_target"].get(tag, {}).get("value")) for tag in tags)] for each in lesions],
    )


def _provenance(result: Mapping[str, Any]) -> list[Block]:
    key, lesions = result["key_neurons"], result["lesions"]
    rows = [["model", result["model"]["name"]], ["model sha256", result["model"]["sha256"]]]
    for name in ("lake", "test", "on"):
        if (lake := result[name]) is not None:
            rows += [
                [name, lake["path"]],
                [f"{name} fingerprint", lake["fingerprint"]],
                [f"{name} holds", f"{lake['tokens']:,} tokens, {lake['layers']} layers of {lake['neurons']:,} neurons"],
            ]
    rows += [[f"setting {name}", _shown(value)] for name, value in result["settings"].items()]
    if result["attribution"] is not None:
        rows += [[f"attribution {name}", _shown(value)] for name, value in result["attribution"]["key"].items()]
        rows += [[f"attribution's {name}", _shown(value)] for name, value in result["attribution"]["provenance"].items()]
    rows += [["text of the lesions, sha256", lesions["text"]["sha256"]]]
    rows += [[f"lesions' {name}", _shown(v)] for name, v in lesions["provenance"].items() if name != "versions"]
    rows += [[f"version of {name}", version] for name, version in result["versions"].items()]
    times = {
        "attribution": 0.0 if result["attribution"] is None else result["attribution"]["seconds"],
        "choice of key neurons": key["seconds"],
        "classifiers": sum(each["seconds"] for each in result["probes"]),
        "concepts": sum(each["seconds"] for each in result["concepts"]),
        "transfer": sum(each["seconds"] for each in result["transfer"]),
        "lesions": lesions["seconds"],
    }
    total = sum(times.values())
    return [
        Heading("Run time", 3),
        Text("Seconds of each step when it was run; steps are not repeated when the command is."),
        Grid(
            ["step", ">seconds", ">share"],
            [
                [name, f"{each:.0f}", f"{each / total:.0%}" if total else "–"]
                for name, each in [*times.items(), ("all", total)]
            ],
        ),
        Heading("Everything that decides the results", 3),
        Grid(["what", "value"], rows),
    ]


def _best(result: Mapping[str, Any]) -> Mapping[str, Any]:
    """The logistic regression on the best layer's key neurons: the classes, the first shift."""
    found: Mapping[str, Any] = next(
        each
        for each in result["probes"]
        if each["task"] == "classes"
        and each["layer"] == result["best_layer"]
        and each["classifier"] == "logistic"
        and each["shift"] == result["settings"]["shifts"][0]
    )
    return found


def _alike(probe: Mapping[str, Any], other: Mapping[str, Any], layer: int | None = None) -> bool:
    """Whether a probe is of one layer (a given one, if any) and otherwise like another."""
    same = all(probe[name] == other[name] for name in ("task", "classifier", "shift"))
    return same and probe["layer"] is not None and layer in (None, probe["layer"])


def _holding(lesions: Sequence[Mapping[str, Any]]) -> list[str]:
    """Tags whose own effect is larger than that on other tags and than 95 % of the random sets'."""
    return [each["tag"] for each in lesions if each["selectivity"]["value"] > 0 and (each["exceeded"] or 0) >= BEYOND]


def _point(ordered: Sequence[float]) -> float | None:
    """The smallest of the random sets' effects that at least 95 % of them do not exceed."""
    return ordered[math.ceil(BEYOND * len(ordered)) - 1] if ordered else None


def _middle(counts: Sequence[int], layers: Sequence[int]) -> str:
    """Layers of the middle half of the neurons."""
    total, below, ends = sum(counts), 0, []
    for layer, count in zip(layers, counts, strict=True):
        ends += [layer] * sum(below < total * share <= below + count for share in (0.25, 0.75))
        below += count
    if not ends:
        return "–"
    return str(ends[0]) if ends[0] == ends[-1] else f"{ends[0]}–{ends[-1]}"


def _curve(name: str) -> str:
    _, task, classifier, shift = name.split("-", 3)
    return f"Accuracy by layer: {task}, {classifier}, label of the word {shift.removeprefix('shift')} later."


def _number(value: float | None, digits: int = 3) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def _interval(ends: Sequence[float | None] | None) -> str:
    if ends is None or ends[0] is None or ends[1] is None:
        return "–"
    return f"{ends[0]:.3f} … {ends[1]:.3f}"


def _yes(holds: bool) -> str:
    return "yes" if holds else "no"


def _shown(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value)) or "none"
    return "none" if value is None else str(value)
