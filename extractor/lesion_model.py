"""A causal model with its head: how well it predicts chosen tokens, with neurons set to something else.

Layers below the first lesioned one compute what they computed in the clean run, so their output is kept and they are not
run again; the vocabulary is read only where there is a target.
"""

import contextlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from neuronlake.extractor.batching import plan_batches
from neuronlake.extractor.families import Neurons, find_neurons, is_causal, width_in
from neuronlake.extractor.lesion_text import LesionText
from neuronlake.extractor.model import choose_device
from neuronlake.extractor.source import ModelSource
from neuronlake.extractor.with_head import load_with_head, read_config
from neuronlake.store.errors import InputError

if TYPE_CHECKING:
    import torch

_NOISE = 1e-5  # relative difference between two rows of one batch that compute the same


@dataclass(frozen=True, kw_only=True)
class Lesion:
    """Neurons and what they are set to."""

    neurons: Mapping[int, NDArray[np.int64]] = field(repr=False)
    """Layer → indices."""
    values: Mapping[int, NDArray[np.float32]] = field(repr=False)
    """Layer → one value per index."""

    @property
    def first(self) -> int:
        """Lowest layer."""
        return min(self.neurons)


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """Predictions of the targets, one array per sequence in the text's order."""

    log_loss: list[NDArray[np.float64]]
    """−log p of the target, in nats."""
    hits: list[NDArray[np.float64]]
    """1 where the target is the most probable token of all."""


@dataclass(frozen=True, kw_only=True)
class _Batch:
    members: list[int]
    ids: "torch.Tensor"
    """(sequences, positions), padded on the right."""
    mask: "torch.Tensor"
    at: "torch.Tensor"
    """Flat positions whose next token is a target, (targets,)."""
    next_ids: "torch.Tensor"
    counts: list[int]
    """Targets of each member."""


