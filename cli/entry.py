"""What the shell starts: an interruption is one line from the first moment to the last."""

import signal
import sys
from typing import NoReturn


def run() -> NoReturn:
    """Run the command line and leave with its exit code."""
    try:
        from neuronlake.cli.main import main  # its libraries take a second to import

        code = main()
    except KeyboardInterrupt:
        print("neuronlake: interrupted", file=sys.stderr)
        code = 130
    if code == 130:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # an impatient second Ctrl-C would only add a traceback
    sys.exit(code)
