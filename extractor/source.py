"""Where a model comes from: a folder, a hub id or a GGUF file, resolved to one folder and one identity."""

import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from neuronlake.extractor.transformers_glue import LOAD_ERRORS, first_line, quiet_transformers
from neuronlake.store.errors import InputError, StorageError

_HUB_FILES = ("*.json", "*.safetensors", "*.model", "*.txt", "*.jinja")


@dataclass(frozen=True, kw_only=True)
class ModelSource:
    """A model on the local disk, ready for ``from_pretrained``."""

    folder: Path
    name: str
    """As the user named it, without folders."""
    sha256: str
    """Over every weight file (or over the GGUF file it was converted from) and the configuration."""

    def identity(self) -> dict[str, Any]:
        """Return what the lake records of the model."""
        return {"name": self.name, "sha256": self.sha256}


def resolve_model(
    model: str,
    *,
    gguf: str | None = None,
    trust_remote_code: bool = False,
    say: Callable[[str], None] = lambda message: None,
) -> ModelSource:
    """Find a model and hash its weights.

    Parameters
    ----------
    model
        A folder with a Hugging Face model, a ``.gguf`` file, or a hub id.
    gguf
        Name of a GGUF file inside that folder or hub repository (or a path to one).
    say
        Called with one line before a step that takes long.

    Raises
    ------
    InputError
        When it cannot be found.
    """
    path, gguf = _split(model, gguf)
    if gguf is not None:
        return _from_gguf(_find_gguf(path, model, gguf), say)
    if not path.is_dir():
        if path.exists() or model.startswith((".", "/", "~")):
            raise InputError(
                f"no model at {model}: expected a folder with config.json and weights, a .gguf file or a hub id"
            )
        path = _from_hub(model, [*_HUB_FILES, *(["*.py"] if trust_remote_code else [])])
    if not (path / "config.json").is_file():
        hint = f"; it has GGUF files: name one with --gguf {found[0].name}" if (found := sorted(path.glob("*.gguf"))) else ""
        raise InputError(f"{path} is not a model: it has no config.json{hint}")
    weights = sorted(path.glob("*.safetensors")) or sorted(path.glob("*.bin"))
    if not weights:
        raise InputError(f"{path} has no weights: expected *.safetensors or *.bin")
    say("hashing the model's weights")
    return ModelSource(
        folder=path, name=model.rstrip("/").split("/")[-1], sha256=_hash_files([path / "config.json", *weights])
    )


def _split(model: str, gguf: str | None) -> tuple[Path, str | None]:
    """The model's folder and, where one is named or `model` is one, its GGUF file."""
    path = Path(model).expanduser()
    if gguf is not None or path.suffix.lower() != ".gguf":
        return path, gguf
    if not path.is_file():
        raise InputError(f"no GGUF file at {path}")
    return path.parent, path.name


def find_configuration(model: str, *, gguf: str | None = None, trust_remote_code: bool = False) -> Path:
    """Find what says how a model is built, its weights apart: a folder with its configuration, or a GGUF file.

    Parameters
    ----------
    model, gguf
        See `resolve_model`.

    Raises
    ------
    InputError
        When it cannot be found.
    """
    path, gguf = _split(model, gguf)
    if gguf is not None:
        return _find_gguf(path, model, gguf)
    if not path.is_dir():
        if path.exists() or model.startswith((".", "/", "~")):
            raise InputError(f"no model at {model}: expected a folder with config.json, a .gguf file or a hub id")
        path = _from_hub(model, ["config.json", *(["*.py"] if trust_remote_code else [])])
    if not (path / "config.json").is_file():
        raise InputError(f"{path} is not a model: it has no config.json")
    return path


def _find_gguf(folder: Path, model: str, gguf: str) -> Path:
    for candidate in (folder / gguf, Path(gguf).expanduser()):
        if candidate.is_file():
            return candidate
    if folder.is_dir() or model.startswith((".", "/", "~")):
        raise InputError(f"no GGUF file {gguf} in {folder}")
    from huggingface_hub import hf_hub_download

    return Path(_hub_call(model, lambda: hf_hub_download(model, gguf)))


def _from_hub(model: str, patterns: list[str]) -> Path:
    from huggingface_hub import snapshot_download

    return Path(_hub_call(model, lambda: snapshot_download(model, allow_patterns=patterns)))


def _hub_call(model: str, download: Callable[[], str]) -> str:
    # The hub's client reports a missing network by the errors of several libraries, most of them OSError.
    import httpx
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        return download()
    except (OSError, HfHubHTTPError, HFValidationError, httpx.HTTPError) as error:
        raise InputError(f"no model {model!r}: it is no local folder, and the hub says: {first_line(error)}") from error


def _from_gguf(path: Path, say: Callable[[str], None]) -> ModelSource:
    """Convert a GGUF file once and keep the result: reading it takes half a minute, reading the result a second."""
    import transformers

    say("hashing the model's weights")
    sha256 = _hash_files([path])
    folder = cache_folder() / "gguf" / f"{sha256[:24]}-transformers-{transformers.__version__}"
    if not (folder / "config.json").is_file():
        say(f"converting {path.name} to float32 once; it stays in {folder}")
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".converting-"))
            try:
                _convert_gguf(path, temporary)
                if not folder.exists():
                    temporary.replace(folder)
            finally:
                shutil.rmtree(temporary, ignore_errors=True)
        except OSError as error:
            raise StorageError(
                f"could not keep the converted model in {folder}: {error.strerror or error}; "
                "point NEURONLAKE_CACHE at a folder with room for it"
            ) from error
    return ModelSource(folder=folder, name=path.name, sha256=sha256)


def cache_folder() -> Path:
    """Return where converted models are kept: NEURONLAKE_CACHE, or ``neuronlake`` in the user's cache folder."""
    if chosen := os.environ.get("NEURONLAKE_CACHE"):
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "neuronlake"


def _convert_gguf(path: Path, target: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    try:
        with quiet_transformers():
            tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
            model = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
    except LOAD_ERRORS as error:
        raise InputError(f"could not read {path} as a GGUF model: {first_line(error)}") from error
    # transformers refuses to save a model that it still believes to be quantised
    del model.config.quantization_config, model.hf_quantizer
    model.is_quantized = False
    with quiet_transformers():
        model.save_pretrained(target)
        tokenizer.save_pretrained(target)


def _hash_files(paths: list[Path]) -> str:
    with ThreadPoolExecutor() as pool:
        digests = list(pool.map(_hash_file, paths))
    if len(paths) == 1:
        return digests[0]
    return hashlib.sha256(
        "".join(f"{path.name} {digest}\n" for path, digest in zip(paths, digests, strict=True)).encode()
    ).hexdigest()


def _hash_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
