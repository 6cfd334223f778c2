"""The application that `serve` runs: the page and the API over an index. It is ASGI, and runs in any server.

What searches is a function that the caller gives: on Ray Serve, a call of the replicas that hold the index.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from fastapi import FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, Response
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

import dreamprvr_ray
from dreamprvr_ray.errors import Failure, UserError
from dreamprvr_ray.index.index import Index
from dreamprvr_ray.index.record import IndexRecord
from dreamprvr_ray.web import metrics
from dreamprvr_ray.web.access import Access, AccessMiddleware
from dreamprvr_ray.web.api_page import api_page
from dreamprvr_ray.web.clips import LONGEST
from dreamprvr_ray.web.feedback import Feedback, FeedbackFiles
from dreamprvr_ray.web.media import Media, unseen_reason
from dreamprvr_ray.web.messages import FeedbackRequest, FindRequest
from dreamprvr_ray.web.page import search_page
from dreamprvr_ray.web.video_files import ServedVideo, UnavailableVideo, VideoFiles

Find = Callable[[str, int], Awaitable[dict[str, Any]]]  # sentence, number of results -> `Answer.to_dict()`

_Id = Annotated[str, Query(min_length=1, max_length=4096, description="id of a video of the index")]
_Time = Annotated[float, Query(ge=0, lt=10**6, allow_inf_nan=False, description="seconds of the video")]


class SearchUnavailable(Exception):
    """No replica answers at the moment; the request may be repeated."""


@dataclass(frozen=True)
class Served:
    """What an application serves.

    Attributes:
        collection: Name of the collection, for display.
        files: Its videos.
        find: Searches. Raises `UserError` for a sentence that cannot be searched for, `SearchUnavailable` if it fails.
        feedback: Where feedback is kept.
    """

    collection: str
    files: VideoFiles
    find: Find
    feedback: FeedbackFiles


def served_index(directory: Path, find: Find) -> Served:
    """Return what an application serves for an index. Raises `UserError` if there is no index."""
    index = Index(directory, IndexRecord.read(directory), model=None)  # its videos only
    videos = (ServedVideo(each.id, each.file or "", each.duration) for each in index.videos)
    return Served(index.record.collection, VideoFiles(index.videos_directory, videos), find, FeedbackFiles(directory))


def create_app(served: Served, access: Access) -> FastAPI:
    """Return the application."""
    app = FastAPI(
        title="dreamprvr_ray",
        version=dreamprvr_ray.__version__,
        summary="Find moments in videos by sentences.",
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    counters = metrics.ServerMetrics(len(served.files.videos))
    media = Media(served.files, counters)
    _add_errors(app)
    _add_pages(app, served)
    _add_search(app, served, media)
    _add_media(app, media)
    _add_operation(app, served, counters)
    app.add_middleware(AccessMiddleware, access=access)
    app.add_middleware(_Counting, counters=counters)
    return app


def _add_search(app: FastAPI, served: Served, media: Media) -> None:
    @app.post("/find")
    async def find(query: FindRequest) -> dict[str, Any]:
        """Find the best moments for a sentence.

        `start` and `end` are seconds of the video, or null if the index has no times; `media` is how to play the video,
        if its file is known: at `url`, whose second 0 is second `offset` of the video.
        """
        answer = await served.find(query.sentence, query.top)
        answer["results"] = await run_in_threadpool(lambda: [media.described(each) for each in answer["results"]])
        return answer | {"videos": len(served.files.videos)}

    @app.post("/feedback")
    def feedback(said: FeedbackRequest) -> dict[str, bool]:
        """Keep that a moment shows a sentence, or that it does not. Confirmed moments are captions to train on."""
        video = served.files.videos.get(said.video)
        if video is None:
            raise UnavailableVideo("the collection has no such video")
        if video.duration is not None and said.start >= video.duration:
            raise UserError(f"start: must be before the end of the video, {video.duration:g} s")
        end = said.end if video.duration is None else min(said.end, video.duration)
        moment = Feedback(video.file or video.id, said.sentence, said.start, end, said.right)
        is_new = served.feedback.append(moment)
        media.counters.feedback.labels(str(said.right).lower()).inc()
        return {"recorded": True, "new": is_new}


def _add_media(app: FastAPI, media: Media) -> None:
    @app.head("/videos/{video:path}", include_in_schema=False)
    @app.get("/videos/{video:path}", response_class=Response)
    def video(request: Request, video: str) -> Response:
        """A video, also in byte ranges. One that browsers cannot play is sent as mp4, its first ten minutes at most."""
        return media.video(request, video)

    @app.head("/clip", include_in_schema=False)
    @app.get("/clip", response_class=Response)
    def clip(
        request: Request, video: _Id, start: _Time, end: _Time, exact: bool = False, download: bool = False
    ) -> Response:
        """The part of a video from start to end, as an mp4 file.

        If a key frame is close to the start, it is cut there without encoding, unless it must be exact. The headers
        X-Clip-Start and X-Clip-End are the seconds that it shows, X-Clip-Method is copy or encode.
        """
        if not start < end or end - start > LONGEST:
            raise UserError(f"end: must be after start, by at most {LONGEST:g} s")
        return media.clip(request, video, start, end, exact=exact, download=download)

    @app.get("/thumbnail", response_class=Response)
    def thumbnail(video: _Id, time: _Time = 0.0, width: Annotated[int, Query(ge=16, le=1280)] = 352) -> Response:
        """A frame of a video as a JPEG picture."""
        return media.thumbnail(video, time, width)


def _add_pages(app: FastAPI, served: Served) -> None:
    page = search_page(served.collection, len(served.files.videos))

    @app.get("/", response_class=HTMLResponse, include_in_schema=False)
    def search() -> Response:
        return HTMLResponse(page.html, headers={"Content-Security-Policy": page.policy, "Cache-Control": "no-cache"})

    @app.get("/docs", response_class=HTMLResponse, include_in_schema=False)
    def docs() -> Response:
        described = api_page(app.openapi())
        return HTMLResponse(described.html, headers={"Content-Security-Policy": described.policy})


def _add_operation(app: FastAPI, served: Served, counters: metrics.ServerMetrics) -> None:
    @app.get("/health")
    def health() -> dict[str, Any]:
        """That the server answers."""
        return {"status": "ok", "videos": len(served.files.videos)}

    @app.get("/metrics", response_class=Response)
    def prometheus() -> Response:
        """Counters in Prometheus' format."""
        return Response(counters.text(), media_type=metrics.CONTENT_TYPE)


