"""Models with their language-model head, for what asks how well they predict the next token."""

from typing import Any

from neuronlake.extractor.model import choose_dtype, missing_weights
from neuronlake.extractor.source import ModelSource
from neuronlake.extractor.transformers_glue import LOAD_ERRORS, first_line, quiet_transformers
from neuronlake.store.errors import InputError


def read_config(source: ModelSource, *, trust_remote_code: bool = False) -> Any:
    """Read a model's configuration, without its weights.

    Raises
    ------
    InputError
        When it cannot be read.
    """
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(source.folder, trust_remote_code=trust_remote_code)
    except LOAD_ERRORS as error:
        raise InputError(f"{_unreadable(source)}: {first_line(error)}") from error


def load_with_head(source: ModelSource, *, device: str, dtype: str, trust_remote_code: bool = False) -> Any:
    """Load a model and its head, still on the CPU.

    Parameters
    ----------
    device
        Where it will run; decides the precision where `dtype` is ``auto``.

    Raises
    ------
    InputError
        When the weights cannot be read, or are not those of a model that predicts the next token.
    """
    from transformers import AutoModelForCausalLM

    try:
        with quiet_transformers():
            model, loading = AutoModelForCausalLM.from_pretrained(
                source.folder,
                dtype=choose_dtype(dtype, device),
                trust_remote_code=trust_remote_code,
                output_loading_info=True,
            )
    except LOAD_ERRORS as error:
        raise InputError(f"{_unreadable(source)}: {first_line(error)}") from error
    if missing := missing_weights(model, model, loading):
        raise InputError(
            f"{source.folder}: the checkpoint lacks {len(missing)} weights of {type(model).__name__}, first {missing[0]}: "
            "it was not trained to predict the next token"
        )
    return model


def _unreadable(source: ModelSource) -> str:
    return f"could not load {source.name} as a model that predicts the next token"
