"""From a corpus and a model to a lake: readers, alignment, plan, capture."""

from neuronlake.extractor.attribution import AttributionReport, AttributionSettings, attribute
from neuronlake.extractor.corpora import AudioCorpus, ConlluCorpus, TableCorpus, TextCorpus
from neuronlake.extractor.extract import extract
from neuronlake.extractor.labelling import label_with_conllu, label_with_spacy
from neuronlake.extractor.settings import ExtractReport, ExtractSettings, Observer
from neuronlake.extractor.source import ModelSource, resolve_model

__all__ = [
    "AttributionReport",
    "AttributionSettings",
    "AudioCorpus",
    "ConlluCorpus",
    "ExtractReport",
    "ExtractSettings",
    "ModelSource",
    "Observer",
    "TableCorpus",
    "TextCorpus",
    "attribute",
    "extract",
    "label_with_conllu",
    "label_with_spacy",
    "resolve_model",
]
