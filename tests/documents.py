"""Code blocks of a Markdown page, run as a reader would run them, or parsed where the page says why they cannot be."""

import ast
import importlib
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from neuronlake.cli.main import build_parser, main

_FENCE = re.compile(r"^```(\w*)[ ]*(.*?)\n(.*?)^```$", flags=re.DOTALL | re.MULTILINE)
_REASON = re.compile(r'not-run="([^"]+)"')
_CALL = re.compile(r"(?<!\S)neuronlake [a-z][^&|;]*")  # not `pip install neuronlake`
_TEXTS = ("text", "json")
ENVIRONMENT = {"SLURM_ARRAY_TASK_ID": "3", "USER": "me", "HEAD": "10.0.0.1"}


@dataclass(frozen=True, kw_only=True)
class CodeBlock:
    """A fenced block."""

    language: str
    code: str
    reason: str | None
    """Why it is not run; None if it is."""
    line: int


def code_blocks(page: Path) -> list[CodeBlock]:
    """Return the blocks of a page; one of an unknown language or with an unknown attribute fails."""
    text = page.read_text(encoding="utf-8")
    blocks = []
    for match in _FENCE.finditer(text):
        language, attribute, code = match.groups()
        line = text[: match.start()].count("\n") + 1
        if not language:  # a directive of Sphinx: ```{toctree}
            assert attribute.startswith("{"), f"{page.name}:{line}: a block without a language"
            continue
        reason = _REASON.fullmatch(attribute)
        assert reason or not attribute, f'{page.name}:{line}: {attribute!r} is no reason: write not-run="why"'
        assert language in ("sh", "python", *_TEXTS), f"{page.name}:{line}: is {language} to be run?"
        blocks.append(CodeBlock(language=language, code=code, reason=reason and reason.group(1), line=line))
    return blocks


class Reader:
    """Somebody who types what a page says, in one shell and one Python, in one folder."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]):
        self.folder = folder
        self.capsys = capsys
        self.names: dict[str, Any] = {"__name__": "__main__"}
        self.shown = ""
        paths = [str(Path(path).absolute()) for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
        self.environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}

    def run(self, block: CodeBlock) -> None:
        """Run a block, or compare what the page shows of an output with what came."""
        if block.language == "python":
            exec(compile(block.code, f"line {block.line}", "exec"), self.names)
            self.shown = self.capsys.readouterr().out
        elif block.language == "sh":
            self.shown = "".join(self._shell(statement) for statement in statements(block.code))
        elif block.language == "text" and self.shown:
            heading = block.code.splitlines()[0]
            words = set(re.findall(r"[^\W\d_]{2,}", heading))
            assert words <= set(re.findall(r"[^\W\d_]{2,}", self.shown)), f"line {block.line}: no output has {heading!r}"

    def _shell(self, statement: str) -> str:
        if assignment := re.match(r"(\w+)=", statement):
            name = assignment.group(1)
            self.environment[name] = self._bash(f'{statement}\nprintf %s "${name}"')
            return ""
        if _is_plain(statement):
            arguments = words_of(statement, self.environment)
            assert main(arguments) == 0, statement + self.capsys.readouterr().err
            return self.capsys.readouterr().out
        return self._bash(statement)

    def _bash(self, script: str) -> str:
        functions = (
            f'python() {{ {shlex.quote(sys.executable)} "$@"; }}\n'
            'neuronlake() { python -c "from neuronlake.cli.entry import run; run()" "$@"; }\n'
        )
        done = subprocess.run(
            ["bash", "-euc", functions + script], cwd=self.folder, env=self.environment, capture_output=True, text=True
        )
        assert done.returncode == 0, f"{script}\n{done.stderr}"
        return done.stdout


def statements(code: str) -> Iterator[str]:
    """Yield the commands of a shell block: lines, with what continues them and their here-documents."""
    lines = iter(code.splitlines())
    for line in lines:
        statement = line
        while statement.endswith("\\"):
            statement = statement.removesuffix("\\") + next(lines).lstrip()
        if here := re.search(r"<<'?(\w+)'?$", statement):
            for inner in lines:
                statement += "\n" + inner
                if inner == here.group(1):
                    break
        if statement.strip() and not statement.startswith("#"):
            yield statement


def _is_plain(statement: str) -> bool:
    """Whether a statement is a single `neuronlake` command, whose output goes nowhere else."""
    lexer = shlex.shlex(statement, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    parts = list(lexer)
    return parts[:1] == ["neuronlake"] and not any(set(part) <= set("|&;<>()") for part in parts)


def words_of(statement: str, environment: dict[str, str]) -> list[str]:
    """Let bash expand and split a `neuronlake` command; return its arguments."""
    assert "$(" not in statement
    function = 'neuronlake() { printf "%s\\0" "$@"; }\n'
    done = subprocess.run(
        ["bash", "-euc", function + statement], env=environment, capture_output=True, text=True, check=True
    )
    return done.stdout.split("\0")[:-1]


def parse(block: CodeBlock) -> int:
    """Check a block that is not run, and return how many commands or imports were checked."""
    if block.language == "python":
        return parse_python(block.code)
    subprocess.run(["bash", "-nc", block.code], check=True)
    checked = 0
    for statement in statements(block.code):
        for call in _CALL.findall(statement):
            parse_command(words_of(call, {**os.environ, **ENVIRONMENT}))
            checked += 1
    return checked


def parse_command(arguments: list[str]) -> None:
    """Let the real parser read a command line."""
    try:
        build_parser().parse_args(arguments)
    except SystemExit as leaving:
        if leaving.code:
            pytest.fail(f"neuronlake {shlex.join(arguments)}: not understood")


def parse_python(code: str) -> int:
    """Compile; every name that is imported from neuronlake must be there, and every attribute of its modules."""
    modules: dict[str, Any] = {}
    checked = 0
    tree = ast.parse(code)
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("neuronlake"):
            for alias in node.names:
                getattr(importlib.import_module(str(node.module)), alias.name)
                checked += 1
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.startswith("neuronlake"):
                    modules[alias.asname or alias.name] = importlib.import_module(alias.name)
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) in modules:
            getattr(modules[ast.unparse(node.value)], node.attr)
            checked += 1
    return checked
