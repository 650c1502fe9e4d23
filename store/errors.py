"""Every error neuronlake raises on purpose, grouped by what a handler would do."""


class NeuronlakeError(Exception):
    """Base of all deliberate errors. The message says what, got, expected and the fix, on one line."""

    exit_code = 2


class InputError(NeuronlakeError, ValueError):
    """Wrong use or bad input: a missing file, a malformed corpus, an unknown label, settings that clash."""


class DamageError(NeuronlakeError, RuntimeError):
    """Stored data is missing or does not match its checksum. Nothing of it is returned."""

    exit_code = 1


class StorageError(NeuronlakeError, OSError):
    """The file system refused (full disk, read-only folder). What was committed before stays valid."""


class ActivationError(InputError):
    """An activation that cannot be stored: not finite, or beyond the encoding's range."""

    def __init__(self, message: str, *, row: int):
        super().__init__(message)
        self.row = row
        """Row within the block, so that the extractor can name the token."""
