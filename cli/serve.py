"""`neuronlake serve`: lakes in the browser."""

import argparse
import errno
import socket
import threading
import webbrowser
from typing import Any

from rich.markup import escape

from neuronlake.cli.common import add_command, lake_argument, messages
from neuronlake.store.errors import InputError

_PORT = 8421
_ANYWHERE = ("0.0.0.0", "::")


def add_commands(commands: Any) -> None:
    """Add the command."""
    parser = add_command(
        commands,
        "serve",
        "show lakes in the browser",
        "neuronlake serve my.lake\n"
        "neuronlake serve base.lake tuned.lake --port 9000 --open\n"
        "ssh -L 8421:localhost:8421 cluster neuronlake serve my.lake    # then open http://localhost:8421/ here",
    )
    parser.add_argument("lakes", metavar="LAKE", nargs="+", type=lake_argument, help="folder of a lake, or its URL")
    parser.add_argument("--port", type=int, default=_PORT, metavar="N", help=f"port (default: {_PORT}; 0: any free one)")
    parser.add_argument(
        "--host",
        default="127.0.0.1",
        metavar="ADDRESS",
        help="address to listen on (default: 127.0.0.1, this machine only). There is no password: whoever reaches another "
        "address can read the lakes",
    )
    parser.add_argument(
        "--name",
        action="append",
        default=[],
        metavar="HOST",
        help="name under which browsers reach this machine, with --host",
    )
    parser.add_argument("--open", action="store_true", help="open the browser")
    parser.set_defaults(run=_serve)


def _serve(options: argparse.Namespace) -> int:
    try:
        import uvicorn

        from neuronlake.analysis.explorer.app import create_app
    except ModuleNotFoundError as error:
        raise InputError(
            f"serve needs the package {str(error.name).partition('.')[0]}: pip install 'neuronlake[explore]'"
        ) from None
    from neuronlake.analysis.explorer.shelf import Shelf

    shelf = Shelf(options.lakes)
    listening = _listen(options.host, options.port)
    port = listening.getsockname()[1]
    shown = "127.0.0.1" if options.host in _ANYWHERE else options.host
    address = f"http://{f'[{shown}]' if ':' in shown else shown}:{port}/"
    console = messages()
    lakes = escape(", ".join(map(str, shelf.paths.values())))
    if options.host not in ("127.0.0.1", "localhost", "::1"):
        console.print("[yellow]note:[/yellow] there is no password: whoever reaches this address can read the lakes")
    console.print(f"{lakes}: [bold]{escape(address)}[/bold]   (Ctrl-C ends)")
    if options.open:
        webbrowser.open(address)
    hosts = [*options.name, *([] if options.host in _ANYWHERE else [options.host])]
    threading.Thread(target=shelf.warm_up, daemon=True).start()
    config = uvicorn.Config(create_app(shelf, hosts), log_level="warning", server_header=False, ws="none")
    try:
        uvicorn.Server(config).run(sockets=[listening])
    except KeyboardInterrupt:
        pass  # that is how it ends
    finally:
        listening.close()
    return 0


def _listen(host: str, port: int) -> socket.socket:
    if not 0 <= port < 1 << 16:
        raise InputError(f"--port must be from 0 to 65535, got {port}")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listening = socket.socket(family, kind, protocol)
    except (OSError, UnicodeError) as error:  # a label that is too long for a name
        raise InputError(f"cannot listen on {host}: {getattr(error, 'strerror', None) or error}") from None
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind(address)
        listening.listen()
    except OSError as error:
        listening.close()
        hint = "; try --port 0 for a free one" if error.errno in (errno.EADDRINUSE, errno.EACCES) else ""
        raise InputError(f"cannot listen on {host}, port {port}: {error.strerror or error}{hint}") from None
    return listening
