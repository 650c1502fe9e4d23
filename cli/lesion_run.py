"""Lesions from end to end: text, random sets, runs, effects, files. What `neuronlake lesion` does behind its options."""

import io
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neuronlake.analysis.figure_lesions import dose_response, lesion_matrix, own_effects
from neuronlake.analysis.labels import LabelVector
from neuronlake.analysis.lesion_effects import LesionSums, Trial, clean_scores, lesion_effects, summary
from neuronlake.analysis.neuron_sets import NeuronSet, check_sets, matched_sets
from neuronlake.analysis.source import versions
from neuronlake.extractor.lesion_model import Lesion, LesionModel
from neuronlake.extractor.lesion_text import LesionText, sample_text
from neuronlake.extractor.lesion_values import lesion_values
from neuronlake.extractor.lesions import LesionRuns, check_model, measure_lesions
from neuronlake.extractor.source import ModelSource
from neuronlake.store.errors import InputError, StorageError
from neuronlake.store.files import write_file
from neuronlake.store.lake import Lake

RESULT = "lesions.json"


@dataclass(frozen=True, kw_only=True)
class LesionSettings:
    """What is done to neurons, and what is measured."""

    do: str = "zero"
    value: float | None = None
    k: int | None = None
    """Neurons of each tag that matter most in the result, out of its set; None means the whole set."""
    doses: tuple[int, ...] = ()
    """Other numbers of neurons."""
    per_layer: bool = False
    """`k` and `doses` are numbers per layer."""
    random: int = 20
    dose_random: int = 5
    tokens: int = 2000
    least: int = 30
    seed: int = 0
    draws: int = 1000
    device: str = "auto"
    dtype: str = "auto"
    batch_tokens: int | None = None
    trust_remote_code: bool = False

    def __post_init__(self) -> None:
        for name, least in {"random": 0, "dose_random": 0, "tokens": 1, "least": 1, "draws": 1, "seed": 0}.items():
            if (given := getattr(self, name)) < least:
                raise InputError(f"--{name.replace('_', '-')} must be at least {least}, got {given}")
        if self.batch_tokens is not None and self.batch_tokens < 1:
            raise InputError(f"--batch-tokens must be at least 1, got {self.batch_tokens}")


def run_lesions(
    lake: Lake,
    on: Lake,
    source: ModelSource,
    sets: Sequence[NeuronSet],
    labels: LabelVector,
    settings: LesionSettings,
    *,
    documents: NDArray[np.integer] | None = None,
    chosen: dict[str, Any] | None = None,
    out: Path | None = None,
    suffix: str = "pdf",
    say: Callable[[str], None] = lambda message: None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Any]:
    """Lesion the key neurons of every tag, and random sets beside them, and compare what becomes of the prediction.

    Parameters
    ----------
    lake
        Whose means the neurons are set to, where that is asked for.
    on
        Whose text is predicted.
    source
        The model that both were made with.
    sets
        Key neurons of each tag, best first.
    labels
        Of the rows of `on`, first token of each word.
    documents
        Documents of `on` that may be predicted; None means all.
    chosen
        How the neurons were chosen, for the record.
    out
        Folder for the result, its figures and the finished runs; made if it does not exist.

    Returns
    -------
    dict
        The result, JSON-compatible.

    Raises
    ------
    InputError
        When settings, neurons, lakes and model do not fit together.
    StorageError
        When a file cannot be written.
    """
    for each in (lake, on):
        check_model(each, source)
    check_sets(sets, max(lake.layers) + 1, lake.neurons, str(lake.path))
    doses = _doses(sets, settings, len(lake.layers))
    tags = [each.tag for each in sets]
    text = sample_text(
        on,
        labels.codes,
        labels.tags,
        documents=documents,
        targets=settings.tokens,
        least=settings.least,
        wanted=tags,
        seed=settings.seed,
    )
    layers = {int(layer) for each in sets for layer in np.unique(each.layers)}
    values = lesion_values(lake, settings.do, settings.value, layers)
    plan, trials = _plan(doses, lake.neurons, settings)
    about = {
        "lake": str(lake.path),
        "lake_fingerprint": lake.fingerprint,
        "on": str(on.path),
        "on_fingerprint": on.fingerprint,
        "model": source.identity(),
        "by": labels.by,
        "where": labels.where,
        "chosen": chosen or {},
        "settings": {**asdict(settings), "doses": list(settings.doses)},
    }
    if out is not None:
        _check_out(out, about)
        _write(out, "neurons.json", {each.tag: each.pairs() for each in sets})
    say(f"loading {source.name}")
    model = LesionModel.load(
        source,
        device=settings.device,
        dtype=settings.dtype,
        trust_remote_code=settings.trust_remote_code,
        module=lake.spec.capture.get("module"),
        batch_tokens=settings.batch_tokens,
    )
    check_sets(sets, model.layers, model.width, source.name)
    lesions = [_lesion(each, values) for each in plan]
    say(f"predicting {int(text.targets.sum()):,} words of {len(text.documents):,} documents with {len(lesions):,} lesions")
    runs = measure_lesions(model, text, lesions, folder=out, model_sha256=source.sha256, progress=progress)
    sums = LesionSums(tags=text.tags, targets=text.targets, log_loss=runs.log_loss, hits=runs.hits)
    effects = lesion_effects(sums, trials, draws=settings.draws, seed=settings.seed)
    main = [effect for effect in effects if effect.dose == settings.k]
    result = {
        **about,
        "text": _describe(text),
        "clean": clean_scores(sums),
        "summary": summary(main),
        "lesions": [
            {**effect.as_dict(), "layers": dict(each.profile)} for effect, each in zip(main, doses[settings.k], strict=True)
        ],
        "doses": [effect.as_dict() for effect in effects if effect.dose != settings.k],
        "cost": _cost(runs, len(lesions)),
        "provenance": {**model.provenance(), "versions": versions()},
    }
    files = []
    if out is not None:
        for name, draw, what in (
            ("matrix", lesion_matrix, main),
            ("effects", own_effects, main),
            *((("doses", dose_response, effects),) if settings.doses else ()),
        ):
            subtitle = _subtitle(source, settings, text, None if name == "doses" else main[0].neurons)
            files.append(draw(what, out / f"{name}.{suffix}", subtitle=subtitle))
        _write_sums(out, text, runs)
        files.append(_write(out, RESULT, result))
    return {**result, "files": [str(path) for path in files]}


