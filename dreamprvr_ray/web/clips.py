"""Parts of videos as files that browsers play, and single frames as pictures.

A clip is cut without encoding where a key frame is close to its start and its codecs are such that every browser plays;
else it is decoded and encoded as H.264 and AAC. Times are those of `video.decoding`: 0 is where the file's streams
start.
"""

from __future__ import annotations

import io
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dreamprvr_ray.errors import UserError
from dreamprvr_ray.video.decoding import decode, start_stamp
from dreamprvr_ray.video.files import FALLBACK_RATE, UnreadableVideo, examine, open_container

if TYPE_CHECKING:
    from av.audio.frame import AudioFrame
    from av.container import InputContainer, OutputContainer
    from av.video.stream import VideoStream

LONGEST = 600.0  # seconds of a clip
KEY_FRAME_TOLERANCE = 0.5  # seconds that a clip may start early so that nothing is encoded
MAX_RATE = 30  # frames per second of an encoded clip
MAX_SIDE = 1280  # pixels of an encoded clip's longer side
SOUND_RATE = 48000
_MP4, _WEBM = "mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm"
# What browsers play, by container. 10-bit H.264 and mpeg4 they do not.
_VIDEO = {_MP4: {"h264", "vp9", "av1"}, _WEBM: {"vp8", "vp9", "av1"}}
_SOUND = {_MP4: {"aac", "mp3", "opus", "flac"}, _WEBM: {"opus", "vorbis"}}
_PIXELS = {"yuv420p", "yuvj420p"}


@dataclass(frozen=True)
class Clip:
    """What a clip's file shows.

    Attributes:
        start, end: Seconds of the video, as exactly as its key frames and frames allow.
        is_copied: Whether it was cut without encoding.
    """

    start: float
    end: float
    is_copied: bool


def playable_type(path: str, name: str) -> str | None:
    """Return the media type of a file if browsers play it as it is, else None.

    Args:
        path: The file.
        name: Its name, whose ending tells webm from other Matroska files.

    Raises:
        UnreadableVideo: It is not a video.
    """
    with open_container(path) as (container, stream):
        kind = container.format.name
        is_webm = kind == _WEBM and Path(name).suffix.lower() == ".webm"
        if not is_webm and kind != _MP4:
            return None
        codec = stream.codec_context
        if codec.name not in _VIDEO[kind] or (codec.name == "h264" and codec.pix_fmt not in _PIXELS):
            return None
        if any(each.codec_context is None or each.codec_context.name not in _SOUND[kind] for each in _sound(container)):
            return None
        return "video/webm" if is_webm else "video/mp4"


def write_clip(path: str, out: str, start: float, end: float, *, exact: bool = False) -> Clip:
    """Write the part [start, end) of a video, in seconds, as an mp4 file that browsers play.

    Args:
        path: The video.
        out: The file to write; it may exist.
        exact: Start within a frame of `start`, even if that means to encode.

    Raises:
        UnreadableVideo: It cannot be decoded, or has no frame in this part.
        UserError: The part is empty or too long.
    """
    if not 0 <= start < end or end - start > LONGEST:
        raise UserError(f"start={start:g}, end={end:g}: must be 0 <= start < end, and at most {LONGEST:g} s apart")
    early = 0.0 if exact else KEY_FRAME_TOLERANCE
    return _copy(path, out, start, end, early) or _encode(path, out, start, end)


def thumbnail(path: str, time: float, width: int) -> bytes:
    """Return the frame at a time of a video, in seconds, as a JPEG picture of a width in pixels.

    After its end, that is the first frame. Raises `UnreadableVideo` if there is none.
    """
    from PIL import Image

    image = None
    for begin in dict.fromkeys((time, 0.0)):
        with decode(path, fps=100, start=begin, end=begin + 1) as frames:
            try:
                image = next(frames).image
            except StopIteration:  # after the end
                continue
        break
    if image is None:
        raise UnreadableVideo(path, "no frame can be decoded")
    picture = Image.fromarray(image)
    picture.thumbnail((width, 2 * width))
    written = io.BytesIO()
    picture.save(written, "JPEG", quality=80)
    return written.getvalue()


def _copy(path: str, out: str, start: float, end: float, early: float) -> Clip | None:
    """Write a clip without encoding, from the key frame at or before its start; None if it cannot be done well.

    The clip may start `early` seconds before `start`.
    """
    import av
    from av.error import FFmpegError

    with open_container(path) as (source, stream):
        sound = next(iter(_sound(source)), None)
        if not _can_be_copied(source, stream, sound):
            return None
        origin, base = start_stamp(source, stream), stream.time_base
        if origin is None or base is None:
            return None
        try:
            # A clip may begin within the frame that is shown at its start.
            source.seek(origin + int(start / base), stream=stream)
            packets = source.demux([stream] if sound is None else [stream, sound])
            first = next(packet for packet in packets if packet.stream.index == stream.index)
        except (FFmpegError, StopIteration):
            return None
        if first.pts is None or not first.is_keyframe:
            return None
        key = (first.pts - origin) * base
        if not -0.001 <= start - key <= early + 0.001:
            return None
        zero = first.pts * base  # seconds of all streams at which the clip starts
        with av.open(out, "w", format="mp4", options={"movflags": "+faststart"}) as target:
            outputs = {stream.index: target.add_stream_from_template(stream)}
            if sound is not None:
                outputs[sound.index] = target.add_stream_from_template(sound)
            stop = float(zero + Fraction(end) - key)
            last = _copy_packets(_with_decoding_times(first, packets), target, outputs, zero, stop)
    return Clip(float(key), float(key) + last, True)


