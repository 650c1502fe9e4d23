"""A tag's page: its neurons, ranked, and in which layers they lie."""

from collections import Counter
from typing import Any

from neuronlake.analysis.explorer.shelf import METHODS, Opened
from neuronlake.analysis.rankers import RANKERS
from neuronlake.analysis.ranking import rank_scores

SHOWN = 50
MOST = 1000


def tag_page(
    opened: Opened, by: str | None, tag: str, method: str, *, top: int = SHOWN, layer: int | None = None
) -> dict[str, Any]:
    """Gather the page's data.

    Returns
    -------
    dict
        by, tag, tags, method, methods, labels, formula, source, test, count (tokens), neurons (entries of `rank`), layers
        (of each layer, how many of them; share of the largest), layer, top.

    Raises
    ------
    InputError
        When the label, the tag, the ranking or the layer is unknown, statistics are not kept, or `top` is out of range.
    """
    from neuronlake.store.errors import InputError

    if not 1 <= top <= MOST:
        raise InputError(f"between 1 and {MOST} neurons can be shown, got {top}")
    by = opened.label(by)
    scores = opened.scores(by, method)
    neurons = rank_scores(scores, top=top, tags=[tag], layers=None if layer is None else [layer])
    ranker = RANKERS[method]
    found = Counter(entry["layer"] for entry in neurons)
    most = max(found.values())
    return {
        "by": by,
        "tag": tag,
        "tags": [str(name) for name in scores["tag"].to_numpy()],
        "method": method,
        "methods": METHODS,
        "labels": opened.labels,
        "formula": ranker.formula,
        "description": ranker.description,
        "source": ranker.source,
        "test": ranker.test,
        "count": int(scores["count"].sel(tag=tag)),
        "neurons": neurons,
        "layers": [
            {"layer": each, "neurons": found[each], "share": found[each] / most}
            for each in scores["layer"].to_numpy().tolist()
        ],
        "layer": layer,
        "top": top,
    }
