"""The study from end to end: steps in order, each kept in the folder and not repeated, then figures and reports."""

import hashlib
import json
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neuronlake.analysis.execute import run_all
from neuronlake.analysis.probing.sampled import BINARY
from neuronlake.analysis.report import report_blocks
from neuronlake.analysis.report_figures import draw_report_figures
from neuronlake.analysis.report_render import to_html, to_markdown
from neuronlake.analysis.source import versions
from neuronlake.cli.reproduce_steps import (
    ATTRIBUTED,
    CLASSIFIERS,
    Study,
    best_neurons,
    classify,
    explain,
    key_neurons,
    layer_neurons,
    lesion,
    lesion_sets,
)
from neuronlake.store.errors import DamageError, InputError, StorageError
from neuronlake.store.files import make_folder, read_error, seal, unseal, write_file
from neuronlake.store.parallel import usable_cpus

if TYPE_CHECKING:
    from neuronlake.extractor.source import ModelSource

RESULT, HTML, MARKDOWN = "reproduce.json", "report.html", "report.md"
STEPS = "steps"
VERSION = 1
"""Of what the steps compute: those of another version are done again."""
MOST_TOGETHER = 4_096
"""Neurons of one classifier: with random ones beside them, more take gigabytes and half an hour."""
_DECISIVE = ("device", "batch_targets")  # of how a model is run: they move the last bits
_FEW_DRAWS, _MANY = 2, 1000  # draws of random neurons, where there are more than so many

Progress = Callable[[str], AbstractContextManager[Callable[[int, int], None]]]


@dataclass(frozen=True, kw_only=True)
class Steps:
    """Results of finished steps, in files named by what decides them."""

    folder: Path
    base: dict[str, Any]
    """What all of them depend on."""

    def get(
        self, name: str, key: dict[str, Any], compute: Callable[[], dict[str, Any]], *, beside: int = 1
    ) -> dict[str, Any]:
        """Return the result of a step, with its `seconds`; computed unless it is kept.

        Parameters
        ----------
        beside
            Steps that run at the same time: each counts for its share of the time.

        Raises
        ------
        StorageError
            When it cannot be read or kept.
        """
        whole = {**self.base, "step": name, **key}
        path = f"{STEPS}/{name}-{_digest(whole)}.json"
        try:
            return dict(unseal((self.folder / path).read_bytes(), path)["result"])
        except (FileNotFoundError, DamageError):  # a damaged one is done again
            pass
        except OSError as error:
            raise read_error(error, self.folder / path) from error
        began = time.monotonic()
        # through JSON, so that a result is the same whether it was kept or not
        result = {**json.loads(json.dumps(compute(), allow_nan=False)), "seconds": (time.monotonic() - began) / beside}
        write_file(self.folder, path, [seal({"key": whole, "result": result})])
        return result


def prepare_folder(out: Path) -> None:
    """Make the folder, or accept one that an earlier run made.

    Raises
    ------
    InputError
        When it holds something else, or there is no folder to make it in.
    StorageError
        When it cannot be made.
    """
    if not out.absolute().parent.is_dir():
        raise InputError(f"no folder {out.parent} to make {out.name} in")
    if out.exists() and not out.is_dir():
        raise InputError(f"--out {out} is a file: give a folder")
    try:
        if out.is_dir() and any(out.iterdir()) and not (out / STEPS).is_dir():
            raise InputError(f"{out} holds other files than those of an earlier `reproduce`: give another folder")
        make_folder(out / STEPS)
    except OSError as error:
        if isinstance(error, StorageError):
            raise
        raise StorageError(f"could not make {out}: {error.strerror}") from error


