"""Loading a spaCy pipeline and telling what it is."""

import hashlib
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from neuronlake.extractor.corpora.files import digest
from neuronlake.store.errors import InputError


class Pipeline(NamedTuple):
    """A spaCy pipeline that splits sentences and tags words."""

    nlp: Any
    facts: dict[str, str]
    """``spacy`` (its version), ``pipeline`` and ``version`` (as it calls itself), ``sha256`` (of its files)."""


@lru_cache(maxsize=1)  # loading takes about a second, and a corpus is asked for its identity and then read
def load_pipeline(tagger: str) -> Pipeline:
    """Load an installed pipeline package, or a saved pipeline's folder.

    Raises
    ------
    InputError
        If spaCy or the pipeline is not installed or cannot be loaded.
    """
    try:
        import spacy
    except ImportError as error:
        raise InputError(
            f"tagging text needs spaCy, which cannot be imported ({error}); pip install 'neuronlake[spacy]'"
        ) from error
    try:
        nlp = spacy.load(tagger)
    except (OSError, ValueError, ImportError) as error:
        reason = " ".join(str(error).split())
        raise InputError(
            f"the spaCy pipeline {tagger!r} cannot be loaded ({reason});"
            f" install it with: python -m spacy download {tagger}, or name another pipeline"
        ) from error
    facts = {
        "spacy": spacy.__version__,
        "pipeline": f"{nlp.meta['lang']}_{nlp.meta['name']}",
        "version": nlp.meta["version"],
        # Pipelines trained at home all call themselves "pipeline 0.0.0"; their files tell them apart.
        "sha256": _digest_folder(nlp.path),
    }
    return Pipeline(nlp, facts)


def load_tagger(tagger: str) -> Pipeline:
    """Load a pipeline that plain text can be split and tagged with.

    Raises
    ------
    InputError
        Also if the pipeline sets no sentence bounds or parts of speech.
    """
    pipeline = load_pipeline(tagger)
    _check_tags(tagger, pipeline.nlp)
    return pipeline


def labels_of(token: Any) -> dict[str, str]:
    """Return what a pipeline says of a token, by label column; what it does not say is left out.

    ``lemma``, ``upos``, ``xpos``, ``deprel``, ``entity`` and the morphological features under their UD names.
    """
    named = {
        "lemma": token.lemma_,
        "upos": token.pos_,
        "xpos": token.tag_,
        "deprel": token.dep_,
        "entity": token.ent_type_,
    }
    return {name: value for name, value in (token.morph.to_dict() | named).items() if value}


@lru_cache(maxsize=1)
def _check_tags(tagger: str, nlp: Any) -> None:
    probe = nlp("This is a test. Here is another one.")
    for attribute, lack in (("SENT_START", "sets no sentence bounds"), ("POS", "sets no parts of speech")):
        if not probe.has_annotation(attribute):
            raise InputError(
                f"the spaCy pipeline {tagger!r} {lack}: it runs {nlp.pipe_names}, expected a parser or senter,"
                " and a tagger with attribute_ruler or a morphologizer; name another pipeline"
            )


def _digest_folder(folder: Path) -> str:
    total = hashlib.sha256()
    files = sorted((path.relative_to(folder).as_posix(), path) for path in folder.rglob("*") if path.is_file())
    for name, path in files:
        total.update(f"{digest(path)}  {name}\n".encode())
    return total.hexdigest()
