"""The page in a browser."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

pytest.importorskip("av", reason="decoding videos requires PyAV")
pytest.importorskip("fastapi", reason="the server requires dreamprvr_ray[serve]")

import av
from support.colour_videos import RATE, moments, write_index
from support.web_collection import Collection, running

from benchmarks.browser import Browser, browser
from dreamprvr_ray.errors import UserError
from dreamprvr_ray.video.captions import read_caption_table
from dreamprvr_ray.web.access import Access
from dreamprvr_ray.web.app import create_app
from dreamprvr_ray.web.feedback import CONFIRMED, REJECTED


@dataclass(frozen=True)
class Session:
    browser: Browser
    address: str
    collection: Collection
    downloads: Path


@pytest.fixture(scope="module")
def session(make_collection: Callable[..., Collection], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Session]:
    collection, downloads = make_collection(".mp4", ".mkv", ".avi"), tmp_path_factory.mktemp("downloads")
    app = create_app(collection.served(), Access())
    try:
        with running(app) as address, browser(downloads) as window:
            window.open(address)
            yield Session(window, address, collection, downloads)
    except UserError as error:
        pytest.skip(str(error))


def test_a_sentence_leads_to_its_moment(session: Session) -> None:
    """mp4, mkv and avi: the player is within a frame of the moment, plays it, and stops at its end."""
    from selenium.webdriver import Keys

    for colour in ("red", "green", "blue"):
        session.browser.search(f"something {colour}")
        first = session.browser.script("return [shown[0].video, shown[0].start, shown[0].end]")
        assert first[0] == f"{colour}/clip"
        moment = moments()[colour]
        session.browser.wait("video.readyState >= 2 && !video.seeking", 30)
        assert session.browser.script("return video.currentTime") == pytest.approx(moment.start, abs=1 + 1 / RATE)
        session.browser.script("video.playbackRate = 4")
        session.browser.press(Keys.ENTER)
        session.browser.wait("!video.paused || video.currentTime >= shown[0].end - .1")
        session.browser.wait("video.paused")
        assert session.browser.script("return video.currentTime") == pytest.approx(first[2], abs=0.3)
        assert first[2] == pytest.approx(moment.end, abs=1)
        session.browser.press(Keys.ENTER)  # again
        session.browser.wait("!video.seeking && video.currentTime < shown[0].end - 1")
    assert session.browser.errors() == []


def test_results_can_be_chosen_by_keys(session: Session) -> None:
    from selenium.webdriver import Keys

    session.browser.search("red")
    session.browser.press(Keys.ARROW_DOWN, Keys.ARROW_DOWN)
    assert session.browser.script("return [selected, document.activeElement.getAttribute('aria-current')]") == [
        2,
        "true",
    ]
    assert session.browser.script("return at('name').textContent === shown[2].title")
    session.browser.press(Keys.ARROW_UP)
    assert session.browser.script("return selected") == 1
    session.browser.press(Keys.ESCAPE)
    assert session.browser.script("return document.activeElement.id") == "sentence"


def test_feedback_by_keys(session: Session) -> None:
    session.browser.search("yellow")
    session.browser.press("y")
    session.browser.wait("shown[0].said === true")
    assert [(row.video, row.sentence) for row in read_caption_table(session.collection.index / CONFIRMED)] == [
        ("yellow/clip.mp4", "yellow")
    ]
    session.browser.press("n")
    session.browser.wait("shown[0].said === false")
    assert read_caption_table(session.collection.index / REJECTED)[0].sentence == "yellow"


def test_a_link_opens_the_same_answer(session: Session) -> None:
    from selenium.webdriver import Keys

    session.browser.search("blue")
    session.browser.press(Keys.ARROW_DOWN, Keys.ARROW_DOWN)
    link = session.browser.script("return location.origin + '/' + address(answer.sentence, shown[selected])")
    before = session.browser.script("return [shown.map(each => each.video), selected, shown[selected].start]")
    session.browser.open("about:blank")
    session.browser.open(link)
    session.browser.wait("typeof shown !== 'undefined' && shown.length && selected >= 0")
    after = session.browser.script("return [shown.map(each => each.video), selected, shown[selected].start]")
    assert after[:2] == before[:2] and after[2] == pytest.approx(before[2], abs=0.01)
    session.browser.wait("video.readyState >= 1 && !video.seeking", 30)
    assert session.browser.script("return video.currentTime") == pytest.approx(after[2], abs=0.3)


def test_a_clip_is_downloaded(session: Session) -> None:
    session.browser.search("red")
    session.browser.press("d")
    deadline = time.monotonic() + 20
    while not (found := list(session.downloads.glob("*.mp4"))):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    with av.open(str(found[0])) as container:
        assert sum(1 for _ in container.decode(video=0)) >= 2 * RATE


def test_no_script_of_sentences_or_names_runs(
    session: Session, make_collection: Callable[..., Collection], tmp_path: Path
) -> None:
    evil = "<img src=x onerror=window.hacked=1><script>window.hacked=1</script>"
    plain = make_collection()
    folder = plain.videos / "red" / '"><img src=x onerror=window.hacked=1>'
    folder.mkdir()
    path = folder / "javascript:window.hacked=1;.mp4"
    plain.paths["red"].rename(path)
    write_index(tmp_path / "index", plain.videos, plain.paths | {"red": path})
    collection = Collection(plain.videos, plain.paths, tmp_path / "index")
    with running(create_app(collection.served(), Access())) as address:
        session.browser.open(address)
        session.browser.search(f"red {evil}")
        assert session.browser.script("return shown.some(each => each.video.includes('hacked'))")
        session.browser.wait("video.readyState >= 1", 30)
        session.browser.press("y")
        session.browser.wait("shown[0].said === true")
        session.browser.open(f"{address}/#q={evil}&video={evil}&start=1&end=2")
        session.browser.wait("answer && answer.sentence.startsWith('<img') && !request")
        assert session.browser.script("return [window.hacked, document.querySelectorAll('img[src=x]').length]") == [
            None,
            0,
        ]
        # Even a script that gets into the page does not run.
        blocked = "const s = document.createElement('script'); s.text = 'window.hacked = 1'; document.body.append(s)"
        with pytest.raises(Exception, match="TrustedScript"):
            session.browser.script(blocked)
        assert session.browser.script("return window.hacked") is None
    session.browser.open(session.address)


def test_errors_and_emptiness_are_shown(session: Session) -> None:
    session.browser.open(session.address)
    session.browser.wait("document.activeElement.id === 'sentence'")
    assert "6 videos" in session.browser.wait("at('about').textContent.includes('6') && at('about').textContent")
    session.browser.script(
        "window.before = window.fetch; window.fetch = () => Promise.reject(new TypeError('offline'))"
    )
    session.browser.script("search('red')")
    session.browser.wait("!at('error').hidden")
    assert "does not answer" in session.browser.script("return at('reason').textContent")
    session.browser.script("window.fetch = window.before; at('retry').click()")
    session.browser.wait("shown.length && at('error').hidden")
    session.browser.script("show({...answer, probability: .1}, false)")
    assert "10%" in session.browser.script("return at('unlikely').textContent")
    session.browser.script("show({...answer, results: []}, false)")
    assert "no videos" in session.browser.script("return at('unlikely').textContent")
