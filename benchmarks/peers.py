"""Extraction side by side with other tools: the same weights, sentences and threads, each in its own environment.

Every tool runs a script of `benchmarks/peer_scripts` in a process of its own, which says there why its settings are the
fastest documented ones. Weights are float32; what is stored is float16 except where a tool has no choice; all 30 layers
except SAELens (one a run). Whoever takes token ids gets ours, in batches of similar length with ours as the limit (512
positions, padding included). A rate counts from the first forward pass, with the model loaded, to everything closed and
synced. Since the speed of a shared machine drifts, the tools come in random order, and the bare forward passes of an even
sample of the same batches run before and after each: ratios are to the mean of these two neighbours. What a tool stored of a
few sequences is compared with a forward pass of each of them alone before its row counts. A tool that cannot be installed or
fails is in the table with its error. Threads are those of the environment (OMP_NUM_THREADS; all cores without it), the same
for all.
"""

import gzip
import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import EWT_DEV, ROOT, corpora, keep, scratch, smollm2

SENTENCES = 1000
"""Of EWT dev; about 15,000 tokens, two blocks of a lake."""
BATCH_TOKENS = 512
BARE_TOKENS = 6000
"""Of each run of the bare forward passes."""
TIMEOUT_S = 300
"""Of one tool: three times what the slowest takes, so that none costs the others their time."""
INSTALL_S = 600
"""Of one environment."""
SCRIPTS = Path(__file__).parent / "peer_scripts"
ENVIRONMENTS = ROOT / "build" / "peers"
VLLM_PYTHON = ROOT / ".venv-vllm" / "bin" / "python"
CHECKED = 12
"""Sequences compared with the reference."""
# Of the relative error (`Reference.compare`): float16 rounds by 2**-11 of a value at most; int8a aims at 0.04 of each neuron
# of a whole block. A layer in the wrong place, alone, makes 0.2.
TOLERANCE = 1e-3
INT8A_TOLERANCE = 0.08


@dataclass(frozen=True, kw_only=True)
class Tool:
    """One row of the table."""

    name: str
    script: str
    environment: str | None = None
    """Name of its requirements and its folder; None: this one, or that of `python`."""
    python: Path | None = None
    """Interpreter of an environment that the Makefile makes."""
    options: dict[str, Any] = field(default_factory=dict)
    tolerance: float = TOLERANCE
    runs: int = 1
    """How often it would have to run to keep all layers."""
    peer: bool = False
    """Whether it is another tool that keeps all layers of neurons in one run."""
    note: str = ""


BARE = Tool(name="bare forward", script="bare.py")
TOOLS = (
    Tool(name="hooks + memory map", script="hooks.py", note="the floor of effort"),
    Tool(
        name="neuronlake, int8a",
        script="lake.py",
        options={"encoding": "int8a", "backend": "transformers"},
        tolerance=INT8A_TOLERANCE,
        note="the default; indexed and committed",
    ),
    Tool(
        name="neuronlake, float16",
        script="lake.py",
        options={"encoding": "float16", "backend": "transformers"},
        note="indexed and committed",
    ),
    Tool(
        name="neuronlake, vLLM, int8a",
        script="lake.py",
        python=VLLM_PYTHON,
        options={"encoding": "int8a", "backend": "vllm"},
        tolerance=INT8A_TOLERANCE,
        note="indexed and committed",
    ),
    Tool(
        name="TransformerLens",
        script="with_transformer_lens.py",
        environment="transformer_lens",
        peer=True,
        note="run_with_cache + np.save",
    ),
    Tool(name="nnsight", script="with_nnsight.py", environment="nnsight", peer=True, note="trace + np.save"),
    Tool(
        name="SAELens, one layer",
        script="with_sae_lens.py",
        environment="sae_lens",
        runs=30,
        note="CacheActivationsRunner, the middle layer",
    ),
    Tool(
        name="NeuroX, residual stream",
        script="with_neurox.py",
        environment="neurox",
        note="extract_representations: 576 values of each word and layer, float32",
    ),
)


class NotRunError(Exception):
    """Why a tool has no figures: one line."""


