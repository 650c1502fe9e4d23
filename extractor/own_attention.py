"""Attention in which every position answers for itself: of the earlier ones it sees what they were in a clean forward pass.

What the neurons at position t change is then only what happens at t, so that the positions of a sequence can be changed all
at once and each still has the effect that it would have alone.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from neuronlake.store.errors import InputError

if TYPE_CHECKING:
    import torch

NAME = "neuronlake_own_position"
# What models pass on to every attention function, and that does not decide what it computes.
_HARMLESS = frozenset({"position_ids", "cache_position", "token_type_ids"})


@dataclass(kw_only=True)
class CleanAttention:
    """Keys and values of a clean forward pass, of every attention module."""

    positions: "torch.Tensor"
    """int64 (sequences, chosen): the positions that will answer for themselves."""
    recording: bool = True
    """Whether this is the clean pass. Afterwards only the chosen positions are computed, as sequences of their own."""
    live: bool = False
    """Whether gradients are taken through the clean pass itself: then nothing is kept, and they stay at their position."""
    seen: dict[Any, "tuple[torch.Tensor, torch.Tensor, torch.Tensor]"] = field(default_factory=dict)
    """Module → keys (sequences, heads, positions, width), values, and additive mask (sequences, 1 or heads, chosen,
    positions), which hides a position from itself."""

    def select(self, rows: "torch.Tensor", first: int) -> "CleanAttention":
        """Only some of the sequences, in that order, of the modules from the `first` on."""
        seen = {
            module: tuple(part if len(part) == 1 < len(self.positions) else part[rows] for part in parts)
            for module, parts in list(self.seen.items())[first:]
        }
        return CleanAttention(positions=self.positions[rows], recording=False, seen=seen)


_CURRENT: ContextVar[CleanAttention | None] = ContextVar("_CURRENT", default=None)


def register() -> None:
    """Make the attention function known to transformers, under `NAME`."""
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register(NAME, own_attention)
    AttentionMaskInterface.register(NAME, _mask)


@contextmanager
def attending(state: CleanAttention) -> Iterator[None]:
    """Let forward passes inside use and fill that state."""
    token = _CURRENT.set(state)
    try:
        yield
    finally:
        _CURRENT.reset(token)


def own_attention(
    module: Any,
    query: "torch.Tensor",
    key: "torch.Tensor",
    value: "torch.Tensor",
    attention_mask: "torch.Tensor | None",
    scaling: float | None = None,
    dropout: float = 0.0,  # noqa: ARG001 - of training
    softcap: float | None = None,
    **others: Any,
) -> "tuple[torch.Tensor, None]":
    """Attention function of transformers' `AttentionInterface`.

    Parameters
    ----------
    query : (sequences, heads, queries, width)
        Heads that share a key head are neighbours.
    key, value : (sequences, key heads, queries, width)

    Returns
    -------
    (sequences, queries, heads, width) and no weights

    Raises
    ------
    InputError
        When the model's attention has a part that is not known here.
    """
    import torch

    state = _CURRENT.get()
    if state is None:
        raise RuntimeError("own_attention runs inside `attending` only")
    for name, other in others.items():
        if isinstance(other, torch.Tensor) and name not in _HARMLESS:
            raise InputError(f"{type(module).__name__}: its attention takes {name!r}, which attribution does not know")
    if state.live:
        return _live(query, key, value, attention_mask, scaling, softcap), None
    if state.recording:
        state.seen[module] = key, value, _rows(attention_mask, state.positions, key)
        scores = _capped(_dot(query, key) * _scale(query, scaling), softcap)
        causal = attention_mask if attention_mask is not None else _causal(query, key)
        return _mix(_weights(scores + causal, query), value), None
    keys, values, mask = state.seen[module]
    own = (query * _spread(key, query)).sum(-1, keepdim=True)
    scores = _capped(torch.cat([_dot(query, keys), own], dim=-1) * _scale(query, scaling), softcap)
    scores = scores + torch.nn.functional.pad(mask, (0, 1))
    weights = _weights(scores, query)  # (sequences, heads, queries, positions + 1), the last one its own
    mixed = _mix(weights[..., :-1], values) + (weights[..., -1:] * _spread(value, query)).transpose(1, 2)
    return mixed, None


def _live(
    query: "torch.Tensor",
    key: "torch.Tensor",
    value: "torch.Tensor",
    attention_mask: "torch.Tensor | None",
    scaling: float | None,
    softcap: float | None,
) -> "torch.Tensor":
    """Attention as it is, whose gradients reach keys and values of a query's own position only."""
    import torch

    fixed_key, fixed_value = key.detach(), value.detach()
    own = (query * _spread(key - fixed_key, query)).sum(-1)  # zero, but for its gradient
    scores = _capped((_dot(query, fixed_key) + torch.diag_embed(own)) * _scale(query, scaling), softcap)
    causal = attention_mask if attention_mask is not None else _causal(query, key)
    weights = _weights(scores + causal, query)
    at_itself = weights.diagonal(dim1=-2, dim2=-1)[..., None] * _spread(value - fixed_value, query)
    return _mix(weights, fixed_value) + at_itself.transpose(1, 2)


