"""An index on Ray Serve: replicas that search, and one process in front of them that is the web server's application.

On one machine, `served` starts it. On a cluster, `serve deploy cluster/serve.yaml` builds `application`.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field
from ray import serve
from ray.exceptions import RayError
from ray.serve.config import HTTPOptions, ProxyLocation
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle
from ray.serve.schema import LoggingConfig

from dreamprvr_ray.cpus import allowed_cpus
from dreamprvr_ray.errors import Failure, UserError, first_line
from dreamprvr_ray.index.index import Index
from dreamprvr_ray.runtime import ray_internals
from dreamprvr_ray.runtime.session import ray_session
from dreamprvr_ray.storage.files import read_text
from dreamprvr_ray.web.access import LOCAL_NAMES, Access, token_digest
from dreamprvr_ray.web.app import SearchUnavailable, create_app, served_index

NAME = "dreamprvr_ray"  # of the application on Ray Serve
LARGEST_BATCH = 32  # sentences that are searched for together
AT_ONCE = 1000  # requests in progress; a player holds one as long as it reads
ATTEMPTS, PAUSE = 60, 0.25  # a search is repeated while replicas are replaced; seconds between two attempts
# Ray's default is 15: answers would wait for everything else that the machine does.
_NICENESS = ("RAY_worker_niceness", "0")
# Serve writes each request to its logs otherwise. What users search for is theirs.
_LOGGING = LoggingConfig(log_level="WARNING", enable_access_log=False)


class ServeArguments(BaseModel):
    """The arguments of `application`, as in cluster/serve.yaml."""

    model_config = ConfigDict(extra="forbid")

    index: str = Field(description="the index; the same path on every node")
    replicas: int = Field(default=1, ge=1, le=1000, description="processes that search")
    cpus_per_replica: float = Field(default=1.0, ge=0, description="CPUs that Ray reserves for each")
    gpus_per_replica: float = Field(default=0.0, ge=0, description="GPUs that Ray reserves for each")
    threads: int | None = Field(default=None, ge=1, description="threads of each (default: its CPUs)")
    sentence_encoder: str | None = Field(
        default=None, description="encoder of sentences, if the index does not know it"
    )
    token_file: str | None = Field(default=None, description="file with the token that requests must have")
    hosts: list[str] | None = Field(
        default=None, description="names under which the server may be called (default: any)"
    )


@dataclass(frozen=True)
class LocalServer:
    """Settings of `served`.

    Attributes:
        index: The index.
        host, port: Where the server listens.
        replicas: Processes that search.
        token: What requests must have; None if they need none, which loopback addresses only may do.
        sentence_encoder: Encoder of sentences, if the index does not know it.
    """

    index: Path
    host: str = "127.0.0.1"
    port: int = 8000
    replicas: int = 1
    token: str | None = None
    sentence_encoder: str | None = None


class Search:
    """A replica: an open index. Sentences that arrive during a search are searched for together afterwards."""

    def __init__(self, index: str, sentence_encoder: str | None, threads: int) -> None:
        import torch

        torch.set_num_threads(threads)
        self._mistakes: tuple[str, ...] = ()
        try:
            self._index = Index.open(index, sentence_encoder=sentence_encoder)
            self._index.load_encoder()
            self._index.find("warm up")
        except UserError as error:  # Serve would start the replica again and again
            self._mistakes = error.mistakes

    def mistakes(self) -> tuple[str, ...]:
        """Return why the index cannot be searched, in lines; nothing if it can."""
        return self._mistakes

    @serve.batch(max_batch_size=LARGEST_BATCH, batch_wait_timeout_s=0.0)
    async def find(self, sentences: list[str], tops: list[int]) -> list[dict[str, Any]]:
        """Return the answer for each sentence, or its `mistake`."""
        return await asyncio.to_thread(self._find, sentences, tops)

    def _find(self, sentences: list[str], tops: list[int]) -> list[dict[str, Any]]:
        if self._mistakes:
            return [{"mistake": self._mistakes[0]} for _ in sentences]
        try:
            answers = self._index.find_many(sentences, max(tops))
        except UserError as error:
            if len(sentences) == 1:
                return [{"mistake": error.mistakes[0]}]
            return [each for pair in zip(sentences, tops, strict=True) for each in self._find([pair[0]], [pair[1]])]
        found = []
        for answer, top in zip(answers, tops, strict=True):
            values = answer.to_dict()
            found.append(values | {"results": values["results"][:top]})
        return found


@serve.ingress()
class Web:
    """The web server's application. There is one: it counts, and it appends feedback."""

    def __init__(self, index: str, access: Access, search: DeploymentHandle) -> None:
        self._index, self._access, self._search = Path(index), access, search

    def __serve_build_asgi_app__(self) -> Any:
        return create_app(served_index(self._index, self._find), self._access)

    async def _find(self, sentence: str, top: int) -> dict[str, Any]:
        """Search on any replica, on another one if it is lost."""
        for _ in range(ATTEMPTS):
            try:
                answer: dict[str, Any] = await self._search.find.remote(sentence, top)
            except (RayError, RayServeException):
                await asyncio.sleep(PAUSE)
                continue
            if "mistake" in answer:
                raise UserError(answer["mistake"])
            return answer
        raise SearchUnavailable