def reproduce(
    study: Study,
    source: "ModelSource",
    run: dict[str, Any],
    out: Path,
    *,
    say: Callable[[str], None],
    progress: Progress,
) -> dict[str, Any]:
    """Run the study, or what is left of it, and write both reports.

    Parameters
    ----------
    run
        device, batch_targets, trust_remote_code.
    out
        Of `prepare_folder`.
    progress
        Gives, for a title, what is to be called with (done, total).

    Returns
    -------
    dict
        What is in reproduce.json.
    """
    settings = asdict(study.settings)
    made_of = {"lake": study.lake.fingerprint, "blocks": list(study.lake.blocks), "model": source.sha256, "version": VERSION}
    split = {"by": settings["by"], "seed": settings["seed"], "test_share": study.split.test_share}
    steps = Steps(folder=out, base={**made_of, **split})
    explained = {name: settings[name] for name in ("method", "per_tag")} | {name: run[name] for name in _DECISIVE}
    chosen = {**explained, **{name: settings[name] for name in ("k", "fdr", "lesion_k")}}

    def attribution() -> dict[str, Any]:
        say(f"attribution by {study.settings.method}")
        with progress("attribution") as report:
            return explain(study, source, run, say=say, progress=report)

    def choose() -> dict[str, Any]:
        # found in the lake, unless somebody removed it there
        name = None if pass_ is None else explain(study, source, run, say=say, progress=lambda done, total: None)["name"]
        say(f"choosing key neurons by {study.settings.method}")
        with progress("key neurons") as report:
            return key_neurons(study, name, progress=report)

    pass_ = steps.get("attribution", explained, attribution) if study.settings.method in ATTRIBUTED else None
    key = steps.get("key-neurons", chosen, choose)
    _check_chosen(key, study)
    probes = _probes(study, key, steps, progress)
    result = {
        "what": "reproduction of arXiv 2511.06519",
        "settings": settings,
        "lake": _about(study.lake),
        "test": None if study.test is None else _about(study.test),
        "on": _about(study.on) if study.elsewhere else None,
        "model": source.identity(),
        "tags": list(study.tags),
        "documents": {"train": len(study.split.train), "held_out": len(study.split.test)},
        "versions": versions(),
        "attribution": pass_,
        "key_neurons": key,
        **probes,
        **_lesions(study, source, key, steps, run, out, say, progress),
    }
    figures = draw_report_figures(result, out / "figures")
    blocks = report_blocks(result, figures)
    for name, text in (
        (RESULT, json.dumps(result, ensure_ascii=False, indent=1, allow_nan=False)),
        (HTML, to_html(blocks, {figure: (out / figure).read_bytes() for figure in figures.values()})),
        (MARKDOWN, to_markdown(blocks)),
    ):
        write_file(out, name, [text.encode()])
    return result


