"""What runs inside vLLM's workers: hooks that write every layer's neurons into the block. A worker extension of vLLM."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neuronlake.extractor.drain import make_drain
from neuronlake.store.buffer import BlockBuffer
from neuronlake.store.errors import ActivationError, InputError, NeuronlakeError
from neuronlake.store.spec import LakeSpec

Place = tuple[str, int, str, str]
"""Site, layer, the end of a module's name, and which side of the module it is: ``input`` or ``output``."""


class NeuronlakeWorker:
    """Methods that vLLM adds to its workers; the engine calls them by name, on every rank.

    Names are prefixed because they join the worker's own. What goes wrong is returned, not raised: an exception would end
    the worker, and its message would be lost in a traceback of vLLM's.
    """

    def neuronlake_install(self, places: Sequence[Place]) -> dict[str, Any]:
        """Hook the places; return what may move the last bits of the values, or ``error``."""
        try:
            self._neuronlake = BlockCapture(self, places)
        except NeuronlakeError as error:
            return {"error": str(error)}
        return {"error": None, **self._neuronlake.facts()}

    def neuronlake_begin(
        self, memory: str, spec: Mapping[str, Any], ids: bytes, starts: bytes, prefix: str
    ) -> dict[str, Any]:
        """Take what is computed from now on as the block of these sequences."""
        try:
            self._neuronlake.begin(memory, LakeSpec.from_dict(spec, Path("the lake")), ids, starts, prefix)
        except NeuronlakeError as error:
            return {"error": str(error)}
        return {"error": None}

    def neuronlake_finish(self) -> dict[str, Any]:
        """End the block; return what went wrong in it as ``error``, and the ``row`` if it concerns one."""
        return self._neuronlake.finish()


@dataclass(frozen=True, kw_only=True)
class Step:
    """Which rows of a step's tensors are wanted, and where in the block they go."""

    tokens: int
    """Rows that the step computes; tensors may have more, as padding."""
    source: NDArray[np.int64]
    target: NDArray[np.int64]


class BlockCapture:
    """One rank's part of a block: its slice of every layer's units, for whatever tokens vLLM schedules when."""

    def __init__(self, worker: Any, places: Sequence[Place]):
        from vllm.distributed import get_tensor_model_parallel_rank, get_tensor_model_parallel_world_size

        self._runner = worker.model_runner
        self._rank, self._ranks = get_tensor_model_parallel_rank(), get_tensor_model_parallel_world_size()
        _check_runner(self._runner)
        self._drain = make_drain(self._runner.device)
        self._buffers: dict[str, BlockBuffer] = {}
        self._buffer: BlockBuffer | None = None
        self._failure: NeuronlakeError | None = None
        self._context: object = None
        self._step: Step | None = None
        model = self._runner.get_model()
        for site, layer, name, side in places:
            module = find_module(model, name, side)
            if side == "input":
                module.register_forward_pre_hook(self._input_hook(site, layer))
            else:
                module.register_forward_hook(self._output_hook(site, layer))

    def facts(self) -> dict[str, Any]:
        """Return the attention backends, threads and device in use."""
        import torch

        attention = {group.backend.get_name() for groups in self._runner.attn_groups for group in groups}
        device = self._runner.device
        return {
            "attention": "+".join(sorted(attention)),
            "threads": torch.get_num_threads(),
            "device": device.type if device.type == "cpu" else torch.cuda.get_device_name(device),
        }

    def begin(self, memory: str, spec: LakeSpec, ids: bytes, starts: bytes, prefix: str) -> None:
        """Start a block."""
        known = self._buffers.get(memory)
        if known is None or not known.shares(memory):
            self._buffers[memory] = known = BlockBuffer(spec, ranks=self._ranks, memory=memory)
        self._buffer = known
        self._ids = np.frombuffer(ids, np.int32)
        self._starts = np.frombuffer(starts, np.int64)
        self._prefix = prefix
        self._done = np.zeros(len(self._starts) - 1, np.int64)  # tokens of each sequence computed so far
        self._failure = None

    def finish(self) -> dict[str, Any]:
        """End the block."""
        self._keep_failure(self._drain.finish)
        failure, self._failure = self._failure, None
        self._buffer = self._context = self._step = None
        row = failure.row if isinstance(failure, ActivationError) else None
        return {"error": None if failure is None else str(failure), "row": row}

    def _input_hook(self, site: str, layer: int) -> Any:
        def hook(_module: Any, inputs: tuple[Any, ...]) -> None:
            self._receive(site, layer, inputs[0])

        return hook

    def _output_hook(self, site: str, layer: int) -> Any:
        def hook(_module: Any, _inputs: tuple[Any, ...], output: Any) -> None:
            # vLLM's linear layers return (output, bias left to be added)
            values, bias = output if isinstance(output, tuple) else (output, None)
            self._receive(site, layer, values if bias is None else None)

        return hook

    def _receive(self, site: str, layer: int, values: Any) -> None:
        if self._buffer is not None and self._failure is None:
            self._keep_failure(lambda: self._put(site, layer, values))

    def _keep_failure(self, work: Callable[[], None]) -> None:
        """Do something; what goes wrong is kept for `finish`, and nothing more is written."""
        try:
            work()
        except NeuronlakeError as error:
            self._failure = self._failure or error

    def _put(self, site: str, layer: int, values: Any) -> None:
        import torch

        buffer, step = self._buffer, self._current_step()
        if buffer is None or step is None:
            return
        if not isinstance(values, torch.Tensor) or not values.is_floating_point():
            raise InputError(
                f"layer {layer}, site {site}: got {type(values).__name__}, expected a tensor of floating-point numbers: "
                "vLLM quantises or fuses this model's activations; use --backend transformers"
            )
        if values.dim() != 2 or values.shape[0] < step.tokens:
            raise InputError(
                f"layer {layer}, site {site}: got activations of shape {tuple(values.shape)}, expected ({step.tokens} "
                "tokens, neurons): this model's MLP does not see every token of a step; use --backend transformers"
            )
        first, last = buffer.columns(site, self._rank)
        if values.shape[1] == buffer.spec.width(site):  # the same on every rank: each writes its share of it
            values = values[:, first:last]
        self._drain.put(buffer, site, layer, values, step.source, step.target, rank=self._rank)

    def _current_step(self) -> Step | None:
        """Return the step that is being computed; None when it is none of ours, as in vLLM's own dry runs."""
        from vllm.forward_context import get_forward_context, is_forward_context_available

        context = get_forward_context() if is_forward_context_available() else None
        if context is None or context.attn_metadata is None:
            return None
        if context is not self._context:  # kept, so that its place in memory is not given to the next one
            self._context, self._step = context, self._read_step(context.attn_metadata)
        return self._step

    def _read_step(self, metadata: Any) -> Step:
        if isinstance(metadata, list):
            raise InputError("vLLM runs this step in micro-batches, expected one batch: turn dual-batch overlap off")
        batch, bounds = self._runner.input_batch, self._runner.query_start_loc.np
        ids, firsts = self._runner.input_ids.cpu.numpy(), batch.num_computed_tokens_cpu
        sources, targets = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
        for index in range(batch.num_reqs):
            begin, first = int(bounds[index]), int(firsts[index])
            sequence = self._sequence(batch.req_ids[index])
            start = int(self._starts[sequence])
            # what vLLM computes beyond the prompt is none of ours
            count = min(int(bounds[index + 1]) - begin, int(self._starts[sequence + 1]) - start - first)
            if count <= 0:
                continue
            self._advance(sequence, first, count)
            target = np.arange(start + first, start + first + count)
            if not np.array_equal(ids[begin : begin + count], self._ids[target]):
                raise InputError(
                    f"vLLM computes other tokens than the plan's in sequence {sequence} of the block, positions {first} to "
                    f"{first + count - 1}: got {ids[begin : begin + count][:8]}…, expected {self._ids[target][:8]}…"
                )
            sources.append(np.arange(begin, begin + count))
            targets.append(target)
        return Step(tokens=int(bounds[batch.num_reqs]), source=np.concatenate(sources), target=np.concatenate(targets))

    def _sequence(self, request: str) -> int:
        """Return the number of a request's sequence in the block; vLLM appends a random part to the id that it was given."""
        prefix, _, number = request.rpartition("-")[0].partition("/")
        if prefix != self._prefix or not number.isdecimal() or int(number) >= len(self._done):
            raise InputError(f"vLLM computes a request {request!r}, expected those of block {self._prefix!r} only")
        return int(number)

    def _advance(self, sequence: int, first: int, count: int) -> None:
        """Note that `count` tokens from position `first` on are computed now."""
        done = int(self._done[sequence])
        if first != done:
            raise InputError(
                f"vLLM computes position {first} of a sequence of which {done} tokens were computed: it took tokens from a "
                "cache, or computes some again; turn prefix caching off and give it more memory"
            )
        self._done[sequence] = first + count


