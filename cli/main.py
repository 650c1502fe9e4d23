"""Entry point of the `neuronlake` command."""

import argparse
import sys
import traceback
from collections.abc import Sequence
from importlib.metadata import version
from typing import NoReturn

import neuronlake.cli.analyse
import neuronlake.cli.attribute
import neuronlake.cli.copy
import neuronlake.cli.demo
import neuronlake.cli.describe
import neuronlake.cli.drop
import neuronlake.cli.estimate
import neuronlake.cli.export
import neuronlake.cli.extract
import neuronlake.cli.importing
import neuronlake.cli.index
import neuronlake.cli.inspect
import neuronlake.cli.key_neurons
import neuronlake.cli.label
import neuronlake.cli.lesion
import neuronlake.cli.merge
import neuronlake.cli.neighbours
import neuronlake.cli.plot
import neuronlake.cli.probe
import neuronlake.cli.report
import neuronlake.cli.reproduce
import neuronlake.cli.serve
import neuronlake.cli.statistics
import neuronlake.cli.tokens
import neuronlake.cli.weights
from neuronlake.store.errors import NeuronlakeError

_EPILOG = """\
examples:
  neuronlake extract my.lake --model HuggingFaceTB/SmolLM2-135M --conllu en_ewt-ud-train.conllu.gz
  neuronlake import eeg.lake recording.npy --tokens samples.csv
  neuronlake info my.lake
  neuronlake rank my.lake --by upos --method auroc --top 10
  neuronlake top my.lake L12.N345 -k 20
  neuronlake probe my.lake --by upos --layer 0

exit codes: 0 done, 1 a check failed or data is damaged, 2 wrong use or bad input, 130 interrupted (run it again to go on)
"""


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        """Print one line and leave with exit code 2."""
        self.exit(2, f"neuronlake: {message} (see `{self.prog} --help`)\n")


def build_parser() -> Parser:
    """Return the parser of all commands."""
    parser = Parser(
        prog="neuronlake",
        description="Activation store and indexer: every MLP neuron of every token, kept once, asked for months.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"neuronlake {version('neuronlake')}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for module in (
        neuronlake.cli.extract,
        neuronlake.cli.importing,
        neuronlake.cli.index,
        neuronlake.cli.label,
        neuronlake.cli.inspect,
        neuronlake.cli.copy,
        neuronlake.cli.merge,
        neuronlake.cli.drop,
        neuronlake.cli.estimate,
        neuronlake.cli.statistics,
        neuronlake.cli.analyse,
        neuronlake.cli.probe,
        neuronlake.cli.describe,
        neuronlake.cli.weights,
        neuronlake.cli.attribute,
        neuronlake.cli.key_neurons,
        neuronlake.cli.lesion,
        neuronlake.cli.reproduce,
        neuronlake.cli.neighbours,
        neuronlake.cli.tokens,
        neuronlake.cli.export,
        neuronlake.cli.plot,
        neuronlake.cli.serve,
        neuronlake.cli.report,
        neuronlake.cli.demo,
    ):
        module.add_commands(commands)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    options = build_parser().parse_args(arguments)
    try:
        return int(options.run(options))
    except KeyboardInterrupt:
        print(f"neuronlake: {_interrupted(options)}", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output went away, as `| head` does
        sys.stderr.close()
        return 0
    except NeuronlakeError as error:
        if options.debug:
            traceback.print_exc()
        print(f"neuronlake: {error}", file=sys.stderr)
        return error.exit_code


def _interrupted(options: argparse.Namespace) -> str:
    if options.command == "attribute":
        return "interrupted; run the same command again to go on"
    if options.command not in ("extract", "demo", "import"):
        return "interrupted; nothing was changed"
    return neuronlake.cli.extract.describe_interruption(options.lake)


if __name__ == "__main__":
    sys.exit(main())