def _copy_packets(
    packets: Iterator[Any], target: OutputContainer, outputs: dict[int, Any], zero: Fraction, stop: float
) -> float:
    """Copy packets that start before `stop`, and return the seconds from `zero` to the end of the last frame."""
    from av.error import FFmpegError

    finished: set[int] = set()
    last = 0.0
    try:
        for packet in packets:
            index, base = packet.stream.index, packet.time_base
            is_video = packet.stream.type == "video"
            # A frame after the end may be decoded before one that is shown, so that the order of decoding decides.
            if float((packet.dts if is_video else packet.pts) * base) >= stop:
                finished.add(index)
                if len(finished) == len(outputs):
                    break
                continue
            if packet.pts * base < zero:  # frames that need those before the key frame; sound before it
                continue
            last = max(last, float((packet.pts + (packet.duration or 0)) * base - zero)) if is_video else last
            shift = round(zero / base)
            packet.pts, packet.dts = packet.pts - shift, packet.dts - shift
            packet.stream = outputs[index]
            target.mux(packet)
    except FFmpegError:  # a damaged file: up to there
        pass
    return last


def _can_be_copied(source: InputContainer, stream: VideoStream, sound: Any | None) -> bool:
    codec = stream.codec_context
    if source.format.name not in _VIDEO or codec.name != "h264" or codec.pix_fmt not in _PIXELS:
        return False
    return sound is None or (sound.codec_context is not None and sound.codec_context.name in ("aac", "mp3"))


def _encode(path: str, out: str, start: float, end: float) -> Clip:
    """Decode and encode a clip."""
    import av
    from av.video.frame import VideoFrame

    rate = min(Fraction(examine(path).frame_rate or FALLBACK_RATE).limit_denominator(1001), Fraction(MAX_RATE))
    step = 1 / float(rate)
    with (
        decode(path, float(rate), start=start, end=end) as frames,
        av.open(out, "w", format="mp4", options={"movflags": "+faststart"}) as target,
    ):
        sound = _SoundEncoder(path, target, start, end)
        stream: Any = None
        first = last = 0.0
        for number, shown in enumerate(frames):
            if stream is None:
                first = shown.time
                stream = target.add_stream("libx264", rate=rate, options={"preset": "veryfast", "crf": "22"})
                stream.height, stream.width = _size(*shown.image.shape[:2])
                stream.pix_fmt = "yuv420p"
                sound.add_stream()
            picture = VideoFrame.from_ndarray(shown.image, format="rgb24")
            picture = picture.reformat(stream.width, stream.height, "yuv420p")
            picture.pts, picture.time_base = number, 1 / rate
            target.mux(stream.encode(picture))
            last = shown.time + step
            sound.encode_until(last)
        if stream is None:
            raise UnreadableVideo(path, "no frame can be decoded in this part")
        target.mux(stream.encode())
        sound.finish(min(last, end))
    return Clip(first, last, False)


class _SoundEncoder:
    """Encodes the sound of a part of a video in step with its frames; without sound, it does nothing."""

    def __init__(self, path: str, target: OutputContainer, start: float, end: float) -> None:
        self._target, self._frames = target, _sound_frames(path, start, end)
        self._next = next(self._frames, None)
        self._stream: Any = None

    def add_stream(self) -> None:
        if self._next is not None:
            self._stream = self._target.add_stream("aac", rate=SOUND_RATE, layout="stereo")

    def encode_until(self, time: float) -> None:
        while self._next is not None and self._next[0] < time:
            self._target.mux(self._stream.encode(self._next[1]))
            self._next = next(self._frames, None)

    def finish(self, time: float) -> None:
        self.encode_until(time)
        self._frames.close()  # type: ignore[attr-defined]
        if self._stream is not None:
            self._target.mux(self._stream.encode())


def _sound_frames(path: str, start: float, end: float) -> Iterator[tuple[float, AudioFrame]]:
    """Yield frames of sound with their time in the video, their time stamps counted from `start`."""
    from av.audio.resampler import AudioResampler
    from av.error import FFmpegError

    with open_container(path) as (container, stream):
        sound = next(iter(_sound(container)), None)
        if sound is None or sound.codec_context is None:
            return
        origin = float((start_stamp(container, stream) or 0) * (stream.time_base or 0))
        resampler = AudioResampler("fltp", "stereo", SOUND_RATE)
        try:
            if start > 0:
                container.seek(round((origin + start) * 1_000_000))
            for frame in container.decode(sound):
                if frame.time is None or (time := frame.time - origin) < start:
                    continue
                if time >= end:
                    return
                frame.pts, frame.time_base = round((time - start) * SOUND_RATE), Fraction(1, SOUND_RATE)
                for each in resampler.resample(frame):
                    yield time, each
        except FFmpegError:  # damaged: up to there
            return


def _sound(container: InputContainer) -> list[Any]:
    return list(container.streams.audio)


def _size(height: int, width: int) -> tuple[int, int]:
    """Return the height and width of an encoded clip: even, as H.264 needs them."""
    scale = min(1.0, MAX_SIDE / max(height, width))
    return max(2, round(height * scale / 2) * 2), max(2, round(width * scale / 2) * 2)


def _with_decoding_times(first: Any, rest: Iterator[Any]) -> Iterator[Any]:
    """Yield packets, all with a time of decoding: in Matroska, the first ones of reordered frames have none."""
    held: list[Any] = []
    for packet in itertools.chain([first], rest):
        if packet.pts is None or not packet.size:  # such as the empty one at the end
            continue
        if packet.dts is None:
            if packet.stream.index == first.stream.index:
                held.append(packet)
            continue
        if held and packet.stream.index == first.stream.index:
            for place, each in enumerate(held):
                each.dts = packet.dts - (len(held) - place) * max(packet.duration or 1, 1)
            yield from held
            held = []
        yield packet
