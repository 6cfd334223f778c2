"""python -m benchmarks.decoding: seconds of video that are decoded and encoded per second, and the memory of two hours.

The videos are drawn first (H.264, 30 frames per second, a key frame every 250): noise that moves over a gradient.
Frames are taken once a second. The frame encoder is timm's tf_efficientnet_lite0, with random weights.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np

from benchmarks.measured_process import MeasuredProcess, peak_memory
from dreamprvr_ray.command_line import Parser, print_json, run
from dreamprvr_ray.video.decoding import decode

SIZES = {"320x240": (320, 240), "1280x720": (1280, 720)}
RATE = 30  # frames per second of the videos


def write_video(path: Path, seconds: int, size: tuple[int, int]) -> None:
    """Draw a video."""
    import av

    random = np.random.default_rng(0)
    columns, rows = size
    texture = random.integers(0, 256, (rows // 2, columns // 2, 3), dtype=np.uint8)
    gradient = np.linspace(0, 255, columns)[None, :, None] * np.ones((rows, 1, 3))
    background = (gradient * [0.5, 0.8, 1.0]).astype(np.uint8)
    with av.open(str(path), "w") as file:
        stream = file.add_stream("libx264", rate=RATE)
        stream.width, stream.height, stream.pix_fmt = columns, rows, "yuv420p"
        stream.codec_context.gop_size = 250
        stream.options = {"preset": "veryfast"}
        for number in range(seconds * RATE):
            image = np.roll(background, number // 3, axis=1)
            top, left = rows // 4 + round(rows / 8 * np.sin(number / 20)), (3 * number) % (columns // 2)
            image[top : top + texture.shape[0], left : left + texture.shape[1]] = texture
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, RATE)
            file.mux(stream.encode(frame))
        file.mux(stream.encode(None))


def repeat_video(source: Path, path: Path, times: int) -> None:
    """Write a video several times in a row into one file, without encoding it again."""
    import av

    with av.open(str(source)) as first:
        stream = first.streams.video[0]
        packets = [packet for packet in first.demux(stream) if packet.dts is not None]
        length = sum(packet.duration or 0 for packet in packets)
        with av.open(str(path), "w") as file:
            output = file.add_stream_from_template(stream)
            for packet in packets:
                packet.stream = output
            for _ in range(times):
                for packet in packets:
                    file.mux(packet)
                    packet.pts, packet.dts = (packet.pts or 0) + length, (packet.dts or 0) + length


def write_random_encoder(directory: Path) -> str:
    """Write a model of timm with random weights, and return its name as an encoder."""
    from dreamprvr_ray.video.encoders.torchvision_operators import make_torchvision_importable

    make_torchvision_importable()
    import timm
    from timm.models import save_for_hf

    save_for_hf(timm.create_model("tf_efficientnet_lite0"), directory, safe_serialization=True)
    return f"timm:{directory}"


@dataclass(frozen=True)
class Times:
    """How long a video took, in seconds: of the clock, and of the process's threads together."""

    video: float  # the video's length
    decoding: float
    encoding: float
    decoding_cpu: float
    encoding_cpu: float


def timed(cores: int, encoder_name: str) -> Callable[[str], Times]:
    """Return a function that decodes and encodes a video on some of the cores."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores])
    from dreamprvr_ray.video.encoders.registry import open_frame_encoder

    encoder = open_frame_encoder(encoder_name)

    def measure(path: str) -> Times:
        frames = decode(path, 1, threads=cores)
        clock, cpu = [time.perf_counter()], [time.process_time()]
        images = [frame.image for frame in frames]
        clock, cpu = [*clock, time.perf_counter()], [*cpu, time.process_time()]
        encoder.encode_frames(images)
        clock, cpu = [*clock, time.perf_counter()], [*cpu, time.process_time()]
        (decoding, encoding), (decoding_cpu, encoding_cpu) = np.diff(clock), np.diff(cpu)
        return Times(frames.decoded_seconds, decoding, encoding, decoding_cpu, encoding_cpu)

    return measure


def memory_of(threads: int) -> Callable[[str], list[tuple[float, float]]]:
    """Return a function that decodes a video, and returns the peak memory in MiB after some seconds of video."""

    def measure(path: str) -> list[tuple[float, float]]:
        found = []
        for frame in decode(path, 1, threads=threads):
            if frame.time in (10, 100) or frame.time % 1800 == 1799:
                found.append((frame.time, peak_memory() * 1024))
        return found

    return measure


def main(arguments: list[str]) -> None:
    parser = Parser("decoding", "Measure decoding and encoding of videos.", package="benchmarks")
    parser.add_argument("--seconds", type=int, default=60, help="length of the videos (default: 60)")
    parser.add_argument("--rounds", type=int, default=3, help="measurements, of which the median is printed")
    parser.add_argument("--hours", type=float, default=2, help="length of the video for memory (default: 2)")
    options = parser.parse_args(arguments)
    result: dict[str, object] = {}
    with tempfile.TemporaryDirectory(prefix="dreamprvr-decoding-") as name:
        folder = Path(name)
        encoder = write_random_encoder(folder / "encoder")
        for title, size in SIZES.items():
            write_video(folder / f"{title}.mp4", options.seconds, size)
        for cores in (1, 2):
            process = MeasuredProcess(cores, timed, cores, encoder)
            for title in SIZES:
                rounds = [process(str(folder / f"{title}.mp4")) for _ in range(options.rounds + 1)][1:]
                rates = {
                    field: statistics.median(each.video / getattr(each, field) for each in rounds)
                    for field in ("decoding", "encoding", "decoding_cpu", "encoding_cpu")
                }
                share = rates["encoding_cpu"] / (rates["decoding_cpu"] + rates["encoding_cpu"])
                load = os.getloadavg()[0]
                print(
                    f"{title}, {cores} cores, seconds of video: decoding {rates['decoding']:.0f} per second and "
                    f"{rates['decoding_cpu']:.0f} per CPU second, encoding {rates['encoding']:.0f} and "
                    f"{rates['encoding_cpu']:.0f}; decoding takes {share:.0%} of the CPU time; load {load:.1f}",
                    flush=True,
                )
                result[f"{title}, {cores} cores"] = rates | {"load": load}
            process.close()
        long = folder / "long.mp4"
        repeat_video(folder / "320x240.mp4", long, max(1, round(options.hours * 3600 / options.seconds)))
        process = MeasuredProcess(1, memory_of, 1)
        peaks = process(str(long))
        process.close()
        print("peak memory: " + ", ".join(f"{peak:.0f} MiB after {seconds:.0f} s" for seconds, peak in peaks))
        result["peak_mib"] = dict(peaks)
    print_json(result)


if __name__ == "__main__":
    run(main)