def run(
    sentences: int = SENTENCES,
    tools: Sequence[str] | None = None,
    bare_tokens: int = BARE_TOKENS,
    *,
    block_rows: int | None = None,
    make_environments: bool = True,
    bare_between: bool = True,
    seed: int = 0,
) -> dict[str, Any]:
    """Print the table of all tools, or of those named; interrupted, that of those measured so far.

    Parameters
    ----------
    sentences
        Of EWT dev.
    bare_tokens
        Of each run of the bare forward passes.
    block_rows
        Of the lakes, by default as every lake's.
    make_environments
        Make those that are missing (some gigabytes, some minutes), or leave their tools out of the run.
    bare_between
        Run the bare forward passes between any two tools, or only first and last, for all ratios.
    seed
        Of the order.
    """
    chosen = [tool for tool in TOOLS if tools is None or tool.name in tools]
    random.Random(seed).shuffle(chosen)
    bare: list[dict[str, Any]] = []
    left_out = {tool.name: {"not_run": "left out of this form", "note": tool.note} for tool in TOOLS}
    rows = left_out | {tool.name: {"not_run": "interrupted", "note": tool.note} for tool in chosen}
    try:
        pythons = {tool.name: _try(_python, tool, make_environments) for tool in chosen}
        with scratch() as folder:
            work = Work.make(Path(folder), sentences, bare_tokens, block_rows)
            bare.append(work.measure(BARE, sys.executable))
            for tool in chosen:
                found = python = pythons[tool.name]
                if isinstance(python, str):
                    found = _try(work.measure, tool, python)
                    if bare_between:
                        bare.append(work.measure(BARE, sys.executable))
                if isinstance(found, NotRunError):
                    found = {"not_run": str(found)}
                else:
                    found["of_bare"] = _of(found, bare[-2:])
                rows[tool.name] = {**found, "note": tool.note}
                print(f"{tool.name}: {_line(found)}", file=sys.stderr, flush=True)
            if not bare_between:
                bare.append(work.measure(BARE, sys.executable))
                for found in rows.values():
                    if "of_bare" in found:
                        found["of_bare"] = _of(found, bare)
    except KeyboardInterrupt:
        if bare:
            print(table(bare, rows))
        raise
    order = [tool.name for tool in chosen]
    result = {"sentences": sentences, "tokens": work.tokens, "order": order, "bare": bare, "tools": rows}
    print(table(bare, rows))
    result["against_best_peer"] = against_best_peer(rows)
    keep("peers", result)
    return result


def _try(call: Any, *arguments: Any) -> Any:
    try:
        return call(*arguments)
    except NotRunError as error:
        return error


# ---- environments -----------------------------------------------------------------------------------------------------


def _python(tool: Tool, make: bool = True) -> str:
    """Return the tool's interpreter, its environment made if need be and if that is wanted."""
    if tool.python is None and tool.environment is None:
        return sys.executable
    environment = dict(os.environ)
    if tool.python is not None:
        python, stamp = tool.python, tool.python.parent.parent / ".installed"
        ready = stamp.is_file()
        makes = [["make", "--no-print-directory", f"PYTHON={sys.executable}", str(stamp.relative_to(ROOT))]]
    else:
        requirements = SCRIPTS / f"requirements-{tool.environment}.txt"
        folder = ENVIRONMENTS / str(tool.environment)
        python, stamp = folder / "bin" / "python", folder / ".installed"
        wanted = requirements.read_text()
        ready = stamp.is_file() and stamp.read_text() == wanted
        # without dependencies: the lists are complete, and NeuroX' metadata asks for versions of 2021
        pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
        makes = [[sys.executable, "-m", "venv", "--clear", str(folder)], [*pip, "-r", str(requirements)]]
    if not ready:
        if not make:
            raise NotRunError("its environment is not made yet; the full form makes it")
        print(f"making the environment of {tool.name}", file=sys.stderr, flush=True)
        for command in makes:
            _call(command, environment, INSTALL_S)
        if tool.python is None:
            stamp.write_text(wanted)
    return str(python)


def _call(command: list[str], environment: dict[str, str], limit_s: float = TIMEOUT_S) -> None:
    try:
        done = subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=limit_s
        )
    except subprocess.TimeoutExpired:
        raise NotRunError(f"not done after {limit_s:.0f} s") from None
    if done.returncode:
        lines = [line.strip() for line in (done.stderr or done.stdout).splitlines() if line.strip()]
        raise NotRunError(lines[-1] if lines else f"exit status {done.returncode}")


