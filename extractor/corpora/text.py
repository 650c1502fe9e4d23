"""Plain text, tagged on the way by a spaCy pipeline."""

import re
from collections import Counter, deque
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from itertools import chain, islice
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

from neuronlake.extractor.corpora.files import SourceFile, check_settings, expand, identify, read_lines
from neuronlake.extractor.corpora.records import Sentence, Word
from neuronlake.extractor.corpora.tagger import labels_of, load_tagger
from neuronlake.store.errors import InputError

SUFFIXES = (".txt", ".txt.gz")

MAX_PARAGRAPH = 100_000  # characters; spaCy's parser needs about 1 GB of memory for so many

_SENTENCE_END = re.compile(r"[.!?][\"'”’)\]]* ")


@dataclass(frozen=True, kw_only=True)
class TextCorpus:
    """Sentences of plain-text files, each a document, split and tagged by spaCy.

    Paragraphs are separated by blank lines; inside one, white space is collapsed to single spaces. Words are spaCy's
    tokens, labels are ``lemma``, ``upos``, ``xpos``, ``deprel``, ``entity`` (where there is one) and the morphological
    features under their UD names.
    """

    paths: tuple[Path, ...]
    """Files and folders; of a folder every ``*.txt`` and ``*.txt.gz``, at any depth, sorted."""
    tagger: str = "en_core_web_sm"
    """An installed spaCy pipeline package, or the folder of a saved pipeline."""
    processes: int = 1
    """Processes that tag. Does not change the result."""
    batch_size: int = 64
    """Paragraphs tagged at a time."""
    limit_sentences: int | None = None
    """Stop after so many sentences of the whole corpus."""

    def __post_init__(self) -> None:
        check_settings(self.paths, self.limit_sentences)
        if self.processes < 1 or self.batch_size < 1:
            raise InputError(
                f"processes and batch_size must be at least 1, got processes={self.processes}, batch_size={self.batch_size}"
            )

    def sentences(self) -> Iterator[Sentence]:
        """Yield every sentence in file order.

        Raises
        ------
        InputError
            If spaCy or the pipeline is missing or does not tag, or at the first file that cannot be read.
        """
        files = expand(self.paths, suffixes=SUFFIXES)
        load_tagger(self.tagger)
        return islice(self._stream(files), self.limit_sentences)

    def identity(self) -> dict[str, Any]:
        """Return what determines the stream, the pipeline's version and content included."""
        files = expand(self.paths, suffixes=SUFFIXES)
        pipeline = load_tagger(self.tagger)
        return {
            "kind": "text",
            "files": identify(files),
            "tagger": pipeline.facts,
            "batch_size": self.batch_size,
            "limit_sentences": self.limit_sentences,
        }

    def _stream(self, files: list[SourceFile]) -> Iterator[Sentence]:
        max_chars = min(MAX_PARAGRAPH, load_tagger(self.tagger).nlp.max_length)
        paragraphs = (paragraph for file in files for paragraph in _paragraphs(file, max_chars))
        batches = iter(lambda: list(islice(paragraphs, self.batch_size)), [])
        tagged = self._tag_in_processes(batches) if self.processes > 1 else (_tag(self.tagger, b) for b in batches)
        ordinals: Counter[str] = Counter()
        for batch in tagged:
            for sentence in batch:
                ordinals[sentence.source] += 1
                yield replace(sentence, name=f"{sentence.document}:{ordinals[sentence.source]}")

    def _tag_in_processes(self, batches: Iterator[list["_Paragraph"]]) -> Iterator[list[Sentence]]:
        # Not nlp.pipe(n_process=...): on Linux it waits for ever when its caller stops early or its input raises, as each
        # forked worker keeps the others' pipes open. Spawned, not forked: the caller may already run threads of torch.
        with ProcessPoolExecutor(self.processes, mp_context=get_context("spawn")) as pool:
            pending: deque[Future[list[Sentence]]] = deque()
            try:
                for batch in batches:
                    pending.append(pool.submit(_tag, self.tagger, batch))
                    if len(pending) > 2 * self.processes:  # a batch at work and one in hand for each
                        yield pending.popleft().result()
                while pending:
                    yield pending.popleft().result()
            except BrokenProcessPool as error:
                raise InputError(
                    f"a tagging process died (out of memory, or a script that lacks if __name__ == '__main__');"
                    f" got processes={self.processes}, batch_size={self.batch_size}: lower them, or use processes=1"
                ) from error
            finally:
                for future in pending:
                    future.cancel()


class _Paragraph(NamedTuple):
    text: str
    file: SourceFile
    line: int


def _paragraphs(file: SourceFile, max_chars: int) -> Iterator[_Paragraph]:
    held = ""
    first_line = 0
    for number, line in chain(read_lines(file), [(0, "")]):  # a last blank line ends the last paragraph
        line = " ".join(line.split())
        if line:
            if not held:
                first_line = number
            held = f"{held} {line}" if held else line
            if len(held) > max_chars:
                *whole, held = _cut(held, max_chars)
                yield from (_Paragraph(text, file, first_line) for text in whole)
                first_line = number
        elif held:
            yield _Paragraph(held, file, first_line)
            held = ""


def _cut(text: str, max_chars: int) -> Iterator[str]:
    """Cut into pieces of at most `max_chars`: after a sentence if one ends, else at a space, else anywhere."""
    start = 0
    while len(text) - start > max_chars:
        limit = start + max_chars
        ends = [match.end() for match in _SENTENCE_END.finditer(text, start, limit + 1)]
        cut = ends[-1] if ends else text.rfind(" ", start + 1, limit + 1) + 1 or limit
        yield text[start:cut].rstrip()
        start = cut
    yield text[start:]


def _tag(tagger: str, paragraphs: list[_Paragraph]) -> list[Sentence]:
    """Split and tag, here or in a worker process; the sentences have no name yet."""
    docs = load_tagger(tagger).nlp.pipe([paragraph.text for paragraph in paragraphs], batch_size=len(paragraphs))
    return [sentence for doc, paragraph in zip(docs, paragraphs, strict=True) for sentence in _sentences(doc, paragraph)]


def _sentences(doc: Any, paragraph: _Paragraph) -> Iterator[Sentence]:
    for span in doc.sents:
        tokens = [token for token in span if not token.is_space]
        if not tokens:
            continue
        start = tokens[0].idx
        end = tokens[-1].idx + len(tokens[-1])
        yield Sentence(
            text=doc.text[start:end],
            words=tuple(
                Word(
                    form=token.text,
                    start=token.idx - start,
                    end=token.idx - start + len(token),
                    labels=labels_of(token),
                )
                for token in tokens
            ),
            name="",
            document=paragraph.file.stem,
            source=paragraph.file.name,
            place=f"{paragraph.file.name}:{paragraph.line}",
        )