def _probes(study: Study, key: dict[str, Any], steps: Steps, progress: Progress) -> dict[str, Any]:
    """Classifiers by layer and on all layers together, transfer to the other lake, and concepts per tag."""
    settings, classes = study.settings, study.settings.classes
    layers = settings.layers or tuple(key["layers"])
    tasks: list[tuple[str, list[str] | None, int]] = [("classes", list(classes), shift) for shift in settings.shifts]
    if not settings.classes_only:
        tasks.append(("tags", None, settings.shifts[0]))

    def fit(place: dict[str, Any], neurons: list[tuple[int, int]], *, beside: int = 1, **how: Any) -> dict[str, Any]:
        how = {"random_draws": settings.random_draws, "tag": None, **how}
        name = f"{how['classifier']}-{place['where']}" + ("-transfer" if how.get("transfer") else "")
        about = {
            "neurons": _digest(neurons),
            "draws": settings.draws,
            "train_tokens": settings.train_tokens,
            "place": place,
            **how,
        }
        if how.get("transfer"):
            about["other"] = study.test.fingerprint if study.test else None
        elif study.elsewhere:
            about["other"] = study.on.fingerprint
        return {**place, **steps.get(name, about, lambda: classify(study, neurons, **how), beside=beside)}

    def fit_all(title: str, work: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Those of one layer side by side, then those of several, which take more memory, one after the other."""
        of_layers = [each for each in work if each["place"]["layer"] is not None]
        with progress(title) as report:
            threads = min(usable_cpus(), max(1, len(of_layers)))
            done = run_all(partial(fit, beside=threads), of_layers, blas=True, progress=lambda n, _: report(n, len(work)))
            for each in (each for each in work if each["place"]["layer"] is None):
                done.append(fit(**each))
                report(len(done), len(work))
        return done

    skipped: list[str] = []
    places: list[tuple[dict[str, Any], list[tuple[int, int]], list[str] | None, int]] = []
    for task, tags, shift in tasks:
        of = tags or key["tags"]
        where = [({"where": f"layer-{layer}", "layer": layer}, layer_neurons(key, of, layer)) for layer in layers]
        where.append(({"where": "best", "layer": None}, best_neurons(key, of)))
        where.append(
            ({"where": "all", "layer": None}, [pair for layer in key["layers"] for pair in layer_neurons(key, of, layer)])
        )
        for place, neurons in where:
            if not neurons:
                skipped.append(f"{task}, {place['where']}: no key neuron")
            elif len(neurons) > MOST_TOGETHER:
                skipped.append(
                    f"{task}, {place['where']}: {len(neurons):,} neurons are more than the {MOST_TOGETHER:,} that one "
                    "classifier takes"
                )
            else:
                places.append(({"task": task, **place}, neurons, tags, shift))
    work: list[dict[str, Any]] = [
        {"place": place, "neurons": neurons, "tags": tags, "shift": shift, "classifier": classifier}
        for classifier in CLASSIFIERS
        for place, neurons, tags, shift in places
    ]
    for each in work:
        if len(each["neurons"]) > _MANY:
            each["random_draws"] = min(_FEW_DRAWS, settings.random_draws)
    found = fit_all("classifiers", work)
    by_layer = [each for each in found if _of_best(each, study)]
    if not by_layer:
        raise InputError(f"no layer has key neurons of {', '.join(classes)}: raise --fdr or --per-tag")
    best = max(by_layer, key=lambda each: (each["accuracy"], -each["layer"]))["layer"]
    concepts = fit_all(
        "concepts",
        [
            {
                "place": {"task": "concept", "where": f"layer-{layer}", "layer": layer, "concept": tag},
                "neurons": neurons,
                "tags": None,
                "tag": tag,
                "shift": settings.shifts[0],
                "classifier": classifier,
                "random_draws": settings.random_draws if layer == best else 0,
            }
            for tag in (classes if settings.classes_only else key["tags"])
            for layer in layers
            if (neurons := layer_neurons(key, [tag], layer))
            for classifier in BINARY
        ],
    )
    transfer: list[dict[str, Any]] = []
    if study.test is not None:
        wanted = {f"layer-{best}", f"layer-{layers[-1]}", "best"}
        again = [{**each, "transfer": True} for each in work if each["place"]["where"] in wanted]
        transfer = fit_all("other lake", again)
    return {"probes": found, "best_layer": best, "concepts": concepts, "transfer": transfer, "skipped": skipped}


def _of_best(probe: dict[str, Any], study: Study) -> bool:
    """Whether the best layer is chosen among them: the classes, logistic regression, the first shift."""
    return (
        probe["task"] == "classes"
        and probe["layer"] is not None
        and probe["classifier"] == CLASSIFIERS[0]
        and probe["shift"] == study.settings.shifts[0]
    )


def _lesions(
    study: Study,
    source: "ModelSource",
    key: dict[str, Any],
    steps: Steps,
    run: dict[str, Any],
    out: Path,
    say: Callable[[str], None],
    progress: Progress,
) -> dict[str, Any]:
    settings = study.settings
    sets, left_out = lesion_sets(study, key)
    about = {
        "neurons": _digest([[each.tag, each.pairs()] for each in sets]),
        "device": run["device"],
        **{name: getattr(settings, name) for name in ("random", "tokens", "least", "draws")},
        "on": study.on.fingerprint,
    }
    folder = f"lesions-{_digest({**steps.base, **about})}"

    def measure() -> dict[str, Any]:
        with progress("lesions") as report:
            return lesion(study, source, sets, run, out / folder, say=say, progress=report)

    return {"lesions": steps.get("lesions", about, measure), "lesion_folder": folder, "left_out": left_out}


def _digest(record: Any) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()[:12]


def _check_chosen(key: dict[str, Any], study: Study) -> None:
    missing = [tag for tag in study.settings.classes if tag not in key["per_layer"]]
    if missing:
        raise InputError(f"no training document predicts a word of {', '.join(missing)}: change --seed or --classes")


def _about(lake: Any) -> dict[str, Any]:
    return {
        "path": str(lake.path),
        "fingerprint": lake.fingerprint,
        "tokens": lake.tokens().num_rows,
        "blocks": len(lake.blocks),
        "layers": len(lake.layers),
        "neurons": lake.neurons,
    }
