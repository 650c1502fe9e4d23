"""Readers of tagged corpora: CoNLL-U treebanks, plain text tagged by spaCy, tables tagged beforehand, timed speech."""

from neuronlake.extractor.corpora.audio import AudioCorpus
from neuronlake.extractor.corpora.conllu import ConlluCorpus
from neuronlake.extractor.corpora.records import Corpus, Sentence, Utterance, Word
from neuronlake.extractor.corpora.table import TableCorpus
from neuronlake.extractor.corpora.text import TextCorpus

__all__ = ["AudioCorpus", "ConlluCorpus", "Corpus", "Sentence", "TableCorpus", "TextCorpus", "Utterance", "Word"]