def application(values: Mapping[str, Any]) -> serve.Application:
    """Return the application for `serve deploy`; `values` are those of `ServeArguments`.

    Raises pydantic's ValidationError, which `serve status` shows, for unknown or wrong ones.
    """
    arguments = ServeArguments.model_validate(dict(values))
    digest = None
    if arguments.token_file is not None:
        digest = token_digest(read_text(Path(arguments.token_file)).strip())
    hosts = None if arguments.hosts is None else frozenset(arguments.hosts)
    if digest is None:
        hosts = LOCAL_NAMES if hosts is None else hosts
    threads = arguments.threads or max(1, round(arguments.cpus_per_replica))
    resources = {"num_cpus": arguments.cpus_per_replica, "num_gpus": arguments.gpus_per_replica}
    return _application(arguments, Access(digest, hosts), threads, resources)


def _application(
    arguments: ServeArguments, access: Access, threads: int, resources: dict[str, float]
) -> serve.Application:
    search = serve.deployment(Search).options(
        num_replicas=arguments.replicas,
        max_ongoing_requests=AT_ONCE,
        ray_actor_options=resources,
        logging_config=_LOGGING,
        health_check_period_s=2,
        graceful_shutdown_timeout_s=5,
    )
    web = serve.deployment(Web).options(
        max_ongoing_requests=AT_ONCE,
        ray_actor_options={"num_cpus": 0},
        logging_config=_LOGGING,
        graceful_shutdown_timeout_s=1,
    )
    return web.bind(arguments.index, access, search.bind(arguments.index, arguments.sentence_encoder, threads))


@contextmanager
def served(settings: LocalServer, log: Callable[[str], None]) -> Iterator[str]:
    """Serve an index on this machine while the block runs, by a local Ray; yields the address.

    Raises `UserError` if the address is in use or must have a token, or the index cannot be searched.
    """
    url = check_address(settings.host, settings.port, settings.token is not None)
    digest = None if settings.token is None else token_digest(settings.token)
    access = Access(digest, LOCAL_NAMES if digest is None else None)
    arguments = ServeArguments(
        index=str(settings.index.absolute()),
        replicas=settings.replicas,
        sentence_encoder=settings.sentence_encoder,
    )
    threads = max(1, allowed_cpus() // settings.replicas)
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    os.environ.setdefault(*_NICENESS)
    with (
        ray_session(dashboard=False, log=log, resume="run the same command again", local=True),
        ray_internals.quiet_losses(),
    ):
        log(f"starting {settings.replicas} {'replica' if settings.replicas == 1 else 'replicas'} ...")
        try:
            try:
                serve.start(
                    proxy_location=ProxyLocation.HeadOnly,
                    http_options=HTTPOptions(host=settings.host, port=settings.port),
                    logging_config=_LOGGING,
                )
                # Nothing is reserved: all processes share this machine.
                serve.run(_application(arguments, access, threads, {"num_cpus": 0}), name=NAME, logging_config=_LOGGING)
                mistakes = serve.get_deployment_handle("Search", NAME).mistakes.remote().result(timeout_s=60)
            except (RuntimeError, TimeoutError, RayError, RayServeException) as error:
                raise Failure(f"Ray Serve did not start: {first_line(error)}") from None
            if mistakes:
                raise UserError(*mistakes)
            yield url
        finally:
            serve.shutdown()


def check_address(host: str, port: int, has_token: bool) -> str:
    """Return the URL of a server. Raises `UserError` if it cannot listen there, or must not without a token."""
    if not 1 <= port <= 65535:
        raise UserError(f"--port {port}: must be from 1 to 65535")
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except (OSError, UnicodeError):
        raise UserError(f"--host {host}: is not an address of this machine") from None
    if not has_token and not (str(address[0]).startswith("127.") or address[0] == "::1"):
        raise UserError(f"--host {host}: other machines could reach it; add --token")
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(address)
            probe.listen(1)
        except OSError as error:
            raise UserError(f"--port {port}: {host}:{port} cannot be used: {error.strerror}") from None
    shown = f"[{host}]" if ":" in host else host
    return f"http://{shown}:{port}"
