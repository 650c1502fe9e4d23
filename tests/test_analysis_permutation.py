"""Permutation nulls, and several label sets in one pass."""

import numpy as np
import pytest
from lakes import synthetic_lake
from memory_lake import MemoryLake

from neuronlake.analysis import LabelRequest, compute_several, compute_statistics, permutation_test, score, token_labels
from neuronlake.analysis.permutation import _Shuffle
from neuronlake.store import open_lake
from neuronlake.store.errors import InputError


def test_several_label_sets_take_one_pass():
    lake = MemoryLake()
    requests = ["upos", LabelRequest(by="form", subword="all"), LabelRequest(by="upos", where="form <> 'w1'", shift=1)]
    read = []
    original = lake.read_codes
    lake.read_codes = lambda **where: read.append((where["layer"], where["block"], where["chunk"])) or original(**where)
    found = compute_several(lake, requests, also=["mutual_information"])
    assert len(read) == len(set(read))
    lake.read_codes = original
    for request, dataset in zip(requests, found, strict=True):
        asked = request.as_dict() if isinstance(request, LabelRequest) else {"by": request}
        assert dataset.identical(compute_statistics(lake, also=["mutual_information"], **asked))


def test_what_is_kept_of_several_label_sets_is_not_read_again(tmp_path, monkeypatch):
    synthetic_lake(tmp_path / "a.lake", tokens=300)
    lake = open_lake(tmp_path / "a.lake")
    one = compute_statistics(lake, "upos")
    both = compute_several(lake, ["upos", "form"])
    monkeypatch.setattr(type(lake), "read_chunks", None)
    again = compute_several(open_lake(lake.path), ["form", "upos"])
    assert again[1].identical(one)
    assert again[0].identical(both[1])
    with pytest.raises(InputError, match="no label set given"):
        compute_several(lake, [])


@pytest.mark.parametrize("method", ["cohen_d", "auroc", "lape", "mutual_information", "average_precision"])
def test_without_any_dependence_few_neurons_pass(method):
    lake = MemoryLake(neurons=40)  # random values
    dataset = compute_statistics(lake, "upos", also=["mutual_information", "average_precision"])
    found = permutation_test(lake, dataset, method, permutations=39)
    assert found.attrs["permuted"] == "tokens of a document"
    p = found["p"].to_numpy()
    assert p.min() >= 1 / 40
    if method != "lape":  # most of its scores are zero
        assert 0.4 < p.mean() < 0.6
        assert (p <= 0.1).mean() < 0.16
    assert (found["p_family"] >= found["p"]).all()
    assert found["score"].identical(score(dataset, method)["score"])


def test_a_planted_neuron_is_found():
    lake = MemoryLake(neurons=40)
    labels = token_labels(lake, "upos")
    lake.values[2][labels.codes == 0, 7] += 2
    dataset = compute_statistics(lake, "upos")
    found = permutation_test(lake, dataset, "cohen_d", permutations=39).sel(tag=labels.tags[0])
    assert found["p_family"].sel(layer=2, neuron=7) == 1 / 40
    assert (found["p_family"] <= 0.05).sum() <= 2  # the planted one, and one by chance
    assert found["q"].sel(layer=2, neuron=7) == found["q"].min()


def test_tags_stay_in_their_document():
    labels = token_labels(MemoryLake(), "upos")
    shuffle = _Shuffle(labels, 1)
    first, second = shuffle.next(), shuffle.next()
    np.testing.assert_array_equal(first.codes >= 0, labels.codes >= 0)
    assert not np.array_equal(first.codes, labels.codes)
    assert not np.array_equal(first.codes, second.codes)
    for document in np.unique(labels.documents[labels.codes >= 0]):
        here = (labels.documents == document) & (labels.codes >= 0)
        np.testing.assert_array_equal(np.sort(first.codes[here]), np.sort(labels.codes[here]))


def test_documents_of_one_tag_exchange_their_tags():
    lake = MemoryLake(documents=6)
    dataset = compute_statistics(lake, "CASE WHEN document < 3 THEN 'a' ELSE 'b' END")
    found = permutation_test(lake, dataset, "cohen_d", permutations=4)
    assert found.attrs["permuted"] == "documents"
    labels = token_labels(lake, "CASE WHEN document < 3 THEN 'a' ELSE 'b' END")
    other = _Shuffle(labels, 0).next()
    tags = [set(other.codes[(labels.documents == document) & (labels.codes >= 0)].tolist()) for document in range(6)]
    assert all(len(tag) == 1 for tag in tags)
    assert sorted(tag for each in tags for tag in each) == [0, 0, 0, 1, 1, 1]


def test_what_cannot_be_permuted_is_refused():
    lake = MemoryLake()
    dataset = compute_statistics(lake, "upos")
    with pytest.raises(InputError, match="permutations must be at least 1"):
        permutation_test(lake, dataset, "cohen_d", permutations=0)
    with pytest.raises(InputError, match="all committed blocks and folds"):
        permutation_test(lake, compute_statistics(lake, "upos", only_folds=[0]), "cohen_d")
