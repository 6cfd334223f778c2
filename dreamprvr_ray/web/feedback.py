"""What users say about results: lines of sentences with the moments that they confirm, and of those that they reject.

    feedback.jsonl             {"video", "sentence", "start", "end"}: `extract --captions` reads it as captions
    feedback_rejected.jsonl    the same for moments that do not show the sentence

Both are in the directory of the index. A line is appended as a whole, also by several processes.
"""

from __future__ import annotations

import fcntl
import json
import os
import threading
from dataclasses import dataclass
from pathlib import Path

from dreamprvr_ray.errors import Failure
from dreamprvr_ray.storage.files import open_lock_file, reason

CONFIRMED, REJECTED = "feedback.jsonl", "feedback_rejected.jsonl"


@dataclass(frozen=True)
class Feedback:
    """A moment that a user confirms or rejects.

    Attributes:
        video: The video's file as captions name it, or its id if the index knows no file.
        sentence: The sentence that was searched for.
        start, end: The moment, in seconds.
        is_right: Whether the moment shows the sentence.
    """

    video: str
    sentence: str
    start: float
    end: float
    is_right: bool

    def line(self) -> str:
        """Return the line that records it."""
        values = {
            "video": self.video,
            "sentence": self.sentence,
            "start": round(self.start, 3),
            "end": round(self.end, 3),
        }
        return json.dumps(values, ensure_ascii=False) + "\n"


class FeedbackFiles:
    """Appends feedback to the files of an index."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._lock = threading.Lock()  # locks of files do not exclude threads that share an open file

    def append(self, feedback: Feedback) -> bool:
        """Record feedback, and return whether it is new: a line that exists is not repeated.

        Raises `Failure` if it cannot be written; the file is then as before.
        """
        path = self._directory / (CONFIRMED if feedback.is_right else REJECTED)
        line = feedback.line().encode()
        try:
            with self._lock, open_lock_file(path) as file:
                fcntl.flock(file, fcntl.LOCK_EX)
                content = file.read()
                if line in content.splitlines(keepends=True):
                    return False
                size = len(content)
                if content and not content.endswith(b"\n"):  # as an editor may leave it
                    line = b"\n" + line
                file.seek(size)
                try:
                    if file.write(line) != len(line):
                        raise OSError(28, os.strerror(28))
                    os.fsync(file.fileno())
                except OSError:
                    file.truncate(size)
                    raise
        except OSError as error:
            raise Failure(f"{path}: cannot be written: {reason(error)}") from None
        return True
