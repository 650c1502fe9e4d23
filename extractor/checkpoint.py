"""Tensors of a Hugging Face checkpoint, read straight from its safetensors files: no torch, nothing loaded whole.

Names and roles are those of the Llama family, see `neuronlake.extractor.model`.
"""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neuronlake.store.errors import InputError
from neuronlake.store.foreign import ForeignSettings
from neuronlake.store.foreign_safetensors import BFloat16, tensor_parts

_DOWN_PROJECTION = re.compile(r"(?P<stack>.*\.)?layers\.(?P<layer>\d+)\.mlp\.down_proj\.weight")
_HEAD = re.compile(r"(?:.*\.)?lm_head\.weight")
# Norms after the MLP: what a neuron writes passes through them before it is added to the residual stream.
_POST_NORMS = ("post_feedforward_layernorm", "post_mlp_layernorm")
# Their RMSNorm multiplies by 1 + weight; all others of the family by the weight.
_GAIN_PLUS_ONE = re.compile(r"gemma|gemma[23](_text)?|recurrent_gemma|vaultgemma|qwen3_next|qwen3_5(_text)?")
# Their norm subtracts the mean over the dimensions too (LayerNorm), some without a bias that would tell.
_LAYER_NORM = re.compile(r"cohere2?|nemotron|olmo|stablelm|phi")


@dataclass(frozen=True, kw_only=True)
class Tensor:
    """A tensor on the disk; slicing it gives float32."""

    name: str
    array: Any

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the tensor."""
        return tuple(self.array.shape)

    def __getitem__(self, key: Any) -> NDArray[np.float32]:
        """Return a part, converted; of float32 tensors a view of the file."""
        return np.asarray(self.array[key], dtype=np.float32)


class Checkpoint:
    """What neuron questions need of a model's weights.

    Parameters
    ----------
    folder
        With ``config.json`` and safetensors files, one or several with an index.

    Raises
    ------
    InputError
        When there are none, a file is malformed, or the architecture is not supported.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        config = read_json(folder / "config.json")
        text = config.get("text_config") or config
        self.architecture = str(text.get("model_type", config.get("model_type")))
        self._tensors = _open(folder)
        self._stack, self.layers = self._find_stack()
        first = self._weight(f"layers.{self.layers[0]}.mlp.down_proj")
        self.width, self.neurons = first.shape
        """Dimensions of the residual stream; neurons per layer."""
        if _LAYER_NORM.fullmatch(self.architecture) or f"{self._stack}norm.bias" in self._tensors:
            raise InputError(
                f"{self.architecture}: its final norm is a LayerNorm, the vocabulary reading is for RMSNorm (Llama family)"
            )
        self.embeddings = self._weight("embed_tokens")
        """(ids, width)."""
        self.unembedding, self.tied = self._head(text.get("tie_word_embeddings", config.get("tie_word_embeddings")))
        """(ids, width); and whether it is that of the input."""
        self.final_gain = self._gain("norm")
        """Of the norm before the unembedding, float32 (width,)."""

    @property
    def gain_formula(self) -> str:
        """How a norm's gain follows from its weight."""
        return "1 + weight" if _GAIN_PLUS_ONE.fullmatch(self.architecture) else "weight"

    def post_norm(self, layer: int) -> str | None:
        """Name of the norm that the MLP's output passes before it is added to the residual stream, if there is one."""
        names = (f"layers.{layer}.{name}" for name in _POST_NORMS)
        return next((name for name in names if f"{self._stack}{name}.weight" in self._tensors), None)

    def output_vectors(self, layer: int, neurons: slice = slice(None)) -> NDArray[np.float32]:
        """What one unit of each neuron's activation writes to the residual stream: float32 (neurons, width), C order.

        Its column of the down projection; with a norm after the MLP, times that norm's gain, which leaves out only the
        division by the root mean square of the whole layer's output, the same for all neurons of a token.
        """
        weight = self._weight(f"layers.{layer}.mlp.down_proj")
        if weight.shape != (self.width, self.neurons):
            raise InputError(f"{weight.name} has shape {weight.shape}, that of other layers is {(self.width, self.neurons)}")
        vectors = np.ascontiguousarray(weight[:, neurons].T)
        norm = self.post_norm(layer)
        if norm is not None:
            vectors = vectors * self._gain(norm)
        check_finite(vectors, weight.name)
        return vectors

    def _gain(self, norm: str) -> NDArray[np.float32]:
        weight = self._weight(norm)[:]
        check_finite(weight, norm)
        return weight + np.float32(1) if self.gain_formula == "1 + weight" else weight

    def _weight(self, name: str) -> Tensor:
        full = f"{self._stack}{name}.weight"
        try:
            array = self._tensors[full]
        except KeyError:
            raise InputError(f"{self.folder}: the checkpoint lacks {full}; it is not one of the Llama family") from None
        return Tensor(name=full, array=array)

    def _find_stack(self) -> tuple[str, tuple[int, ...]]:
        """Prefix of the layers' names, and their numbers."""
        found: dict[str, set[int]] = {}
        for name in self._tensors:
            if match := _DOWN_PROJECTION.fullmatch(name):
                found.setdefault(match["stack"] or "", set()).add(int(match["layer"]))
        # a vision tower has layers, but no token embeddings
        text = {stack: layers for stack, layers in found.items() if f"{stack}embed_tokens.weight" in self._tensors}
        if len(text) != 1:
            raise InputError(
                f"{self.folder}: expected one stack of layers.N.mlp.down_proj.weight beside embed_tokens.weight (Llama "
                f"family, not quantised), found {len(text)}"
            )
        ((stack, layers),) = text.items()
        return stack, tuple(sorted(layers))

    def _head(self, tied: bool | None) -> tuple[Tensor, bool]:
        heads = [name for name in self._tensors if _HEAD.fullmatch(name)]
        # Where the configuration says nothing, it is the class's default that holds: a checkpoint without a head is tied.
        if tied or (tied is None and not heads):
            return self.embeddings, True
        if len(heads) != 1:
            raise InputError(f"{self.folder}: the checkpoint has {len(heads)} tensors lm_head.weight, expected one")
        return Tensor(name=heads[0], array=self._tensors[heads[0]]), False


