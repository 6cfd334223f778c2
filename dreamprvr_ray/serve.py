"""The command that serves an index: a page to search in, and an API.

    python -m dreamprvr_ray.serve INDEX

docs/serve.md describes it. It runs until Ctrl-C. Only this machine can reach it unless `--host` and `--token` are
given.
"""

from __future__ import annotations

import os
import signal
from importlib.util import find_spec

from dreamprvr_ray import command_line
from dreamprvr_ray.errors import UserError
from dreamprvr_ray.storage.location import local_folder

TOKEN = "DREAMPRVR_RAY_TOKEN"  # environment variable; unlike an argument, other users cannot see it


def main(arguments: list[str]) -> None:
    """Run the command. Raises `UserError` for mistakes, and `Failure` if Ray does not start."""
    options = _parser().parse_args(arguments)
    if options.replicas < 1:
        raise UserError(f"--replicas {options.replicas}: must be at least 1")
    for module in ("fastapi", "watchfiles", "mmh3"):  # of ray[serve]
        if find_spec(module) is None:
            raise UserError(f"{module} is not installed: pip install 'dreamprvr_ray[serve]'")
    from dreamprvr_ray.index.record import IndexRecord
    from dreamprvr_ray.runtime.serving import LocalServer, served

    IndexRecord.read(options.index)  # fails at once, before Ray starts
    settings = LocalServer(
        index=options.index,
        host=options.host,
        port=options.port,
        replicas=options.replicas,
        token=options.token or os.environ.get(TOKEN) or None,
        sentence_encoder=options.sentence_encoder,
    )
    with served(settings, command_line.print_progress) as url:
        print(f"{url} (Ctrl-C stops)", flush=True)
        if options.json:
            command_line.print_json({"url": url, "replicas": settings.replicas})
        signal.pause()


def _parser() -> command_line.Parser:
    parser = command_line.Parser("serve", "Serve an index: a page to search in, and an API.")
    parser.add_argument("index", type=local_folder, metavar="INDEX", help="directory that `index` wrote")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: 127.0.0.1)")
    parser.add_argument("--port", type=int, default=8000, help="port to listen on (default: 8000)")
    parser.add_argument("--replicas", type=int, default=1, metavar="N", help="processes that search (default: 1)")
    parser.add_argument(
        "--token", help=f"what requests must have; required if other machines can reach the server (default: ${TOKEN})"
    )
    parser.add_argument(
        "--sentence-encoder", metavar="ENCODER", help="encoder of sentences, if the index does not know it"
    )
    return parser


if __name__ == "__main__":
    command_line.run(main)