def _doses(sets: Sequence[NeuronSet], settings: LesionSettings, layers: int) -> dict[int | None, list[NeuronSet]]:
    """Numbers of neurons, as asked for, and the sets cut to them; the main one is `settings.k`."""
    times = layers if settings.per_layer else 1
    result: dict[int | None, list[NeuronSet]] = {}
    for dose in dict.fromkeys((settings.k, *settings.doses)):
        for each in sets:
            if dose is not None and dose * times > len(each):
                raise InputError(
                    f"{dose:,} neurons of {each.tag} asked for, but there are {len(each):,}: choose fewer, or a longer list"
                )
        result[dose] = [each if dose is None else each.best(dose * times) for each in sets]
    return result


def _plan(
    doses: dict[int | None, list[NeuronSet]], width: int, settings: LesionSettings
) -> tuple[list[NeuronSet], list[Trial]]:
    """Everything to lesion, and which runs (0 is the clean one) each comparison is of."""
    plan: list[NeuronSet] = []
    trials = []
    for dose, sets in doses.items():
        draws = settings.random if dose == settings.k else settings.dose_random
        random, of = matched_sets(sets, width=width, draws=draws, seed=settings.seed)
        own, others = len(plan) + 1, len(plan) + 1 + len(sets)
        plan += [*sets, *random]
        trials += [
            Trial(
                tag=each.tag,
                neurons=len(each),
                run=own + place,
                random=tuple(others + number for number in of[place]),
                dose=dose,
            )
            for place, each in enumerate(sets)
        ]
    return plan, trials


def _lesion(neurons: NeuronSet, values: dict[int, NDArray[np.float32]]) -> Lesion:
    by_layer = neurons.by_layer()
    return Lesion(neurons=by_layer, values={layer: values[layer][indices] for layer, indices in by_layer.items()})


def _describe(text: LesionText) -> dict[str, Any]:
    return {
        "sequences": len(text.sequences),
        "positions": text.tokens,
        "documents": len(text.documents),
        "targets": int(text.targets.sum()),
        "sha256": text.digest,
    }


def _cost(runs: LesionRuns, lesions: int) -> dict[str, Any]:
    return {
        "lesions": lesions,
        "reused": runs.reused,
        "passes": runs.passes,
        "share_of_layers_skipped": runs.skipped,
        "clean_s": runs.clean_s,
        "seconds": runs.seconds,
    }


def _subtitle(source: ModelSource, settings: LesionSettings, text: LesionText, neurons: int | None) -> str:
    done = {"zero": "set to zero", "mean": "set to their mean", "clamp": f"set to {settings.value}"}[settings.do]
    many = "" if neurons is None else f"{neurons:,} "
    return (
        f"{source.name} · {many}neurons of each tag {done} · {int(text.targets.sum()):,} words of "
        f"{len(text.documents):,} documents"
    )


def _check_out(out: Path, about: dict[str, Any]) -> None:
    """Make the folder, unless it holds another result."""
    if not out.absolute().parent.is_dir():
        raise InputError(f"no folder {out.parent} to make {out.name} in")
    try:
        earlier = json.loads((out / RESULT).read_bytes())
    except FileNotFoundError:
        earlier = None
    except (OSError, ValueError) as error:
        raise InputError(f"{out} cannot be used: {error}") from None
    if earlier is not None:
        differing = [name for name, value in json.loads(json.dumps(about)).items() if earlier.get(name) != value]
        if differing:
            raise InputError(f"{out} holds another result ({', '.join(differing)} differ): choose another folder")
    try:
        out.mkdir(exist_ok=True)
    except OSError as error:
        raise StorageError(f"could not make {out}: {error.strerror}") from error
    if not os.access(out, os.W_OK):
        raise StorageError(f"{out} cannot be written to")


def _write(out: Path, name: str, record: Any) -> Path:
    write_file(out, name, [json.dumps(record, ensure_ascii=False, indent=1, allow_nan=False).encode()])
    return out / name


def _write_sums(out: Path, text: LesionText, runs: LesionRuns) -> None:
    """Per document and tag, for whoever wants other comparisons: targets, log-loss and hits of every run."""
    data = io.BytesIO()
    np.savez_compressed(
        data,
        tags=np.array(text.tags),
        documents=np.array(text.documents),
        targets=text.targets,
        log_loss=runs.log_loss,
        hits=runs.hits,
    )
    write_file(out, "sums.npz", [data.getvalue()])
