"""Videos, clips and thumbnails as HTTP responses, and how a page plays a result."""

from __future__ import annotations

import re
import threading
from collections import OrderedDict
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import quote, urlencode

from starlette.requests import Request
from starlette.responses import Response

from dreamprvr_ray.video.files import UnreadableVideo
from dreamprvr_ray.web.clip_cache import ClipCache
from dreamprvr_ray.web.clips import LONGEST, playable_type, thumbnail
from dreamprvr_ray.web.metrics import ServerMetrics
from dreamprvr_ray.web.ranges import file_response
from dreamprvr_ray.web.video_files import ServedVideo, UnavailableVideo, VideoFiles, entity_tag, fd_path

WHOLE = 120.0  # seconds up to which a video that browsers cannot play is converted as a whole
MARGIN = 10.0  # seconds before and after a moment that are converted of a longer one
_THUMBNAILS = 2000  # that are kept, of about 10 KB each


class UndecodableVideo(UnavailableVideo):
    """A video that can be found but not decoded, as where its file is damaged."""

    status = 422


def unseen_reason(error: UnavailableVideo) -> str:
    """Return why a video cannot be seen, as a sentence."""
    text = str(error)
    return text[:1].upper() + text[1:] + "."


class Media:
    """Serves the videos of a collection. Its methods may be called by several threads."""

    def __init__(self, files: VideoFiles, counters: ServerMetrics) -> None:
        self.counters = counters
        self._files = files
        self._clips = ClipCache()
        self._types: dict[tuple[str, str], str | None] = {}
        self._pictures: OrderedDict[tuple[str, str, float, int], bytes] = OrderedDict()
        self._lock = threading.Lock()

    def described(self, result: dict[str, Any]) -> dict[str, Any]:
        """Return a result of a search with its title and with the addresses of its video, thumbnail and clip."""
        video = self._files.videos.get(result["video"])
        described = result | {"title": result["file"] or result["video"], "media": None, "thumbnail": None}
        if video is None or result["start"] is None or not self._files.has_file(video.id):
            return described
        try:
            with self._files.open(video.id) as file:
                media_type = self._type(video, file)
        except UnavailableVideo as error:
            return described | {"reason": unseen_reason(error)}
        start, end = float(result["start"]), float(result["end"])
        picture = urlencode({"video": video.id, "time": round((start + end) / 2, 2)})
        return described | {
            "media": _how_to_play(video, media_type, start, end),
            "thumbnail": f"/thumbnail?{picture}",
            "clip": f"/clip?{urlencode({'video': video.id})}",
        }

    def video(self, request: Request, video: str) -> Response:
        """Return a video; one that browsers cannot play as an mp4 file."""
        file = self._files.open(video)
        try:
            served = self._files.videos[video]
            media_type = self._type(served, file)
            if media_type is not None:
                return file_response(request, file, media_type, {})
        except BaseException:
            file.close()
            raise
        file.close()
        end = LONGEST if served.duration is None else min(served.duration + 1, LONGEST)
        return self.clip(request, video, 0.0, end, exact=True, download=False)

    def clip(self, request: Request, video: str, start: float, end: float, *, exact: bool, download: bool) -> Response:
        """Return the part of a video from start to end as an mp4 file."""
        with self._files.open(video) as source:
            key = (video, entity_tag(source), round(start, 3), round(end, 3), exact)
            try:
                clip, file, is_new = self._clips.clip(key, source, start, end, exact)
            except UnreadableVideo as error:
                raise UndecodableVideo(f"this part of the video cannot be shown: {error.reason}") from None
        method = "copy" if clip.is_copied else "encode"
        if is_new:
            self.counters.clips.labels(method).inc()
        headers = {"X-Clip-Start": f"{clip.start:.3f}", "X-Clip-End": f"{clip.end:.3f}", "X-Clip-Method": method}
        if download:
            name = Path(self._files.videos[video].file).stem
            headers["Content-Disposition"] = _attachment(f"{name} {clip.start:.1f}-{clip.end:.1f}.mp4")
        return file_response(request, file, "video/mp4", headers)

    def thumbnail(self, video: str, time: float, width: int) -> Response:
        """Return a frame of a video as a picture."""
        with self._files.open(video) as file:
            key = (video, entity_tag(file), round(time, 2), width)
            with self._lock:
                picture = self._pictures.get(key)
            if picture is None:
                try:
                    picture = thumbnail(fd_path(file), time, width)
                except UnreadableVideo as error:
                    raise UndecodableVideo(f"the video cannot be shown: {error.reason}") from None
                with self._lock:
                    self._pictures[key] = picture
                    while len(self._pictures) > _THUMBNAILS:
                        self._pictures.popitem(last=False)
        return Response(picture, media_type="image/jpeg", headers={"Cache-Control": "private, max-age=3600"})

    def _type(self, video: ServedVideo, file: BinaryIO) -> str | None:
        """Return the media type of a video if browsers can play it. What is not a video at all is refused."""
        key = (video.id, entity_tag(file))  # a file may be replaced
        if key not in self._types:
            try:
                self._types[key] = playable_type(fd_path(file), video.file)
            except UnreadableVideo as error:
                raise UndecodableVideo(f"the video cannot be shown: {error.reason}") from None
        return self._types[key]


def _how_to_play(video: ServedVideo, media_type: str | None, start: float, end: float) -> dict[str, Any]:
    if media_type is not None or (video.duration is not None and video.duration <= WHOLE):
        return {"url": f"/videos/{quote(video.id, safe='')}", "offset": 0.0}
    begin = max(0.0, round(start - MARGIN, 1))
    stop = round(min(end + MARGIN, begin + LONGEST), 1)
    part = urlencode({"video": video.id, "start": begin, "end": stop, "exact": "true"})
    return {"url": f"/clip?{part}", "offset": begin}


def _attachment(name: str) -> str:
    """Return a Content-Disposition with a file's name, also for browsers that read ASCII only."""
    plain = re.sub(r"[^A-Za-z0-9 ._-]", "_", name)
    return f"attachment; filename=\"{plain}\"; filename*=UTF-8''{quote(name, safe='')}"
