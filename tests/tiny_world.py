"""A finished lake of a tiny real model, and what it was made from, to make it again."""

import dataclasses
from pathlib import Path

from tiny import conllu, make_model, some_sentences

from neuronlake.extractor import ConlluCorpus, ExtractSettings, ModelSource, extract, resolve_model
from neuronlake.store import open_lake

SETTINGS = {"encoding": "float16", "block_rows": 256, "batch_tokens": 96}


@dataclasses.dataclass(frozen=True, kw_only=True)
class World:
    """A finished lake and what it was made from."""

    lake: Path
    treebank: Path
    source: ModelSource

    def extract(self, root: Path, **settings: object) -> tuple[int, ...]:
        options = ExtractSettings(**{**SETTINGS, **settings})  # type: ignore[arg-type]
        return extract(root, ConlluCorpus(paths=(self.treebank,)), self.source, options).extracted


def make_world(folder: Path) -> World:
    """Extract 60 sentences into a lake of more than two blocks below `folder`."""
    (folder / "tiny.conllu").write_text(conllu(some_sentences(60)), encoding="utf-8")
    model = make_model(folder / "model", num_hidden_layers=2)
    world = World(lake=folder / "a.lake", treebank=folder / "tiny.conllu", source=resolve_model(str(model)))
    world.extract(world.lake)
    assert open_lake(world.lake).plan.blocks > 2
    return world
