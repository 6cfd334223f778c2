"""Speed and memory of an extraction, from a synthetic video of any length.

    python -m benchmarks.extract --seconds 7200 [--workers 1] [--encoder timm:tf_efficientnet_lite0.in1k] [--files 1]

Writes moving noise (H.264, 640 x 360, 10 frames a second by default), runs `extract`, and prints seconds of video a
second, the CPU time of decoding and encoding, and the peak memory of each kind of process. By default, frames are
encoded by their mean colours, which costs almost nothing.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import psutil

from dreamprvr_ray.command_line import Parser, print_json, run

SAMPLE_SECONDS = 0.2
KINDS = {"Decoder": "decoding", "FrameEncoding": "encoding"}  # by a part of a process's title
OTHERS = "others"


class MeanColours:
    """An encoder that costs almost nothing, so that decoding and Ray are measured."""

    name, size, precision = "benchmarks.extract:MeanColours", 3, "fp32"

    def __init__(self, device: object) -> None:
        self.version = {"library": "benchmarks", "version": 1}

    def encode_frames(self, frames: Sequence[np.ndarray]) -> np.ndarray:
        """Return the mean colours (N, 3) of frames."""
        return np.stack([frame[::8, ::8].reshape(-1, 3).mean(0) for frame in frames]).astype(np.float32)


def main(arguments: list[str]) -> None:
    parser = Parser("extract", "Measure the speed and the memory of an extraction.", package="benchmarks")
    parser.add_argument("--seconds", type=int, default=600, help="length of each video (default: 600)")
    parser.add_argument("--files", type=int, default=1, help="number of videos (default: 1)")
    parser.add_argument("--rate", type=int, default=10, help="frames per second of the videos (default: 10)")
    parser.add_argument("--size", default="640x360", help="width and height (default: 640x360)")
    parser.add_argument("--fps", type=float, default=1.0, help="frames per second to encode (default: 1)")
    parser.add_argument("--encoder", default=MeanColours.name, help="encoder of frames (default: mean colours)")
    parser.add_argument("--workers", type=int, help="processes that decode and encode (default: one per CPU)")
    options = parser.parse_args(arguments)
    width, height = map(int, options.size.split("x"))
    with tempfile.TemporaryDirectory(prefix="dreamprvr-extract-") as folder:
        videos = Path(folder) / "videos"
        videos.mkdir()
        for number in range(options.files):
            write_noise(videos / f"{number}.mp4", options.seconds, options.rate, width, height, number)
        words = ["--videos", str(videos), "--out", f"{folder}/source", "--encoder", options.encoder]
        words += ["--fps", str(options.fps)]
        if options.workers is not None:
            words += ["--workers", str(options.workers)]
        results = measure([sys.executable, "-m", "dreamprvr_ray.extract", *words])
    results |= {"seconds_of_video": float(options.files * options.seconds)}
    results["seconds_of_video_per_second"] = results["seconds_of_video"] / results["seconds_encoding_and_decoding"]
    for name, value in results.items():
        print(f"{name}: {value:,.1f}")
    if options.json:
        print_json({name: round(value, 2) for name, value in results.items()})


def write_noise(path: Path, seconds: int, rate: int, width: int, height: int, seed: int) -> None:
    """Write a video of coarse noise that moves."""
    import av

    random = np.random.default_rng(seed)
    noise = random.integers(0, 256, (height // 8 + 64, width // 8 + 64, 3), np.uint8)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=rate, options={"preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for number in range(seconds * rate):
            y, x = number % 64, number // 64 % 64
            image = np.repeat(np.repeat(noise[y : y + height // 8, x : x + width // 8], 8, 0), 8, 1)
            padded = np.zeros((height, width, 3), np.uint8)
            padded[: image.shape[0], : image.shape[1]] = image
            container.mux(stream.encode(av.VideoFrame.from_ndarray(padded, format="rgb24")))
        container.mux(stream.encode())


def measure(command: list[str]) -> dict[str, float]:
    """Run an extraction and return its times in seconds and its peaks of memory in MB."""
    began = time.monotonic()
    driver = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    cpu: dict[tuple[int, str], float] = {}
    peaks: defaultdict[str, float] = defaultdict(float)
    first: float | None = None
    last = began
    family = psutil.Process(driver.pid)
    while driver.poll() is None:
        together: defaultdict[str, float] = defaultdict(float)
        with suppress(psutil.NoSuchProcess):
            for process in [family, *family.children(recursive=True)]:
                with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                    kind = "driver" if process.pid == driver.pid else _kind(process)
                    times = process.cpu_times()
                    cpu[process.pid, kind] = times.user + times.system
                    memory = process.memory_info()
                    peaks[f"largest process: {kind}"] = max(
                        peaks[f"largest process: {kind}"], (memory.rss - memory.shared) / 1e6
                    )
                    together[kind] += (memory.rss - memory.shared) / 1e6
        if together.keys() & set(KINDS.values()):
            first, last = first or time.monotonic(), time.monotonic()
        peaks["all processes"] = max(peaks["all processes"], sum(together.values()))
        time.sleep(SAMPLE_SECONDS)
    if driver.wait():
        raise SystemExit(f"the extraction failed with exit code {driver.returncode}")
    results = {"seconds": time.monotonic() - began, "seconds_encoding_and_decoding": last - (first or began)}
    for kind in (*KINDS.values(), "driver", OTHERS):
        results[f"cpu_seconds_{kind}"] = sum(seconds for (_, own), seconds in cpu.items() if own == kind)
    return results | {f"peak_mb_{name.replace(': ', ' ').replace(' ', '_')}": peak for name, peak in peaks.items()}


def _kind(process: psutil.Process) -> str:
    title = " ".join(process.cmdline())
    return next((kind for part, kind in KINDS.items() if part in title), OTHERS)


if __name__ == "__main__":
    run(main)
