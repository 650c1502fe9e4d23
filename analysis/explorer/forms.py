"""Word forms of a lake, read once, so that a search for one reads no table but those that it is shown from."""

from collections import defaultdict
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import cached_property

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from neuronlake.store.lake import Lake
from neuronlake.store.parallel import map_ordered

_COMPARED = 4000  # forms that a misspelt one is compared with: a tenth of a second
_LENGTHS = 2  # by which a form may be longer or shorter than what is meant


@dataclass(frozen=True, kw_only=True)
class Forms:
    """Which word of the committed blocks has which form: 4 bytes a word."""

    forms: tuple[str, ...] = field(repr=False)
    codes: NDArray[np.int32] = field(repr=False)
    """Index into `forms` of every word, −1 where it has none; (words,), the blocks one after the other."""
    firsts: NDArray[np.int64] = field(repr=False)
    """Where each block's words begin, and where the last one's end; (blocks + 1,)."""

    @cached_property
    def _places(self) -> dict[str, int]:
        return {form: place for place, form in enumerate(self.forms)}

    @cached_property
    def counts(self) -> NDArray[np.int64]:
        """Words of each form, (forms,)."""
        return np.bincount(self.codes[self.codes >= 0], minlength=len(self.forms)).astype(np.int64)

    @cached_property
    def _folded(self) -> dict[str, list[int]]:
        found = defaultdict(list)
        for place, form in enumerate(self.forms):
            found[form.casefold()].append(place)
        return found

    def count(self, form: str) -> int:
        """Return how many words are spelt exactly so."""
        place = self._places.get(form)
        return 0 if place is None else int(self.counts[place])

    def words(self, form: str) -> dict[int, NDArray[np.int64]]:
        """Return the words that are spelt exactly so: position of the block → words, counted within it, ascending."""
        place = self._places.get(form)
        if place is None:
            return {}
        found = np.flatnonzero(self.codes == place)
        blocks = np.searchsorted(self.firsts, found, side="right") - 1
        return {int(block): found[blocks == block] - self.firsts[block] for block in np.unique(blocks)}

    def cases(self, form: str) -> list[tuple[str, int]]:
        """Return the forms that differ from one by case alone, with their counts, the most frequent first."""
        places = [place for place in self._folded.get(form.casefold(), ()) if self.forms[place] != form]
        found = [(self.forms[place], int(self.counts[place])) for place in places]
        return sorted(found, key=lambda entry: (-entry[1], entry[0]))

    def near(self, form: str, most: int = 6) -> list[tuple[str, int]]:
        """Return forms that may be meant instead, with their counts: those of another case, then those spelt alike."""
        cases = self.cases(form)
        alike = [
            place
            for place in np.argsort(-self.counts, kind="stable").tolist()
            if abs(len(self.forms[place]) - len(form)) <= _LENGTHS
            and self.forms[place][:1].casefold() == form[:1].casefold()
        ][:_COMPARED]
        close = get_close_matches(form, [self.forms[place] for place in alike], n=most, cutoff=0.7)
        known = {form, *(other for other, _ in cases)}
        return [*cases, *((other, self.count(other)) for other in close if other not in known)][:most]


def read_forms(lake: Lake) -> Forms:
    """Read the forms of all words of the committed blocks."""

    def read(block: int) -> pa.Array:
        return lake.read_table("words", block, ["form"]).column("form").combine_chunks().dictionary_encode()

    parts = list(map_ordered(read, lake.blocks))
    whole = pa.chunked_array(parts, type=pa.dictionary(pa.int32(), pa.string())).unify_dictionaries()
    codes = [np.asarray(chunk.indices.fill_null(-1)).astype(np.int32) for chunk in whole.chunks]
    forms = whole.chunk(0).dictionary.to_pylist() if whole.num_chunks else []
    lengths = [len(part) for part in parts]
    return Forms(
        forms=tuple(forms),
        codes=np.concatenate(codes) if codes else np.empty(0, dtype=np.int32),
        firsts=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
    )
