"""The lake on disk: format, writing, reading, checking. Imports neither torch nor any model library."""

from neuronlake.store.buffer import BlockBuffer
from neuronlake.store.create import create_lake, read_spec
from neuronlake.store.encodings import ENCODINGS, Encoding
from neuronlake.store.errors import ActivationError, DamageError, InputError, NeuronlakeError, StorageError
from neuronlake.store.lake import Lake, open_lake
from neuronlake.store.spec import LakeSpec
from neuronlake.store.verify import VerifyReport, verify
from neuronlake.store.writer import BlockWriter

__all__ = [
    "ENCODINGS",
    "ActivationError",
    "BlockBuffer",
    "BlockWriter",
    "DamageError",
    "Encoding",
    "InputError",
    "Lake",
    "LakeSpec",
    "NeuronlakeError",
    "StorageError",
    "VerifyReport",
    "create_lake",
    "open_lake",
    "read_spec",
    "verify",
]
