"""The lake on disk: format, writing, reading, checking. Imports neither torch nor any model library."""

from neuronlake.store.buffer import BlockBuffer
from neuronlake.store.compose import write_lake
from neuronlake.store.create import create_lake, read_spec
from neuronlake.store.encodings import DEFAULT_ENCODING, ENCODINGS, Encoding
from neuronlake.store.errors import ActivationError, DamageError, InputError, NeuronlakeError, StorageError
from neuronlake.store.index import complete_index
from neuronlake.store.label_adding import LabelSettings
from neuronlake.store.label_sets import LabelSet, remove_label_set
from neuronlake.store.label_table import label_from_table
from neuronlake.store.lake import Lake, open_lake
from neuronlake.store.lock import writing
from neuronlake.store.repair import RepairReport, repair
from neuronlake.store.scan import Tile
from neuronlake.store.spec import LakeSpec
from neuronlake.store.verify import VerifyReport, verify
from neuronlake.store.writer import BlockWriter

__all__ = [
    "DEFAULT_ENCODING",
    "ENCODINGS",
    "ActivationError",
    "BlockBuffer",
    "BlockWriter",
    "DamageError",
    "Encoding",
    "InputError",
    "LabelSet",
    "LabelSettings",
    "Lake",
    "LakeSpec",
    "NeuronlakeError",
    "RepairReport",
    "StorageError",
    "Tile",
    "VerifyReport",
    "complete_index",
    "create_lake",
    "label_from_table",
    "open_lake",
    "read_spec",
    "remove_label_set",
    "repair",
    "verify",
    "write_lake",
    "writing",
]
