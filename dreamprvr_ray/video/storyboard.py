"""What the demo's videos show, and the sentences about it: everything about a video except its pixels.

In each of a video's events, one thing gives way to another: it turns into it, or leaves as the other one comes. A thing
is a shape of a colour. All videos draw from the same things, so that each is seen in many videos, but no two videos of
a split show the same two things one after the other: the moment that a sentence describes identifies its video, and
neither of its things does.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

COLOURS: Mapping[str, tuple[int, int, int]] = {
    "red": (215, 35, 35),
    "yellow": (245, 220, 40),
    "green": (40, 165, 65),
    "blue": (40, 75, 220),
    "white": (250, 250, 250),
    "black": (12, 12, 12),
}
SHAPES = ("circle", "square", "triangle", "star", "ring", "cross", "diamond", "heart")
BACKGROUNDS = ("hatched", "striped", "dotted", "checkered", "brick", "shaded")
ENTRANCES = ("appears", "grows", "slides")
EXITS = ("vanishes", "shrinks", "slides")
EVENTS = (2, 5)  # of a video, both included
SHOWN = (1.5, 2.4)  # seconds for which a thing is shown
PAUSE = (0.7, 1.3)  # seconds without a thing, around each event
RADIUS = (48.0, 76.0)  # of a thing, in pixels of a frame of 256
_TRIES = 200  # draws of an event before a pair of things may occur a second time in a split

# Sentences by what the two things have in common. A and B are the things, as in "red circle".
_NEW_COLOUR = (
    "A {a} turns {colour}.",
    "The {shape} goes from {first} to {colour}.",
    "A {a} changes its colour to {colour}.",
    "Here a {shape} that was {first} becomes {colour}.",
)
_NEW_SHAPE = (
    "A {a} becomes a {shape}.",
    "A {a} changes into a {b}.",
    "Something {first} turns from a {before} into a {shape}.",
)
_TURNS = (
    "A {a} turns into a {b}.",
    "The {a} becomes a {b}.",
    "We see a {a}, which changes into a {b}.",
    "A {b} is what the {a} turns into.",
)
_LEAVES = (
    "A {a} leaves and a {b} takes its place.",
    "First there is a {a}, then a {b}.",
    "After a {a} has gone, a {b} comes.",
    "A {a} is replaced by a {b}.",
    "A {b} appears as soon as the {a} is gone.",
    "A {b} follows a {a}.",
)


@dataclass(frozen=True)
class Thing:
    """A shape of a colour, keys of `SHAPES` and `COLOURS`."""

    colour: str
    shape: str

    def __str__(self) -> str:
        return f"{self.colour} {self.shape}"


@dataclass(frozen=True)
class Event:
    """Two things, one after the other. Times are seconds from the start of the video, places pixels."""

    first: Thing
    second: Thing
    turns: bool  # the first turns into the second at its place; otherwise it leaves and the second comes
    start: float
    change: float  # when the second thing takes over
    end: float
    entrance: str  # of the first thing, and of the second unless it `turns`; one of ENTRANCES
    exit: str  # one of EXITS
    radius: float
    places: tuple[tuple[float, float], tuple[float, float]]  # (x, y) of the two things' centres, from the frame's
    sentence: str


@dataclass(frozen=True)
class Storyboard:
    """What one video shows."""

    name: str
    background: str  # one of BACKGROUNDS
    brightness: float  # of the background, 0 to 1
    duration: float  # seconds
    events: tuple[Event, ...]


def storyboards(split: str, count: int, seed: int) -> list[Storyboard]:
    """Return the storyboards of a split's `count` videos, which depend on (split, count, seed) alone."""
    random = np.random.default_rng([seed, *split.encode()])
    used: set[frozenset[Thing]] = set()
    return [_storyboard(random, f"{split}{number:03d}", used) for number in range(count)]


def _storyboard(random: np.random.Generator, name: str, used: set[frozenset[Thing]]) -> Storyboard:
    events, time = [], 0.0
    for _ in range(int(random.integers(EVENTS[0], EVENTS[1] + 1))):
        event = _event(random, time + float(random.uniform(*PAUSE)), used)
        events.append(event)
        time = event.end
    background = str(random.choice(BACKGROUNDS))
    brightness = float(random.uniform(0.42, 0.6))
    return Storyboard(name, background, brightness, round(time + float(random.uniform(*PAUSE)), 2), tuple(events))


def _event(random: np.random.Generator, start: float, used: set[frozenset[Thing]]) -> Event:
    for _ in range(_TRIES):
        first, second = _things(random)
        if frozenset((first, second)) not in used:
            break
    used.add(frozenset((first, second)))
    turns = first.shape == second.shape or first.colour == second.colour or bool(random.random() < 0.5)
    change = start + float(random.uniform(*SHOWN))
    radius = float(random.uniform(*RADIUS))
    room = 108 - radius
    places = [(float(x), float(y)) for x, y in random.uniform(-room, room, size=(2, 2))]
    return Event(
        first=first,
        second=second,
        turns=turns,
        start=round(start, 2),
        change=round(change, 2),
        end=round(change + float(random.uniform(*SHOWN)), 2),
        entrance=str(random.choice(ENTRANCES)),
        exit=str(random.choice(EXITS)),
        radius=radius,
        places=(places[0], places[0] if turns else places[1]),
        sentence=_sentence(random, first, second, turns),
    )


def _things(random: np.random.Generator) -> tuple[Thing, Thing]:
    """Draw two different things: one in seven pairs has the same shape, one in seven the same colour."""
    colours = [str(name) for name in random.choice(list(COLOURS), size=2, replace=False)]
    shapes = [str(name) for name in random.choice(SHAPES, size=2, replace=False)]
    same = random.integers(7)
    second = Thing(colours[0] if same == 0 else colours[1], shapes[0] if same == 1 else shapes[1])
    return Thing(colours[0], shapes[0]), second


def _sentence(random: np.random.Generator, first: Thing, second: Thing, turns: bool) -> str:
    if first.shape == second.shape:
        forms: tuple[str, ...] = _NEW_COLOUR
    elif first.colour == second.colour:
        forms = _NEW_SHAPE
    else:
        forms = _TURNS if turns else _LEAVES
    return forms[int(random.integers(len(forms)))].format(
        a=first, b=second, first=first.colour, before=first.shape, colour=second.colour, shape=second.shape
    )
