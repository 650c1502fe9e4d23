"""Lesions in the live model: against the weights edited in a copy, each sentence alone."""

import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from family_models import CASES, VOCABULARY, Case
from tiny import make_model
from tiny_world import World, make_world
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from neuronlake.analysis import token_labels
from neuronlake.extractor import resolve_model
from neuronlake.extractor.lesion_model import Lesion, LesionModel, Outcome
from neuronlake.extractor.lesion_text import LesionText, sample_text
from neuronlake.extractor.lesion_values import lesion_values, mean_activations
from neuronlake.extractor.lesions import check_model, measure_lesions
from neuronlake.store import Lake, open_lake
from neuronlake.store.errors import InputError

EVERYTHING: dict[str, Any] = {"targets": 1 << 30, "least": 1, "wanted": (), "seed": 0}
CAUSAL_CASES = [case for case in CASES if case.causal]


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # these matrices are tiny
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def lake(world: World) -> Lake:
    return open_lake(world.lake)


@pytest.fixture(scope="module")
def model(world: World) -> LesionModel:
    return LesionModel.load(world.source, batch_tokens=96)


@pytest.fixture(scope="module")
def text(lake: Lake) -> LesionText:
    labels = token_labels(lake, "upos", subword="first", min_tokens=1)
    return sample_text(lake, labels.codes, labels.tags, **EVERYTHING)


def lesion(neurons: Mapping[int, list[int]], values: Mapping[int, list[float]] | None = None) -> Lesion:
    return Lesion(
        neurons={layer: np.array(some) for layer, some in neurons.items()},
        values={
            layer: np.array(values[layer] if values else [0.0] * len(some), dtype=np.float32)
            for layer, some in neurons.items()
        },
    )


def outcome(model: LesionModel, done: Lesion) -> Outcome:
    *steps, last = model.run(done)
    assert steps == [model.layers - model.start(done)] * model.batches
    assert isinstance(last, Outcome)
    return last