def check_finite(values: NDArray[Any], name: str) -> None:
    """Raise InputError where a value is not finite."""
    if not np.isfinite(values).all():
        raise InputError(f"{name} holds values that are not finite: the checkpoint is damaged")


def _open(folder: Path) -> dict[str, Any]:
    """Map name → array of every floating-point weight, from the files that transformers would take."""
    whole, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if whole.is_file():
        paths = [whole]
    elif index.is_file():
        paths = sorted({folder / str(name) for name in read_json(index).get("weight_map", {}).values()})
    else:
        raise InputError(
            f"{folder} has neither {whole.name} nor {index.name}: weights are read from safetensors "
            "(transformers' save_pretrained writes them)"
        )
    parts = [part for path in paths for part in tensor_parts(path, ForeignSettings(select="*.weight"))]
    biases = [part for path in paths for part in tensor_parts(path, ForeignSettings(select="*norm.bias"))]
    return {
        part.key: part.array
        for part in (*parts, *biases)
        if isinstance(part.array, BFloat16) or part.array.dtype.kind == "f"
    }


def read_json(path: Path) -> dict[str, Any]:
    """Parse a JSON object, or raise InputError."""
    try:
        parsed = json.loads(path.read_bytes())
    except OSError as error:
        raise InputError(f"could not read {path}: {error.strerror}") from None
    except ValueError as error:
        raise InputError(f"{path} is not JSON: {error}") from None
    if not isinstance(parsed, dict):
        raise InputError(f"{path} is not a JSON object")
    return parsed