def _add_errors(app: FastAPI) -> None:
    """Answer every error as {"detail": one line}. What was sent is not repeated: it may not even be valid text."""

    @app.exception_handler(RequestValidationError)
    async def malformed(_: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"][1:]) or "request"
        return JSONResponse({"detail": f"{_printable(place)}: {_printable(first['msg'])}"}, 422)

    @app.exception_handler(UserError)
    async def wrong(_: Request, error: UserError) -> Response:
        return JSONResponse({"detail": _printable(error.mistakes[0])}, 422)

    @app.exception_handler(UnavailableVideo)
    async def unavailable(_: Request, error: UnavailableVideo) -> Response:
        return JSONResponse({"detail": unseen_reason(error)}, error.status)

    @app.exception_handler(SearchUnavailable)
    async def busy(_: Request, __: SearchUnavailable) -> Response:
        return JSONResponse({"detail": "the search does not answer at the moment"}, 503, {"Retry-After": "1"})

    @app.exception_handler(Failure)
    async def failed(_: Request, error: Failure) -> Response:
        return JSONResponse({"detail": "the server cannot do this at the moment"}, 503)

    @app.exception_handler(HTTPException)
    async def http(_: Request, error: HTTPException) -> Response:
        return JSONResponse({"detail": _printable(str(error.detail))}, error.status_code, error.headers)


def _printable(text: str) -> str:
    return text.encode("utf-8", "replace").decode()[:500]


class _Counting:
    """Counts responses by route; the outermost middleware."""

    def __init__(self, app: ASGIApp, counters: metrics.ServerMetrics) -> None:
        self._app, self._counters = app, counters

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        begin = time.perf_counter()

        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                route = getattr(scope.get("route"), "path", "other")
                self._counters.record(route, message["status"], time.perf_counter() - begin)
            await send(message)

        await self._app(scope, receive, counted)