def edited(folder: Path, done: Lesion | None, module: str = "model.layers.{}.mlp.down_proj") -> Any:
    """A copy of the model whose output projections ignore the lesioned neurons and add what their values would write."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    for layer, neurons in done.neurons.items() if done else ():
        part = model.get_submodule(module.format(layer))
        conv = type(part).__name__ == "Conv1D"
        weight = part.weight.detach().T if conv else part.weight.detach()  # (width, neurons)
        at = torch.from_numpy(neurons)
        added = weight[:, at] @ torch.from_numpy(done.values[layer])
        before = part.bias.detach() if getattr(part, "bias", None) is not None else 0.0
        changed = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=True)
        with torch.no_grad():
            changed.weight.copy_(weight)
            changed.weight[:, at] = 0
            changed.bias.copy_(added + before)
        owner, _, name = module.format(layer).rpartition(".")
        setattr(model.get_submodule(owner), name, changed)
    return model


def words_to_predict(lake: Lake) -> list[tuple[int, list[int], int, str, int]]:
    """(document, token ids before, next id, tag, row) of every word, from the tables alone."""
    table = lake.tokens(labels=["upos"]).to_pylist()
    found, ids = [], []
    for line in table:
        if line["position"] == 0:
            ids = []
        if line["word"] >= 0 and line["subword"] == 0 and line["position"] > 0:
            found.append((line["document"], list(ids), line["token_id"], line["upos"], line["row"]))
        ids.append(line["token_id"])
    return found


def brute_force(
    lake: Lake, folder: Path, done: Lesion | None
) -> tuple[dict[tuple[int, str], float], dict[tuple[int, str], int]]:
    """Log-loss and hits by document and tag: every prefix by itself, through plain transformers."""
    model = edited(folder, done)
    losses: dict[tuple[int, str], float] = {}
    hits: dict[tuple[int, str], int] = {}
    with torch.no_grad():
        for document, before, following, tag, _ in words_to_predict(lake):
            logits = model(input_ids=torch.tensor([before])).logits[0, -1].double().numpy()
            shifted = logits - logits.max()
            losses[document, tag] = losses.get((document, tag), 0.0) - (shifted[following] - np.log(np.exp(shifted).sum()))
            hits[document, tag] = hits.get((document, tag), 0) + int(np.argmax(logits) == following)
    return losses, hits


def test_the_text_is_every_first_token_of_a_word_that_something_precedes(lake: Lake, text: LesionText) -> None:
    expected = words_to_predict(lake)
    found = [
        (text.documents[text.document[number]], ids[: at + 1].tolist(), int(following), text.tags[code])
        for number, ids in enumerate(text.sequences)
        for at, following, code in zip(text.where[number], text.next_ids[number], text.codes[number], strict=True)
    ]
    assert found == [line[:-1] for line in expected]
    assert all(where[-1] == len(ids) - 1 for ids, where in zip(text.sequences, text.where, strict=True))
    assert text.targets.sum() == len(expected)


def test_sampling_reaches_rare_tags_and_follows_the_seed(lake: Lake, text: LesionText) -> None:
    labels = token_labels(lake, "upos", subword="first", min_tokens=1)
    whole = dict(zip(text.tags, text.targets.sum(axis=0), strict=True))
    rare = min(whole, key=lambda tag: whole[tag])
    few = {"targets": 10, "least": 1, "wanted": ("DET",)}
    draws = [sample_text(lake, labels.codes, labels.tags, seed=seed, **few) for seed in (0, 0, 1, 2)]
    assert draws[0].digest == draws[1].digest
    assert len({draw.digest for draw in draws}) > 1
    assert all(draw.targets.sum() >= 10 for draw in draws)
    wanted = sample_text(lake, labels.codes, labels.tags, targets=10, least=int(whole[rare]), wanted=(rare,), seed=0)
    assert wanted.targets.sum(axis=0)[wanted.tags.index(rare)] == whole[rare]
    only = sample_text(lake, labels.codes, labels.tags, documents=np.array([1, 3]), **EVERYTHING)
    assert only.documents == (1, 3)
    with pytest.raises(InputError, match=r"'X' has no word to predict .* has words of DET, NOUN, VERB"):
        sample_text(lake, labels.codes, labels.tags, **{**EVERYTHING, "wanted": ("X",)})


@pytest.mark.parametrize("kind", ["clean", "zero", "mean", "clamp"])
def test_lesioned_log_loss_equals_edited_weights(
    kind: str, lake: Lake, world: World, model: LesionModel, text: LesionText
) -> None:
    neurons = {0: [3, 40, 87], 1: [0, 5, 6, 7, 80]}
    done = None
    if kind != "clean":
        values = lesion_values(lake, kind, 0.7 if kind == "clamp" else None, neurons)
        done = lesion(neurons, {layer: values[layer][some].tolist() for layer, some in neurons.items()})
        for layer, some in neurons.items():
            stored = lake.read(layer=layer)[(lake.tokens().column("flags").to_numpy() & 3) == 0][:, some].astype(np.float64)
            wanted = {"zero": 0 * stored[0], "mean": stored.mean(axis=0), "clamp": 0 * stored[0] + 0.7}[kind]
            np.testing.assert_allclose(done.values[layer], wanted, rtol=1e-5, atol=1e-7)
    runs = measure_lesions(model, text, [] if done is None else [done])
    losses, hits = brute_force(lake, world.source.folder, done)
    for (document, tag), loss in losses.items():
        at = text.documents.index(document), text.tags.index(tag)
        assert runs.log_loss[-1][at] == pytest.approx(loss, rel=2e-5)
        assert runs.hits[-1][at] == hits[document, tag]
    assert np.count_nonzero(runs.log_loss[-1]) == len(losses)


def test_the_mean_is_the_same_without_an_index(world: World, lake: Lake, tmp_path: Path) -> None:
    bare = Path(shutil.copytree(world.lake, tmp_path / "bare.lake"))
    shutil.rmtree(bare / "index")
    for layer, values in mean_activations(lake, (0, 1)).items():
        np.testing.assert_allclose(values, mean_activations(open_lake(bare), (0, 1))[layer], rtol=1e-6, atol=1e-8)


def test_skipped_layers_change_nothing(model: LesionModel, text: LesionText) -> None:
    done = lesion({1: [1, 2, 3]})
    skipped = measure_lesions(model, text, [done])
    assert skipped.skipped == 0.5
    assert skipped.passes == 1.5
    before, model.skips = model.skips, False
    try:
        full = measure_lesions(model, text, [done])
    finally:
        model.skips = before
    assert (full.skipped, full.passes) == (0, 2)
    np.testing.assert_array_equal(skipped.log_loss, full.log_loss)
    np.testing.assert_array_equal(skipped.hits, full.hits)
    assert not np.array_equal(full.log_loss[0], full.log_loss[1])


def test_batches_are_as_one_sequence_at_a_time(world: World, model: LesionModel, text: LesionText) -> None:
    done = lesion({0: [1, 2], 1: [4]})
    alone = LesionModel.load(world.source, batch_tokens=1)
    many, one = (measure_lesions(each, text, [done]) for each in (model, alone))
    assert alone.batches == len(text.sequences) > model.batches
    np.testing.assert_allclose(many.log_loss, one.log_loss, rtol=1e-5)
    # of a family that is not known to be causal, padding is masked
    masked = LesionModel(model.model, model._neurons, causal=False, device="cpu", batch_tokens=96)
    assert not masked._looks_ahead()
    np.testing.assert_allclose(measure_lesions(masked, text, [done]).log_loss, one.log_loss, rtol=1e-5)


def test_finished_runs_are_reused_and_damaged_ones_repeated(model: LesionModel, text: LesionText, tmp_path: Path) -> None:
    lesions = [lesion({1: [1]}), lesion({0: [2]}), lesion({1: [1]})]
    first = measure_lesions(model, text, lesions, folder=tmp_path, model_sha256="a")
    kept = sorted((tmp_path / "runs").iterdir())
    assert len(kept) == 2  # the third is the first
    assert first.reused == 0
    again = measure_lesions(model, text, lesions, folder=tmp_path, model_sha256="a")
    assert (again.reused, again.passes) == (2, 1)
    kept[0].write_bytes(kept[0].read_bytes()[:-30])
    repaired = measure_lesions(model, text, lesions, folder=tmp_path, model_sha256="a")
    assert repaired.reused == 1
    other = measure_lesions(model, text, lesions, folder=tmp_path, model_sha256="b")
    assert other.reused == 0
    shorter = replace(text, codes=tuple(0 * codes for codes in text.codes))
    assert measure_lesions(model, shorter, lesions, folder=tmp_path, model_sha256="a").reused == 0
    for runs in (again, repaired, other):
        np.testing.assert_array_equal(runs.log_loss, first.log_loss)


def test_a_planted_neuron_is_the_tags_own(tmp_path: Path) -> None:
    folder = make_model(tmp_path / "model")
    planted = AutoModelForCausalLM.from_pretrained(folder)
    mine, words = 7, range(40, 60)  # a neuron of layer 1, and the ids of the tag's words
    constant, channel = 0, 1  # dimensions of the residual stream: always on, and the neuron's own
    with torch.no_grad():
        planted.model.embed_tokens.weight[:, constant] = 4
        planted.model.embed_tokens.weight[:, channel] = 0
        for layer in planted.model.layers:
            for part in (layer.self_attn.o_proj, layer.mlp.down_proj):
                part.weight[[constant, channel]] = 0
        mlp = planted.model.layers[1].mlp
        mlp.gate_proj.weight[mine] = mlp.up_proj.weight[mine] = 0
        mlp.gate_proj.weight[mine, constant] = mlp.up_proj.weight[mine, constant] = 1
        mlp.down_proj.weight[:, mine] = 0
        mlp.down_proj.weight[channel, mine] = 1
        planted.lm_head.weight[:, channel] = 0
        planted.lm_head.weight[list(words), channel] = 5
    planted.save_pretrained(folder)
    rng = np.random.default_rng(0)
    sequences = [rng.integers(2, 400, size=12) for _ in range(10)]
    for sequence in sequences:
        sequence[3::4] = rng.choice(words, size=3)
    following = [sequence[1:] for sequence in sequences]
    text = LesionText(
        sequences=tuple(sequence[:-1] for sequence in sequences),
        where=tuple(np.arange(11) for _ in sequences),
        next_ids=tuple(following),
        codes=tuple(np.isin(ids, words).astype(np.int64) for ids in following),
        document=np.arange(10),
        documents=tuple(range(10)),
        tags=("other", "mine"),
    )
    model = LesionModel.load(resolve_model(str(folder)))
    random = [lesion({1: rng.choice([n for n in range(88) if n != mine], size=1).tolist()}) for _ in range(20)]
    runs = measure_lesions(model, text, [lesion({1: [mine]}), *random])
    change = (runs.log_loss[1:] - runs.log_loss[0]).sum(axis=1) / text.targets.sum(axis=0)
    other, own = change[0]
    assert own > 2
    assert own > 10 * np.abs(change[1:]).max()
    assert other < 0  # its words no longer take probability from the others
    # what is left is the model without the neuron, where the tag's words are nothing special
    without = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        without.model.layers[1].mlp.down_proj.weight[:, mine] = 0
        without.lm_head.weight[:, channel] = 0
        for line, ids in enumerate(text.sequences):
            logs = torch.log_softmax(without(input_ids=torch.from_numpy(ids)[None]).logits[0], -1)
            loss = -logs[torch.arange(11), torch.from_numpy(following[line])].double().numpy()
            expected = [loss[text.codes[line] == code].sum() for code in (0, 1)]
            np.testing.assert_allclose(runs.log_loss[1, line], expected, rtol=1e-5)


@pytest.mark.parametrize("case", CAUSAL_CASES, ids=lambda case: case.id)
def test_every_family(case: Case, tmp_path: Path) -> None:
    torch.manual_seed(0)
    built = AutoModelForCausalLM.from_config(CONFIG_MAPPING[case.kind](**case.config))
    with torch.no_grad():
        for parameter in built.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    built.save_pretrained(tmp_path)
    rng = np.random.default_rng(0)
    sequences = tuple(rng.integers(3, VOCABULARY, size=length) for length in (7, 4, 6))
    text = LesionText(
        sequences=sequences,
        where=tuple(np.arange(1, len(ids)) for ids in sequences),
        next_ids=tuple(rng.integers(3, VOCABULARY, size=len(ids) - 1) for ids in sequences),
        codes=tuple(np.zeros(len(ids) - 1, dtype=np.int64) for ids in sequences),
        document=np.arange(3),
        documents=(0, 1, 2),
        tags=("word",),
    )
    model = LesionModel.load(resolve_model(str(tmp_path)))
    module = model._neurons.pattern.replace("{layer}", "{}")
    assert model.skips
    done = [lesion({1: [0, 20]}, {1: [0.0, 0.5]}), lesion({0: [3], 1: [4]})]
    runs = measure_lesions(model, text, done)
    assert model.skips
    for run, each in enumerate([None, *done]):
        reference = edited(tmp_path, each, module)
        for line, ids in enumerate(sequences):
            with torch.no_grad():
                logs = torch.log_softmax(reference(input_ids=torch.from_numpy(ids)[None]).logits[0].double(), -1)
            expected = -logs[torch.from_numpy(text.where[line]), torch.from_numpy(text.next_ids[line])].sum().item()
            assert runs.log_loss[run, line, 0] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(
    ("kind", "config", "message"),
    [
        ("bert", {}, "attend to later ones"),
        ("t5", {"d_model": 32, "d_ff": 56, "num_layers": 2, "num_heads": 4, "vocab_size": 100}, "encoder–decoder"),
        ("mixtral", {"num_local_experts": 4, "num_key_value_heads": 2}, "mixture of experts"),
    ],
)
def test_models_without_a_next_word_or_without_fixed_neurons_are_refused(
    kind: str, config: dict[str, Any], message: str, tmp_path: Path
) -> None:
    from transformers import AutoModelForSeq2SeqLM

    usual = {
        "hidden_size": 32, "intermediate_size": 56, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 100,
    }  # fmt: skip
    made = CONFIG_MAPPING[kind](**(config if kind == "t5" else {**usual, **config}))
    (AutoModelForSeq2SeqLM if kind == "t5" else AutoModelForCausalLM).from_config(made).save_pretrained(tmp_path)
    with pytest.raises(InputError, match=message):
        LesionModel.load(resolve_model(str(tmp_path)))


def test_a_lake_of_another_model_and_values_that_do_not_fit_are_refused(lake: Lake, tmp_path: Path) -> None:
    other = resolve_model(str(make_model(tmp_path / "other", seed=1)))
    with pytest.raises(InputError, match=r"was made by model .*not by other"):
        check_model(lake, other)
    for arguments, message in [
        (("shred", None), "known are zero, mean, clamp"),
        (("clamp", None), "needs the finite value"),
        (("clamp", float("nan")), "needs the finite value"),
        (("zero", 1.0), "--value is for --do clamp"),
    ]:
        with pytest.raises(InputError, match=message):
            lesion_values(lake, *arguments, [0])


def test_a_value_that_breaks_the_model_is_not_a_result(model: LesionModel, text: LesionText) -> None:
    with pytest.raises(InputError, match="not finite with 1 neurons lesioned from layer 1"):
        measure_lesions(model, text, [lesion({1: [0]}, {1: [np.inf]})])
