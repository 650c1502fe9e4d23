"""Readers of tagged corpora: CoNLL-U treebanks, plain text tagged by spaCy, and tables tagged beforehand."""

from neuronlake.extractor.corpora.conllu import ConlluCorpus
from neuronlake.extractor.corpora.records import Corpus, Sentence, Word
from neuronlake.extractor.corpora.table import TableCorpus
from neuronlake.extractor.corpora.text import TextCorpus

__all__ = ["ConlluCorpus", "Corpus", "Sentence", "TableCorpus", "TextCorpus", "Word"]
