"""What every use of the transformers library here needs: its errors, and its silence."""

import contextlib
import struct
from collections.abc import Iterator

# What transformers and its readers raise on a folder or file that is not what they expect: there is no common base.
LOAD_ERRORS = (OSError, ValueError, TypeError, LookupError, AttributeError, ImportError, RuntimeError, struct.error)


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """No progress bars and load reports from transformers: what matters of them is checked by the caller."""
    from transformers.utils import logging

    bars, level = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def first_line(error: BaseException) -> str:
    """Return the first line of a library's message, for one of ours."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
