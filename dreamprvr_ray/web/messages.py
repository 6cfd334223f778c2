"""What clients send to the API, checked."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

MOST_RESULTS = 100
LONGEST_SENTENCE = 1000  # characters


def _plain_sentence(sentence: str) -> str:
    """Return a sentence in one line. Raises ValueError if it is empty or could not be kept as a caption."""
    if "\0" in sentence:
        raise ValueError("must not hold NUL")
    sentence = " ".join(sentence.split())
    if not sentence:
        raise ValueError("must not be empty")
    return sentence


_Sentence = Annotated[str, Field(max_length=LONGEST_SENTENCE), AfterValidator(_plain_sentence)]
_Seconds = Annotated[float, Field(ge=0, lt=10**6, allow_inf_nan=False)]


class _Request(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class FindRequest(_Request):
    """A search."""

    sentence: _Sentence = Field(description="what happens in the moment", examples=["a person opens a door"])
    top: int = Field(10, ge=1, le=MOST_RESULTS, description="how many videos to return")


class FeedbackRequest(_Request):
    """What a user says about a moment."""

    video: str = Field(min_length=1, max_length=4096, description="id of the video")
    sentence: _Sentence = Field(description="the sentence that was searched for")
    start: _Seconds = Field(description="seconds")
    end: _Seconds = Field(description="seconds")
    right: bool = Field(description="whether the moment shows the sentence")

    @model_validator(mode="after")
    def _check_order(self) -> FeedbackRequest:
        if not self.start < self.end:
            raise ValueError("start must be before end")
        return self
