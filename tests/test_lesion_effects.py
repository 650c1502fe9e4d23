"""Numbers of lesions: Δ, intervals, p-values against loops over single targets; sets of neurons and their random matches."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import false_discovery_control

from neuronlake.analysis.figure_lesions import dose_response, lesion_matrix, own_effects
from neuronlake.analysis.lesion_effects import Effect, LesionSums, Trial, clean_scores, lesion_effects, summary
from neuronlake.analysis.neuron_sets import NeuronSet, check_sets, matched_sets, read_sets
from neuronlake.store.errors import InputError

TAGS = ("ADJ", "NOUN", "VERB", "X")  # no word of X
RUNS, DOCUMENTS = 9, 12
RANDOM = {"NOUN": (3, 4, 5), "VERB": (6, 7, 8)}


class Targets:
    """Single targets, and the loss and hit of each in every run."""

    def __init__(self, seed: int = 0, documents: int = DOCUMENTS):
        rng = np.random.default_rng(seed)
        self.document = rng.integers(0, documents, size=120)
        self.tag = rng.integers(0, 3, size=120)
        self.loss = rng.gamma(2.0, size=(RUNS, 120)) + 0.4 * np.arange(RUNS)[:, None] * (self.tag == 1)
        self.hit = rng.random((RUNS, 120)) < 0.4
        self.documents = documents

    def sums(self) -> LesionSums:
        shape = (self.documents, len(TAGS))
        targets, losses, hits = np.zeros(shape, int), np.zeros((RUNS, *shape)), np.zeros((RUNS, *shape), int)
        for place, cell in enumerate(zip(self.document, self.tag, strict=True)):
            targets[cell] += 1
            losses[:, *cell] += self.loss[:, place]
            hits[:, *cell] += self.hit[:, place]
        return LesionSums(tags=TAGS, targets=targets, log_loss=losses, hits=hits)

    def delta(self, run: int, tag: int, chosen: Any = None) -> float:
        """Δ of the targets of a tag in the chosen documents, each as often as it is chosen."""
        chosen = range(self.documents) if chosen is None else chosen
        values = [
            self.loss[run, place] - self.loss[0, place]
            for document in chosen
            for place in np.flatnonzero((self.document == document) & (self.tag == tag))
        ]
        return float(np.mean(values)) if values else float("nan")


def trials() -> list[Trial]:
    return [
        Trial(tag="NOUN", neurons=5, run=1, random=RANDOM["NOUN"]),
        Trial(tag="VERB", neurons=5, run=2, random=RANDOM["VERB"]),
    ]


def test_every_number_against_loops() -> None:
    targets = Targets()
    noun, verb = effects = lesion_effects(targets.sums(), trials(), draws=300, seed=3)
    weights = np.random.default_rng(3).multinomial(DOCUMENTS, np.full(DOCUMENTS, 1 / DOCUMENTS), size=300)
    chosen = [np.repeat(np.arange(DOCUMENTS), line) for line in weights]
    for effect, own, run, others, rival in [(noun, 1, 1, (0, 2), 2), (verb, 2, 2, (0, 1), 1)]:
        assert effect.targets == np.count_nonzero(targets.tag == own)
        assert effect.documents == len(set(targets.document[targets.tag == own]))
        assert effect.own.value == pytest.approx(targets.delta(run, own))
        rest = np.mean([targets.delta(run, tag) for tag in others])
        assert effect.others.value == pytest.approx(rest)
        assert effect.selectivity.value == pytest.approx(targets.delta(run, own) - rest)
        random = [targets.delta(number, own) for number in RANDOM[effect.tag]]
        np.testing.assert_allclose(effect.random, random)
        assert effect.random_mean == pytest.approx(np.mean(random))
        at_least = sum(value >= targets.delta(run, own) for value in random)
        assert effect.p == pytest.approx((1 + at_least) / 4)
        assert effect.exceeded == pytest.approx(1 - at_least / 3)
        selective = [
            targets.delta(number, own) - np.mean([targets.delta(number, tag) for tag in others])
            for number in RANDOM[effect.tag]
        ]
        assert effect.p_selectivity == pytest.approx((1 + sum(v >= effect.selectivity.value for v in selective)) / 4)
        assert effect.other_keys_mean == effect.other_keys_max == pytest.approx(targets.delta(rival, own))
        right = targets.tag == own
        assert effect.own_accuracy.value == pytest.approx(targets.hit[run, right].mean() - targets.hit[0, right].mean())
        for tag, name in enumerate(TAGS[:3]):
            assert effect.by_target[name]["value"] == pytest.approx(targets.delta(run, tag))
        assert "X" not in effect.by_target
        # the same resamples, document by document
        mine = np.array([targets.delta(run, own, some) for some in chosen])
        elsewhere = np.array([np.nanmean([targets.delta(run, tag, some) for tag in others]) for some in chosen])
        of_random = np.array(
            [np.mean([targets.delta(number, own, some) for number in RANDOM[effect.tag]]) for some in chosen]
        )
        of_rival = np.array([targets.delta(rival, own, some) for some in chosen])
        for change, resampled in [
            (effect.own, mine),
            (effect.others, elsewhere),
            (effect.selectivity, mine - elsewhere),
            (effect.above_random, mine - of_random),
            (effect.above_other_keys, mine - of_rival),
        ]:
            assert change is not None
            assert (change.low, change.high) == pytest.approx(tuple(np.nanquantile(resampled, (0.025, 0.975))))
    q = false_discovery_control([noun.p, verb.p])
    assert [effect.q for effect in effects] == pytest.approx(list(q))
    clean = clean_scores(targets.sums())
    assert clean["NOUN"]["log_loss"] == pytest.approx(targets.loss[0, targets.tag == 1].mean())
    assert clean["NOUN"]["accuracy"] == pytest.approx(targets.hit[0, targets.tag == 1].mean())


def test_the_interval_is_that_of_any_other_bootstrap() -> None:
    targets = Targets(seed=1)
    effect = lesion_effects(targets.sums(), trials()[:1], draws=4000)[0]
    rng = np.random.default_rng(99)
    values = [targets.delta(1, 1, rng.integers(0, DOCUMENTS, size=DOCUMENTS)) for _ in range(1500)]
    assert effect.own.low == pytest.approx(np.quantile(values, 0.025), abs=0.06)
    assert effect.own.high == pytest.approx(np.quantile(values, 0.975), abs=0.06)
    assert (effect.other_keys_mean, effect.above_other_keys) == (None, None)


def test_trials_of_other_doses_are_no_rivals_and_share_no_correction() -> None:
    more = [*trials(), *(Trial(tag=each.tag, neurons=9, run=each.run, random=(), dose=9) for each in trials())]
    effects = lesion_effects(Targets().sums(), more)
    assert [effect.q is None for effect in effects] == [False, False, True, True]
    assert [effect.p for effect in effects[2:]] == [None, None]
    assert [effect.as_dict() for effect in effects[:2]] == [e.as_dict() for e in lesion_effects(Targets().sums(), trials())]


def test_one_document_has_no_interval_and_an_absent_tag_no_effect() -> None:
    effect = lesion_effects(Targets(documents=1).sums(), trials())[0]
    assert (effect.own.low, effect.own.high) == (None, None)
    json.dumps(effect.as_dict(), allow_nan=False)
    for tag in ("X", "DET"):
        with pytest.raises(InputError, match=f"{tag}.*there are words of ADJ, NOUN, VERB"):
            lesion_effects(Targets().sums(), [Trial(tag=tag, neurons=1, run=1, random=())])


def test_scarce_tags_do_not_count_among_the_others() -> None:
    targets = Targets()
    targets.tag[np.flatnonzero(targets.tag == 2)[:-3]] = 0  # three of VERB are left
    effect = lesion_effects(targets.sums(), trials()[:1])[0]
    assert effect.others.value == pytest.approx(targets.delta(1, 0))
    assert effect.by_target["VERB"]["targets"] == 3
    assert effect.by_target["VERB"]["value"] == pytest.approx(targets.delta(1, 2))


def test_the_summary_counts() -> None:
    effects = lesion_effects(Targets().sums(), trials())
    counted = summary(effects)
    assert counted["tags"] == 2
    assert counted["above_others"] == sum(effect.own.value > effect.others.value for effect in effects)
    assert counted["above_random"] == sum(max(effect.random) < effect.own.value for effect in effects)


@given(
    st.lists(st.sets(st.tuples(st.integers(0, 3), st.integers(0, 29)), min_size=1, max_size=5), min_size=1, max_size=4),
    st.integers(0, 5),
)
@settings(max_examples=60)
def test_random_sets_match_layer_by_layer_and_are_disjoint(pairs: list[set[tuple[int, int]]], seed: int) -> None:
    sets = [NeuronSet.of(f"T{place}", sorted(some)) for place, some in enumerate(pairs)]
    random, of = matched_sets(sets, width=30, draws=3, seed=seed)
    for mine, places in zip(sets, of, strict=True):
        assert len(places) == 3
        for place in places:
            assert random[place].profile == mine.profile
            assert not set(random[place].pairs()) & set(mine.pairs())
            assert len(set(random[place].pairs())) == len(mine)
    for one, other, first, second in zip(sets, sets[1:], of, of[1:], strict=False):
        assert (first == second) == (one.profile == other.profile)
    again, _ = matched_sets(sets, width=30, draws=3, seed=seed)
    assert [each.pairs() for each in again] == [each.pairs() for each in random]


def test_sets_share_their_draws_only_while_there_are_neurons_for_all() -> None:
    sets = [NeuronSet.of("A", [(0, n) for n in range(4)]), NeuronSet.of("B", [(0, n) for n in range(4, 8)])]
    assert len(matched_sets(sets, width=14, draws=2, seed=0)[0]) == 2
    assert len(matched_sets(sets, width=10, draws=2, seed=0)[0]) == 4
    with pytest.raises(InputError, match="A: 4 of the 8 neurons of layer 0 are key neurons, which leaves too few"):
        matched_sets(sets, width=8, draws=2, seed=0)


def test_both_forms_of_a_list_are_read_in_their_order(tmp_path: Path) -> None:
    path = tmp_path / "sets.json"
    entries = [("NOUN", 3, 7), ("VERB", 0, 1), ("NOUN", 1, 2), ("NOUN", 3, 7)]
    for content in (
        {"NOUN": [[3, 7], [1, 2]], "VERB": ["L0.N1"]},
        listed := [{"tag": tag, "layer": layer, "neuron": neuron, "score": 1.0} for tag, layer, neuron in entries],
        {"site": "mlp.post", "neurons": listed},
    ):
        path.write_text(json.dumps(content))
        noun, verb = read_sets(path)
        assert (noun.tag, noun.pairs(), verb.pairs()) == ("NOUN", [(3, 7), (1, 2)], [(0, 1)])
        assert noun.best(1).pairs() == [(3, 7)]
    check_sets([noun, verb], 4, 8, "the model")
    for layers, neurons in ((3, 8), (4, 7)):
        with pytest.raises(InputError, match=r"no L3.N7 \(of tag NOUN\): these neurons are of another model"):
            check_sets([noun, verb], layers, neurons, "the model")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not JSON"),
        ("3", "holds 3; expected"),
        ("{}", "names no neuron"),
        ('{"NOUN": []}', "names no neuron of 'NOUN'"),
        ('{"NOUN": 3}', "is no list of neurons but 3"),
        ('{"NOUN": [[1]]}', r"\[1\] is no neuron"),
        ('{"NOUN": [[1, true]]}', "is no neuron"),
        ('{"NOUN": ["N3"]}', "'N3' is no neuron"),
        ('[{"layer": 1, "neuron": 2}]', "entries with a tag each"),
        ('[{"tag": "NOUN", "layer": 1}]', "is no neuron"),
    ],
)
def test_lists_of_another_form_are_refused(content: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "sets.json"
    path.write_text(content)
    with pytest.raises(InputError, match=message):
        read_sets(path)
    with pytest.raises(InputError, match="could not read"):
        read_sets(tmp_path / "nowhere.json")


def test_figures_show_every_lesion_and_target(tmp_path: Path) -> None:
    effects = lesion_effects(Targets().sums(), trials(), draws=50)
    drawn = lesion_matrix(effects, tmp_path / "matrix.svg", subtitle="of PRP$").read_text()
    for text in (
        "NOUN",
        "VERB",
        "random, mean",
        "of PRP$",
        *(f"{round(e.by_target['ADJ']['value'], 2):.2f}".replace("-", "−") for e in effects),
    ):
        assert f">{text}<" in drawn
    assert [re.search(rf">{tag} \((\d+)\)<", drawn) is not None for tag in TAGS] == [True, True, True, False]
    assert drawn.count(">★<") == sum((effect.exceeded or 0) >= 0.95 for effect in effects)
    assert ">NOUN (" in own_effects(effects, tmp_path / "effects.svg").read_text()
    more = lesion_effects(Targets().sums(), [*trials(), Trial(tag="NOUN", neurons=9, run=3, random=(), dose=9)], draws=50)
    doses = dose_response(more, tmp_path / "doses.svg").read_text()
    assert ">NOUN (" in doses
    assert ">VERB (" not in doses  # a single dose is no response
    again = dose_response(more, tmp_path / "again.svg").read_text()
    assert doses == again
    with pytest.raises(InputError, match="0 tags with several doses"):
        dose_response(effects, tmp_path / "none.svg")
    for draw in (lesion_matrix, own_effects):
        with pytest.raises(InputError, match="0 lesions"):
            draw([], tmp_path / "none.svg")
    with pytest.raises(InputError, match="known suffixes"):
        lesion_matrix(effects, tmp_path / "matrix.gif")


def test_an_effect_is_json(tmp_path: Path) -> None:
    effects = lesion_effects(Targets().sums(), trials(), draws=10)
    assert all(isinstance(effect, Effect) for effect in effects)
    (tmp_path / "effects.json").write_text(json.dumps([effect.as_dict() for effect in effects], allow_nan=False))