def _mask(*arguments: Any, **named: Any) -> "torch.Tensor | None":
    """Mask function of transformers' `AttentionMaskInterface`: the eager one in the clean pass, none afterwards."""
    from transformers.masking_utils import eager_mask

    state = _CURRENT.get()
    return eager_mask(*arguments, **named) if state is not None and state.recording else None


def _rows(mask: "torch.Tensor | None", positions: "torch.Tensor", key: "torch.Tensor") -> "torch.Tensor":
    """What the chosen positions see of the others: additive (sequences, 1 or heads, chosen, positions)."""
    import torch

    if mask is None:
        mask = _causal(key, key)
    mask = mask.expand(len(positions), -1, -1, -1)
    index = positions[:, None, :, None].expand(-1, mask.shape[1], -1, mask.shape[-1])
    rows = mask.gather(2, index)
    others = torch.arange(mask.shape[-1], device=positions.device) < positions[..., None]  # (sequences, chosen, positions)
    return rows.masked_fill(~others[:, None], torch.finfo(rows.dtype).min)


def _causal(query: "torch.Tensor", key: "torch.Tensor") -> "torch.Tensor":
    import torch

    hidden = torch.ones(query.shape[2], key.shape[2], dtype=torch.bool, device=query.device).triu(1)
    return torch.zeros(hidden.shape, dtype=query.dtype, device=query.device).masked_fill(
        hidden, torch.finfo(query.dtype).min
    )[None, None]


def _scale(query: "torch.Tensor", scaling: float | None) -> float:
    return float(query.shape[-1] ** -0.5 if scaling is None else scaling)


def _capped(scores: "torch.Tensor", softcap: float | None) -> "torch.Tensor":
    """Gemma 2's soft cap."""
    return scores if softcap is None else (scores / softcap).tanh() * softcap


def _weights(scores: "torch.Tensor", query: "torch.Tensor") -> "torch.Tensor":
    import torch

    return scores.softmax(dim=-1, dtype=torch.float32).to(query.dtype)


def _spread(key: "torch.Tensor", query: "torch.Tensor") -> "torch.Tensor":
    """Repeat key heads for the query heads that share them."""
    groups = query.shape[1] // key.shape[1]
    return key if groups == 1 else key.repeat_interleave(groups, dim=1)


def _dot(query: "torch.Tensor", key: "torch.Tensor") -> "torch.Tensor":
    """q·k of every query and key, (sequences, heads, queries, positions); shared key heads are not copied."""
    sequences, heads, queries, width = query.shape
    shared = query.reshape(sequences, key.shape[1], -1, width)
    return (shared @ key.transpose(2, 3)).view(sequences, heads, queries, -1)


def _mix(weights: "torch.Tensor", value: "torch.Tensor") -> "torch.Tensor":
    """Values weighted, (sequences, queries, heads, width)."""
    sequences, heads, queries, positions = weights.shape
    shared = weights.reshape(sequences, value.shape[1], -1, positions)
    return (shared @ value).view(sequences, heads, queries, -1).transpose(1, 2).contiguous()