def find_module(model: Any, name: str, side: str) -> Any:
    """Return vLLM's module whose name is, or ends in, that of transformers' model.

    Raises
    ------
    InputError
        When it is not there, is split over ranks otherwise than as a row-parallel layer, or is quantised.
    """
    from vllm.model_executor.layers.linear import RowParallelLinear, UnquantizedLinearMethod

    found = [module for full, module in model.named_modules() if full == name or full.endswith(f".{name}")]
    if len(found) != 1 or not isinstance(found[0], RowParallelLinear):
        kind = f"{len(found)} of them" if len(found) != 1 else type(found[0]).__name__
        raise InputError(
            f"vLLM's {type(model).__name__} has no linear layer {name} as transformers' model has (got {kind}), as with "
            "mixtures of experts: use --backend transformers"
        )
    if not isinstance(found[0].quant_method, UnquantizedLinearMethod):
        raise InputError(f"{name} is quantised ({type(found[0].quant_method).__name__}): use a checkpoint that is not")
    if side == "output" and found[0].tp_size > 1 and not found[0].reduce_results:
        raise InputError(f"{name} leaves its sum over ranks to a later layer: use --backend transformers, or one rank")
    return found[0]


def _check_runner(runner: Any) -> None:
    """Refuse a model runner whose batch we could not read."""
    batch = getattr(runner, "input_batch", None)
    lacking = [
        name
        for name, value in (
            ("query_start_loc.np", getattr(getattr(runner, "query_start_loc", None), "np", None)),
            ("input_ids.cpu", getattr(getattr(runner, "input_ids", None), "cpu", None)),
            ("input_batch.req_ids", getattr(batch, "req_ids", None)),
            ("input_batch.num_reqs", getattr(batch, "num_reqs", None)),
            ("input_batch.num_computed_tokens_cpu", getattr(batch, "num_computed_tokens_cpu", None)),
            ("attn_groups", getattr(runner, "attn_groups", None)),
        )
        if value is None
    ]
    if lacking:
        raise InputError(
            f"vLLM's {type(runner).__module__}.{type(runner).__name__} has no {', '.join(lacking)}: expected the V1 model "
            "runner of a supported version, with VLLM_USE_V2_MODEL_RUNNER=0"
        )