# ---- measuring --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Work:
    """What all tools are given."""

    folder: Path
    model: Path
    tokens: int
    every: int
    """Of the bare runs: which batches."""
    options: dict[str, Any]
    reference: "Reference"

    @classmethod
    def make(cls, folder: Path, sentences: int, bare_tokens: int, block_rows: int | None) -> "Work":
        """Plan the sentences as an extraction would, and write what the scripts read."""
        from neuronlake.extractor import ConlluCorpus, ExtractSettings, resolve_model
        from neuronlake.extractor.batching import plan_batches
        from neuronlake.extractor.planning import prepare

        source = resolve_model(smollm2())
        path = folder / "sentences.conllu"
        with gzip.open(corpora() / EWT_DEV, "rb") as packed, path.open("wb") as file:
            shutil.copyfileobj(packed, file)
        corpus = ConlluCorpus(paths=(path,), limit_sentences=sentences)
        prepared = prepare(corpus, source, ExtractSettings())
        sequences = list(prepared.reader.sequences(corpus, prepared.sequences))
        lengths = [len(sequence.ids) for sequence in sequences]
        batches = plan_batches(lengths, batch_tokens=BATCH_TOKENS)
        np.savez(
            folder / "tokens.npz",
            ids=np.concatenate([sequence.ids for sequence in sequences]),
            starts=np.cumsum([0, *lengths]),
            members=np.concatenate(batches),
            batch_starts=np.cumsum([0, *map(len, batches)]),
            checked=np.unique(np.linspace(0, len(sequences) - 1, CHECKED).astype(np.int64)),
        )
        # a sentence a line; NeuroX takes words between single spaces
        text = "\n".join(" ".join(sequence.sentences[0].text.split()) for sequence in sequences)
        (folder / "sentences.txt").write_text(text + "\n")
        options = {
            "conllu": str(path),
            "limit": sentences,
            "sentences": str(folder / "sentences.txt"),
            "block_rows": block_rows,
        }
        tokens = sum(lengths)
        return cls(
            folder=folder,
            model=source.folder,
            tokens=tokens,
            every=max(1, tokens // bare_tokens),
            options=options,
            reference=Reference(source.folder),
        )

    def measure(self, tool: Tool, python: str) -> dict[str, Any]:
        """Run a tool's script, compare what it stored, and return its figures."""
        out, report, job = self.folder / "out", self.folder / "report.json", self.folder / "job.json"
        for left in (out, self.folder / "warm.lake"):
            shutil.rmtree(left, ignore_errors=True)
        for left in (report, report.with_suffix(".npz")):
            left.unlink(missing_ok=True)
        out.mkdir()
        options = {**self.options, **tool.options, "every": self.every if tool is BARE else 1}
        given = {"model": self.model, "tokens": self.folder / "tokens.npz", "out": out, "report": report, "options": options}
        job.write_text(json.dumps(given, default=str))
        # whoever asked a hub or a tracker would wait for a network that is not there, or measure it
        offline = {
            "HF_HUB_OFFLINE": "1",
            "HF_DATASETS_OFFLINE": "1",
            "WANDB_MODE": "disabled",
            "TOKENIZERS_PARALLELISM": "false",
        }
        environment = {**os.environ, **offline}
        if tool.environment is not None:
            environment.pop("PYTHONPATH", None)
        _call([python, str(SCRIPTS / tool.script), str(job)], environment)
        found: dict[str, Any] = json.loads(report.read_text())
        if tool is not BARE:
            config = self.reference.config
            found.setdefault("values", found["tokens"] * config.num_hidden_layers * config.intermediate_size)
            found["difference"] = self.reference.compare(report.with_suffix(".npz"), found)
            if not found["difference"]["relative"] <= tool.tolerance:
                raise NotRunError(f"its values differ from the reference: {found['difference']}")
        shutil.rmtree(out)
        return found


class Reference:
    """An independent forward pass of single sequences."""

    def __init__(self, folder: Path):
        import torch
        from transformers import AutoModel

        self._model = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
        self.config = self._model.config
        self._kept: list[Any] = []
        for block in self._model.layers:
            block.mlp.down_proj.register_forward_pre_hook(lambda _, inputs: self._kept.append(inputs[0][0].numpy()))

    def compare(self, path: Path, found: dict[str, Any]) -> dict[str, float]:
        """Compare stored values.

        Returns
        -------
        dict
            ``largest`` absolute difference; ``relative`` error, the root mean square over layers of ‖stored − true‖ / ‖true‖
            of all compared sequences; number of ``values``.
        """
        largest, values, apart, true = 0.0, 0, np.zeros(1), np.zeros(1)
        with np.load(path) as file:
            for number in range(len(file.files) // 3):
                expected = self._forward(file[f"ids{number}"], residual="site" in found)[:, file[f"positions{number}"]]
                expected = expected[found.get("layers", slice(None))]
                stored = file[f"values{number}"]
                if stored.shape != expected.shape or not stored.size:
                    raise NotRunError(f"it stored values of shape {stored.shape}, expected {expected.shape}")
                difference = (stored - expected).astype(np.float64)
                largest = max(largest, float(np.abs(difference).max()))
                apart = apart + (difference**2).sum(axis=(1, 2))
                true = true + (expected.astype(np.float64) ** 2).sum(axis=(1, 2))
                values += stored.size
        return {"largest": largest, "relative": float(np.sqrt(np.mean(apart / true))), "values": values}

    def _forward(self, ids: Any, residual: bool) -> Any:
        import torch

        self._kept.clear()
        with torch.inference_mode():
            given = torch.from_numpy(ids.astype(np.int64))[None]
            output = self._model(input_ids=given, use_cache=False, output_hidden_states=residual)
        if residual:  # after each layer; transformers gives the last one after the final norm
            return np.stack([state[0].numpy() for state in output.hidden_states[1:]])
        return np.stack(self._kept)


# ---- the table --------------------------------------------------------------------------------------------------------


def _rate(found: dict[str, Any]) -> float:
    return float(found["tokens"] / found["seconds"])


def _of(found: dict[str, Any], bare: Sequence[dict[str, Any]]) -> float:
    return float(_rate(found) / np.mean([_rate(run) for run in bare]))


def _line(found: dict[str, Any]) -> str:
    if "not_run" in found:
        return f"not run: {found['not_run']}"
    return f"{_rate(found):.0f} tokens/s, {found['of_bare']:.2f} of bare"


def table(bare: list[dict[str, Any]], rows: dict[str, dict[str, Any]]) -> str:
    """Return the Markdown table."""
    rates = [_rate(run) for run in bare]
    lines = [
        "| tool | tokens/s | of bare | million values/s | bytes per value | of them activations | not in bare forward "
        "| outside the model's forward | largest difference (relative error) | peak memory | what |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
        f"| {BARE.name} | {np.mean(rates):.0f} ({min(rates):.0f}–{max(rates):.0f}) | 1 | | | | | | | "
        f"{max(run['peak_bytes'] for run in bare) / 1e9:.2f} GB | the limit |",
    ]
    for tool in TOOLS:
        if tool.name in rows:
            lines.append(_row(tool.name, rows[tool.name]))
            if tool.runs > 1 and "not_run" not in rows[tool.name]:
                lines.append(_row_of_all(tool, rows[tool.name]))
    return "\n".join(lines)


def _row(name: str, found: dict[str, Any]) -> str:
    if "not_run" in found:
        return f"| {name} | not run: {found['not_run'].replace('|', ' ')} |{' |' * 9} {found['note']} |"
    arrays = found.get("activation_bytes", found["bytes"]) / found["values"]
    outside = f"{1 - found['forward_seconds'] / found['seconds']:.0%}" if "forward_seconds" in found else ""
    difference = found["difference"]
    version = ", ".join(f"{key} {value}" for key, value in found["versions"].items() if key not in ("numpy", "neuronlake"))
    return (
        f"| {name} | {_rate(found):.0f} | {found['of_bare']:.2f} | {found['values'] / found['seconds'] / 1e6:.2f} | "
        f"{found['bytes'] / found['values']:.2f} | {arrays:.2f} | {max(0.0, 1 - found['of_bare']):.0%} | {outside} | "
        f"{difference['largest']:.2g} ({difference['relative']:.1g}) | {found['peak_bytes'] / 1e9:.2f} GB | "
        f"{found['note']}; {version} |"
    )


def _row_of_all(tool: Tool, found: dict[str, Any]) -> str:
    rate, of_bare = _rate(found) / tool.runs, found["of_bare"] / tool.runs
    return (
        f"| {tool.name} × {tool.runs} | {rate:.1f} | {of_bare:.3f} | {found['values'] / found['seconds'] / 1e6:.2f} | | | "
        f"{1 - of_bare:.0%} | | | | computed, not run: {tool.runs} such runs for all layers |"
    )


def against_best_peer(rows: dict[str, dict[str, Any]]) -> dict[str, dict[str, float | str]]:
    """Print and return each neuronlake's speed over that of the best peer that keeps all layers, and its share of bytes."""
    peers = {tool.name: rows[tool.name] for tool in TOOLS if tool.peer and "of_bare" in rows.get(tool.name, {})}
    if not peers:
        return {}
    best = max(peers, key=lambda name: float(peers[name]["of_bare"]))
    found: dict[str, dict[str, float | str]] = {}
    for name, row in rows.items():
        if name.startswith("neuronlake") and "of_bare" in row:
            speed = row["of_bare"] / peers[best]["of_bare"]
            share = row["bytes"] / row["values"] / (peers[best]["bytes"] / peers[best]["values"])
            arrays = row["activation_bytes"] / row["values"] / (peers[best]["bytes"] / peers[best]["values"])
            found[name] = {"peer": best, "speed": speed, "bytes": share, "bytes_of_activations": arrays}
            print(f"\n{name}: {speed:.2f} × the speed of {best}, {share:.2f} of its bytes ({arrays:.2f} without the index)")
    return found
