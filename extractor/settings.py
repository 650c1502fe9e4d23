"""What an extraction is asked, what it tells while it runs, and what it reports."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from neuronlake.store.encodings import DEFAULT_ENCODING, get_encoding
from neuronlake.store.errors import InputError
from neuronlake.store.objects import LakePath
from neuronlake.store.writer import Tap

# Measured on two AVX2 cores with SmolLM2: 512 tokens keep a layer's activations in cache; a GPU wants full batches.
BATCH_TOKENS = {"cpu": 512, "cuda": 16384}
BACKENDS = ("transformers", "vllm")


@dataclass(frozen=True, kw_only=True)
class ExtractSettings:
    """How a corpus becomes a lake. Only what says how and where it is computed may differ between runs on one lake."""

    encoding: str = DEFAULT_ENCODING
    context: str = "sentence"
    on_long: str = "error"
    """What to do with a sequence longer than `max_tokens`: ``error``, ``truncate`` or ``split``."""
    max_tokens: int | None = None
    """Longest sequence; the model's context by default, and never more than a block."""
    special_tokens: bool = True
    """Let the tokenizer add its special tokens (beginning of sequence …), as the model saw them in training."""
    block_rows: int | None = None
    """Rows of a block, a power of two; by default what fits in 2 GiB of buffer, at most 8,192."""
    device: str = "auto"
    dtype: str = "auto"
    batch_tokens: int | None = None
    """Largest padded forward pass; 512 on a CPU, 16,384 on a GPU by default."""
    blocks: tuple[int, int] | None = None
    """Extract only blocks [first, last)."""
    shard: tuple[int, int] | None = None
    """(k, n) with 0 <= k < n: extract only blocks k, k + n, k + 2n, …, as the k-th of n runs (an array of jobs). Not a range
    of blocks: whatever n is, shards differ by one block at most, and a lake half done is a sample of the whole corpus."""
    wait_s: float = 3600
    """Longest wait for another process that is planning the same lake, or completing its index."""
    trust_remote_code: bool = False
    sites: tuple[str, ...] | None = None
    """What to keep, see `neuronlake.extractor.sites.SITES`; by default the neurons, and the routing to experts."""
    module: str | None = None
    """Name of the MLPs' output projections with ``{layer}``, for an architecture that is not known."""
    backend: str = "transformers"
    """Engine of the forward passes: ``transformers`` or ``vllm``."""
    tensor_parallel: int = 1
    """GPUs (or sets of cores) over which vLLM splits every layer."""
    plain_kernels: bool = False
    """On a CPU, compute as transformers alone does, to the bit; by default linear layers are faster, see `packed_linear`."""

    def __post_init__(self) -> None:
        get_encoding(self.encoding)
        if self.backend not in BACKENDS:
            raise InputError(f"unknown backend {self.backend!r}: known are {', '.join(BACKENDS)}")
        if self.tensor_parallel < 1 or (self.tensor_parallel > 1 and self.backend != "vllm"):
            raise InputError(f"tensor_parallel must be 1, or more with backend vllm, got {self.tensor_parallel}")
        if self.plain_kernels and self.backend != "transformers":
            raise InputError(f"plain_kernels is for backend transformers, got {self.backend}")
        if self.batch_tokens is not None and self.batch_tokens < 1:
            raise InputError(f"batch_tokens must be at least 1, got {self.batch_tokens}")
        if self.blocks is not None and not 0 <= self.blocks[0] < self.blocks[1]:
            raise InputError(f"blocks must be FIRST:LAST with 0 <= FIRST < LAST, got {self.blocks[0]}:{self.blocks[1]}")
        if self.shard is not None and not 0 <= self.shard[0] < self.shard[1]:
            raise InputError(f"shard must be K/N with 0 <= K < N, counted from 0, got {self.shard[0]}/{self.shard[1]}")
        if self.shard is not None and self.blocks is not None:
            raise InputError("blocks and shard both choose blocks: give one of them")
        if not self.wait_s >= 0:
            raise InputError(f"wait_s must be at least 0, got {self.wait_s}")


@dataclass(kw_only=True)
class Observer:
    """Callbacks of a run; replace those you need."""

    say: Callable[[str], None] = lambda message: None
    """One line before each step that takes long."""
    planned: Callable[[int], None] = lambda sentences: None
    """During planning, after each sequence: its sentences."""
    start: Callable[[int, int], None] = lambda total_tokens, done_tokens: None
    """Before the first forward pass: tokens of the whole plan, tokens already committed."""
    advance: Callable[[int, int], None] = lambda tokens, bytes_written: None
    """After each batch: its tokens, and all bytes written so far."""
    tap: Callable[[LakePath], Tap | None] = lambda lake: None
    """Once the plan is published, if there are blocks to extract: may return a function that gets every stored chunk."""


@dataclass(frozen=True, kw_only=True)
class ExtractReport:
    """What a run did."""

    lake: LakePath
    blocks: int
    """Blocks of the plan."""
    extracted: tuple[int, ...]
    """Blocks committed by this run."""
    committed: int
    """Blocks committed now."""
    unit: str = "token"
    """What a row is: ``token`` or, of speech, ``frame``."""
    counts: dict[str, int] = field(default_factory=dict)
    """Of the plan: documents, sentences, words, tokens, multi, uncovered, truncated_sequences …"""
    overtaken: tuple[int, ...] = ()
    """Blocks that another process committed first, with other last bits: theirs stayed."""

    def as_dict(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {
            **self.__dict__,
            "lake": str(self.lake),
            "extracted": list(self.extracted),
            "overtaken": list(self.overtaken),
        }