class LesionModel:
    """A model that predicts, in evaluation mode on one device."""

    def __init__(self, model: Any, neurons: Neurons, *, causal: bool, device: str, batch_tokens: int | None):
        import torch

        self.model = model.to(device).eval()
        self.layers = len(neurons.output)
        self.width = width_in(neurons.output[0])
        """Neurons per layer."""
        self.device = torch.device(device)
        self.skips = bool(neurons.layers)
        """Whether layers below a lesion are skipped."""
        self.batch_tokens = batch_tokens or (512 if self.device.type == "cpu" else 4096)
        self._neurons = neurons
        self._causal = causal
        self._head = model.get_output_embeddings()
        self._kept: dict[tuple[int, int], torch.Tensor] = {}  # (layer, batch) -> what the layer below it returned
        self._batches: list[_Batch] = []
        self._sequences = 0
        self._shapes: dict[int, int] = {}  # layer -> length of the tuple that it returns, 0 for a tensor

    @classmethod
    def load(
        cls,
        source: ModelSource,
        *,
        device: str = "auto",
        dtype: str = "auto",
        trust_remote_code: bool = False,
        module: str | None = None,
        batch_tokens: int | None = None,
    ) -> "LesionModel":
        """Load a model with its language-model head.

        Parameters
        ----------
        device, dtype, trust_remote_code, module
            As for `Model.load`.
        batch_tokens
            Largest padded forward pass; by default 512 on a CPU, 4,096 on a GPU.

        Raises
        ------
        InputError
            When the weights cannot be read, the model does not predict the next token (an encoder), or its neurons are
            those of experts.
        """
        device = choose_device(device)
        config = read_config(source, trust_remote_code=trust_remote_code)
        if config.is_encoder_decoder:
            raise InputError(
                f"{source.name} is an encoder–decoder: its neurons are the encoder's, which predicts no next word"
            )
        model = load_with_head(source, device=device, dtype=dtype, trust_remote_code=trust_remote_code)
        neurons = find_neurons(model, module=module)
        if neurons.moe:
            raise InputError(
                f"{source.name} is a mixture of experts: which neurons exist differs from token to token, and lesions of "
                "them are not supported"
            )
        if model.get_output_embeddings() is None:
            raise InputError(f"{source.name} has no language-model head")
        loaded = cls(model, neurons, causal=is_causal(config), device=device, batch_tokens=batch_tokens)
        if not loaded._causal and loaded._looks_ahead():
            raise InputError(f"{source.name}: its tokens attend to later ones (an encoder), so it predicts no next word")
        return loaded

    def provenance(self) -> dict[str, Any]:
        """Return what may move the last bits of the results."""
        import torch
        import transformers

        cpu = self.device.type == "cpu"
        return {
            "device": "cpu" if cpu else torch.cuda.get_device_name(self.device),
            "dtype": str(next(self.model.parameters()).dtype).removeprefix("torch."),
            "threads": torch.get_num_threads() if cpu else None,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "attention": self.model.config._attn_implementation,
            "batch_tokens": self.batch_tokens,
        }

    def _looks_ahead(self) -> bool:
        """Whether the first token's prediction depends on the last token."""
        import torch

        ids = torch.tensor([[3, 4, 5], [3, 4, 6]], device=self.device)
        with torch.inference_mode():
            first = self.model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[:, 0].float()
        return bool((first[0] - first[1]).abs().max() > _NOISE * first.abs().max())

    def prepare(self, text: LesionText, starts: Sequence[int]) -> Iterator[int]:
        """Run the text without any lesion and keep what enters the layers in `starts`; yields after each batch.

        When the generator is exhausted, `clean` holds the outcome. A model whose layers hand on more than their output is
        found out here: then no layer is skipped.
        """
        self._batches = _batches(text, self.batch_tokens, self.device)
        self._sequences = len(text.sequences)
        self._kept = {}
        wanted = sorted({layer for layer in starts if layer > 0}) if self.skips else []
        results = []
        for number, batch in enumerate(self._batches):
            with self._keeping(number, wanted):
                results.append(self._forward(batch, None))
            if number == 0 and wanted:
                with self._skipping(0, wanted[-1]):
                    again = self._forward(batch, None)
                if not np.array_equal(again[0], results[0][0]):
                    self.skips, wanted, self._kept = False, [], {}
            yield self.layers
        self.clean = self._collect(results)

    @property
    def batches(self) -> int:
        """Batches of the prepared text."""
        return len(self._batches)

    def start(self, lesion: Lesion) -> int:
        """Layer that a run of this lesion begins with."""
        return lesion.first if self.skips else 0

    def run(self, lesion: Lesion) -> Iterator[Outcome | int]:
        """Run the prepared text with a lesion: yields the layers computed after each batch, and the outcome last."""
        results = []
        start = self.start(lesion)
        for number, batch in enumerate(self._batches):
            with self._skipping(number, start), self._lesioned(lesion):
                results.append(self._forward(batch, lesion))
            yield self.layers - start
        yield self._collect(results)

    def _collect(self, results: Sequence[tuple[NDArray[np.float64], NDArray[np.float64]]]) -> Outcome:
        """Put the batches' results in the order of the sequences."""
        empty = np.empty(0)
        log_loss, hits = [empty] * self._sequences, [empty] * self._sequences
        for batch, (losses, right) in zip(self._batches, results, strict=True):
            cuts = np.cumsum(batch.counts)[:-1]
            for member, loss, hit in zip(batch.members, np.split(losses, cuts), np.split(right, cuts), strict=True):
                log_loss[member], hits[member] = loss, hit
        return Outcome(log_loss=log_loss, hits=hits)

    def _forward(self, batch: _Batch, lesion: Lesion | None) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Log-loss and hits of a batch's targets, (targets,) each."""
        import torch

        def targets_only(_module: Any, args: tuple[Any, ...]) -> tuple[Any, ...]:
            # (sequences, positions, width) -> (1, targets, width)
            return (args[0].reshape(-1, args[0].shape[-1])[batch.at].unsqueeze(0), *args[1:])

        handle = self._head.register_forward_pre_hook(targets_only)
        try:
            with torch.inference_mode():
                options = {} if self._causal else {"attention_mask": batch.mask}
                logits = self.model(input_ids=batch.ids, use_cache=False, **options).logits
                if logits.shape[:-1] != (1, len(batch.at)):
                    raise InputError(
                        f"{type(self.model).__name__}: its head gave logits of shape {tuple(logits.shape)}, expected "
                        f"(1, {len(batch.at)}, vocabulary)"
                    )
                logits = logits[0].float()
                of_target = logits.gather(1, batch.next_ids[:, None])[:, 0]
                losses = torch.logsumexp(logits, dim=1) - of_target
                hits = logits.argmax(dim=1) == batch.next_ids
        finally:
            handle.remove()
        if not torch.isfinite(losses).all():
            raise InputError(f"the log-loss is not finite with {_describe(lesion)}: choose another value or precision")
        return losses.cpu().numpy().astype(np.float64), hits.cpu().numpy().astype(np.float64)

    @contextlib.contextmanager
    def _lesioned(self, lesion: Lesion) -> Iterator[None]:
        """Set neurons on their way into the output projections."""
        import torch

        calls: Counter[int] = Counter()

        def hook(layer: int) -> Any:
            indices = torch.from_numpy(lesion.neurons[layer]).to(self.device)
            values = torch.from_numpy(lesion.values[layer]).to(self.device)

            def set_neurons(_module: Any, args: tuple[Any, ...]) -> tuple[Any, ...]:
                calls[layer] += 1
                changed = args[0].clone()
                changed[..., indices] = values.to(changed.dtype)
                return (changed, *args[1:])

            return set_neurons

        handles = [self._neurons.output[layer].register_forward_pre_hook(hook(layer)) for layer in lesion.neurons]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
        for layer in lesion.neurons:
            if calls[layer] != 1:
                raise InputError(
                    f"{type(self.model).__name__}: the MLP of layer {layer} was computed {calls[layer]} times in a forward "
                    f"pass, expected once: {self._neurons.pattern} is not where this model keeps its neurons"
                )

    @contextlib.contextmanager
    def _keeping(self, number: int, starts: Sequence[int]) -> Iterator[None]:
        """Keep what the layers below `starts` return for a batch."""

        def hook(start: int) -> Any:
            def keep(_module: Any, _args: Any, output: Any) -> None:
                whole = isinstance(output, tuple)
                self._shapes[start] = len(output) if whole else 0
                self._kept[start, number] = (output[0] if whole else output).clone()

            return keep

        handles = [self._neurons.layers[start - 1].register_forward_hook(hook(start)) for start in starts]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    @contextlib.contextmanager
    def _skipping(self, number: int, start: int) -> Iterator[None]:
        """Let the layers below `start` return at once what the last of them returned in the clean run."""
        if start == 0:
            yield
            return
        kept, length = self._kept[start, number], self._shapes[start]
        output = kept if not length else (kept, *[None] * (length - 1))

        def forward(*_args: Any, **_options: Any) -> Any:
            return output

        skipped = self._neurons.layers[:start]
        for layer in skipped:
            layer.forward = forward
        try:
            yield
        finally:
            for layer in skipped:
                del layer.forward


def _batches(text: LesionText, batch_tokens: int, device: Any) -> list[_Batch]:
    import torch

    batches = []
    for members in plan_batches([len(sequence) for sequence in text.sequences], batch_tokens=batch_tokens):
        longest = max(len(text.sequences[member]) for member in members)
        ids = np.zeros((len(members), longest), dtype=np.int64)
        mask = np.zeros_like(ids)
        for line, member in enumerate(members):
            ids[line, : len(text.sequences[member])] = text.sequences[member]
            mask[line, : len(text.sequences[member])] = 1
        at = np.concatenate([line * longest + text.where[member] for line, member in enumerate(members)])
        next_ids = np.concatenate([text.next_ids[member] for member in members])
        batches.append(
            _Batch(
                members=members,
                ids=torch.from_numpy(ids).to(device),
                mask=torch.from_numpy(mask).to(device),
                at=torch.from_numpy(at).to(device),
                next_ids=torch.from_numpy(next_ids).to(device),
                counts=[len(text.where[member]) for member in members],
            )
        )
    return batches


def _describe(lesion: Lesion | None) -> str:
    if lesion is None:
        return "no lesion"
    return f"{sum(map(len, lesion.neurons.values())):,} neurons lesioned from layer {lesion.first} on"
