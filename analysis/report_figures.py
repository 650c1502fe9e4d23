"""The figures of a study's report, drawn from its results alone."""

from pathlib import Path
from typing import Any

import numpy as np

from neuronlake.analysis.figure_key_neurons import key_neuron_layers, key_neuron_overlap, key_neuron_upset
from neuronlake.analysis.figure_lesions import lesion_matrix, own_effects
from neuronlake.analysis.lesion_effects import Change, Effect
from neuronlake.analysis.probing.figure_concepts import concepts_by_layer
from neuronlake.analysis.probing.figures import accuracy_by_layer
from neuronlake.store.files import make_folder

_MOST_DRAWN = 6  # sets whose intersections are drawn


def draw_report_figures(result: dict[str, Any], folder: Path) -> dict[str, str]:
    """Draw what there is to draw.

    Parameters
    ----------
    result
        Of `neuronlake reproduce`.
    folder
        Made if it does not exist; the names that are returned begin with its own.

    Returns
    -------
    dict
        What is shown (layers, overlap, intersections, accuracy …, matrix, effects) → the file, relative to the report.
    """
    make_folder(folder)
    key, settings = result["key_neurons"], result["settings"]
    tags, classes = key["tags"], settings["classes"]
    whose = f"{result['model']['name']} · {settings['method']}"
    how = f"{whose} · at most {settings['lesion_k']:,} per tag, of all layers"
    drawn = {
        "layers": key_neuron_layers(
            np.array(key["best_by_layer"]), tags, key["layers"], folder / "layers.png", subtitle=how
        ),
        "overlap": key_neuron_overlap(key["jaccard"], tags, folder / "overlap.png", subtitle=how),
    }
    sets = {tag: {(entry["layer"], entry["neuron"]) for entry in key["best"][tag]} for tag in classes}
    if len(sets) <= _MOST_DRAWN and any(sets.values()):
        drawn["intersections"] = key_neuron_upset(sets, folder / "intersections.png", subtitle=how)
    groups: dict[str, list[dict[str, Any]]] = {}
    for probe in result["probes"]:
        if probe["layer"] is not None:
            groups.setdefault(f"accuracy-{probe['task']}-{probe['classifier']}-shift{probe['shift']}", []).append(probe)
    for name, probes in groups.items():
        if len(probes) > 1:
            rows = [row for probe in probes for row in probe["rows"]]
            drawn[name] = accuracy_by_layer(rows, folder / f"{name}.png")
    if len({each["layer"] for each in result["concepts"]}) > 1:
        drawn["concepts"] = concepts_by_layer(
            result["concepts"],
            folder / "concepts.png",
            subtitle=f"{whose} · on the tag's own key neurons of the layer",
        )
    effects = [effect_of(each) for each in result["lesions"]["lesions"]]
    text = result["lesions"]["text"]
    of_text = f"{how}, set to zero · {text['targets']:,} words of {text['documents']:,} documents"
    drawn["matrix"] = lesion_matrix(effects, folder / "matrix.png", subtitle=of_text)
    drawn["effects"] = own_effects(effects, folder / "effects.png", subtitle=of_text)
    return {name: f"{folder.name}/{path.name}" for name, path in drawn.items()}


def effect_of(record: dict[str, Any]) -> Effect:
    """Make an effect of its JSON form, `Effect.as_dict`."""
    fields = {name: value for name, value in record.items() if name != "layers"}
    for name in ("own", "own_accuracy", "others", "selectivity", "above_random", "above_other_keys"):
        fields[name] = None if fields[name] is None else Change(**fields[name])
    return Effect(**{**fields, "random": tuple(fields["random"])})
