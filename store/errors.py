"""Every error neuronlake raises on purpose, grouped by what a handler would do."""


class NeuronlakeError(Exception):
    """Base of all deliberate errors. The message says what, got, expected and the fix, on one line."""

    exit_code = 2


class InputError(NeuronlakeError, ValueError):
    """Wrong use or bad input: a missing file, a malformed corpus, an unknown label, settings that clash."""


class DamageError(NeuronlakeError, OSError):
    """Stored data is missing or does not match its checksum. Nothing of it is returned."""

    exit_code = 1


class StorageError(NeuronlakeError, OSError):
    """The file system refused (full disk, read-only folder). What was committed before stays valid."""
