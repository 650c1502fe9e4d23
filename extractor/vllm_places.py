"""Where the sites of a model are in vLLM's version of it: modules of the same names as in transformers."""

from typing import Any

from neuronlake.extractor.model import find_projections
from neuronlake.extractor.source import ModelSource
from neuronlake.extractor.vllm_worker import Place
from neuronlake.store.errors import InputError
from neuronlake.store.spec import LakeSpec

_SIDES = {"mlp.post": "input", "mlp.out": "output"}


def find_places(source: ModelSource, spec: LakeSpec, *, trust_remote_code: bool = False) -> list[Place]:
    """Return where every site of every layer is, by transformers' names. No weights are read.

    Raises
    ------
    InputError
        When vLLM does not show a site.
    """
    import torch
    from transformers import AutoConfig, AutoModel

    for site in spec.sites:
        if site not in _SIDES:
            raise InputError(f"vLLM does not show site {site}, only {', '.join(_SIDES)}: use --backend transformers")
    config = AutoConfig.from_pretrained(source.folder, trust_remote_code=trust_remote_code)
    with torch.device("meta"):
        model = AutoModel.from_config(config, trust_remote_code=trust_remote_code)
    names: dict[Any, str] = {module: name for name, module in model.named_modules()}
    projections = find_projections(model)
    return [(site, layer, names[projections[layer]], _SIDES[site]) for site in spec.sites for layer in spec.layers]
