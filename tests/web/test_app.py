"""The API over an index of colour videos."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote

import pytest

pytest.importorskip("av", reason="decoding videos requires PyAV")
pytest.importorskip("fastapi", reason="the server requires dreamprvr_ray[serve]")

import av
from PIL import Image
from starlette.testclient import TestClient
from support.colour_videos import COLOURS, SECONDS, moments
from support.web_collection import Collection

from dreamprvr_ray.index.index import Index
from dreamprvr_ray.video.captions import read_caption_table
from dreamprvr_ray.web.access import Access, token_digest
from dreamprvr_ray.web.feedback import CONFIRMED, REJECTED


def find(client: TestClient, sentence: str, top: int = 10) -> dict:
    answer = client.post("/find", json={"sentence": sentence, "top": top})
    assert answer.status_code == 200, answer.text
    return answer.json()


@pytest.mark.parametrize("colour", COLOURS)
def test_find_answers_as_the_index(client: TestClient, collection: Collection, colour: str) -> None:
    answer = find(client, f"  something\n{colour} ", 3)
    expected = Index.open(collection.index).find(f"something {colour}", 3).to_dict()
    assert answer["sentence"] == f"something {colour}" and answer["videos"] == len(COLOURS)
    for found, plain in zip(answer["results"], expected["results"], strict=True):
        assert {key: found[key] for key in ("rank", "video", "start", "end", "score")} == {
            key: plain[key] for key in ("rank", "video", "start", "end", "score")
        }
    best = answer["results"][0]
    assert best["video"] == f"{colour}/clip"
    assert (best["start"], best["end"]) == pytest.approx((moments()[colour].start, moments()[colour].end), abs=0.5)


def test_the_video_of_a_result_can_be_played(client: TestClient, collection: Collection) -> None:
    """mp4 and webm as they are; mkv and avi as mp4 files that show the same."""
    for found in find(client, "red")["results"]:
        colour = found["video"].split("/")[0]
        path, moment = collection.paths[colour], moments()[colour]
        url = found["media"]["url"]
        assert url == f"/videos/{quote(found['video'], safe='')}" and found["media"]["offset"] == 0
        whole = client.get(url)
        part = client.get(url, headers={"Range": "bytes=100-299"})
        assert whole.status_code == 200 and part.status_code == 206
        assert part.content == whole.content[100:300]
        assert (whole.content == path.read_bytes()) == (path.suffix in (".mp4", ".webm"))
        with av.open(io.BytesIO(whole.content)) as container:
            assert float(container.duration) / 1e6 == pytest.approx(SECONDS, abs=0.3)
        picture = client.get(f"/thumbnail?video={quote(found['video'])}&time={moment.start + 2}&width=64")
        assert picture.headers["content-type"] == "image/jpeg"
        shown = Image.open(io.BytesIO(picture.content)).resize((1, 1)).getpixel((0, 0))
        assert all(abs(has - should) < 30 for has, should in zip(shown, COLOURS[colour], strict=True))


def test_a_clip_is_cut_and_downloaded(client: TestClient) -> None:
    url = "/clip?video=green/clip&start=4.5&end=7&exact=true"
    clip = client.get(url)
    assert clip.status_code == 200 and clip.headers["content-type"] == "video/mp4"
    assert (clip.headers["x-clip-start"], clip.headers["x-clip-method"]) == ("4.500", "encode")
    with av.open(io.BytesIO(clip.content)) as container:
        frames = [frame.to_ndarray(format="rgb24")[45, 80] for frame in container.decode(video=0)]
    assert len(frames) == 10 and all(abs(int(frame[1]) - 200) < 30 for frame in frames)
    assert client.get(url, headers={"Range": "bytes=0-9"}).content == clip.content[:10]
    assert client.head(url).headers["content-length"] == str(len(clip.content))
    named = client.get("/clip?video=green/clip&start=4&end=7&download=true").headers["content-disposition"]
    assert re.match(r'attachment; filename="clip \d+\.\d-\d+\.\d\.mp4"', named)


def test_feedback_is_kept_next_to_the_index(make_collection: Callable[..., Collection]) -> None:
    collection = make_collection()
    client = collection.client()
    said = {"video": "red/clip", "sentence": "something  red", "start": 2.04, "end": 99.0, "right": True}
    assert client.post("/feedback", json=said).json() == {"recorded": True, "new": True}
    assert client.post("/feedback", json=said).json() == {"recorded": True, "new": False}
    assert client.post("/feedback", json=said | {"right": False, "sentence": "blue"}).json()["new"]
    [row] = read_caption_table(collection.index / CONFIRMED)
    assert (row.video, row.sentence, row.start, row.end) == ("red/clip.mp4", "something red", 2.04, SECONDS)
    [rejected] = read_caption_table(collection.index / REJECTED)
    assert rejected.sentence == "blue"
    for wrong in (
        {"video": "other"}, {"end": 1}, {"start": 50}, {"sentence": " "}, {"sentence": "a\0"}, {"right": 1}, {"x": 1},
    ):  # fmt: skip
        assert client.post("/feedback", json=said | wrong).status_code in (404, 422)
    assert len(read_caption_table(collection.index / CONFIRMED)) == 1
    find(client, "red")  # the index is as before
    assert {path.name for path in collection.index.iterdir()} >= {CONFIRMED, REJECTED, "index.json"}


def test_a_file_that_was_replaced_is_not_served(make_collection: Callable[..., Collection], tmp_path: Path) -> None:
    collection = make_collection()
    client, path = collection.client(), collection.paths["red"]
    assert client.get("/videos/red%2Fclip").status_code == 200
    content = path.read_bytes()
    path.write_text("the password is swordfish\n" * 200)
    urls = ("/videos/red/clip", "/clip?video=red/clip&start=1&end=2", "/thumbnail?video=red/clip&time=1")
    for url in urls:
        answer = client.get(url)
        assert answer.status_code == 422 and "swordfish" not in answer.text, url
    assert find(client, "red", 1)["results"][0]["media"] is None
    path.unlink()
    (tmp_path / "other.mp4").write_bytes(content)
    path.symlink_to(tmp_path / "other.mp4")
    assert [client.get(url).status_code for url in urls] == [410, 410, 410]
    path.unlink()
    assert [client.get(url).status_code for url in urls] == [404, 404, 404]
    result = find(client, "red", 1)["results"][0]
    assert result["video"] == "red/clip" and result["reason"] == "The file of this video is missing."


def test_health_metrics_and_description(client: TestClient) -> None:
    assert client.get("/health").json() == {"status": "ok", "videos": len(COLOURS)}
    find(client, "red")
    text = client.get("/metrics").text
    assert f"dreamprvr_ray_videos {len(COLOURS)}.0" in text
    assert re.search(r'dreamprvr_ray_requests_total\{route="/find",status="200"\} [1-9]', text)
    assert re.search(r'dreamprvr_ray_request_seconds_bucket\{le="0.1",route="/health"\} [1-9]', text)
    described = client.get("/openapi.json").json()["paths"]
    page = client.get("/docs")
    for path in ("/find", "/videos/{video}", "/clip", "/thumbnail", "/feedback", "/health", "/metrics"):
        assert path in described and path in page.text
    assert "http" not in re.sub(r'href="/openapi.json"|http-equiv', "", page.text.replace("HTTP", ""))


def test_the_page_needs_nothing_from_a_network(client: TestClient) -> None:
    answer = client.get("/")
    assert not re.search(r"""(src|href)=["']?(https?:)?//""", answer.text)
    assert set(re.findall(r"https?://[^\"'` ]+", answer.text)) <= {"http://www.w3.org/2000/svg"}
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy and "script-src 'sha256-" in policy
    assert "innerHTML" not in answer.text


def test_the_whole_application_asks_for_its_token(collection: Collection) -> None:
    token = "a-token-of-some-length"
    client = collection.client(Access(token_digest(token), None), "http://search.example")
    for path in ("/", "/docs", "/openapi.json", "/metrics", "/videos/red/clip", "/thumbnail?video=red/clip"):
        assert client.get(path).status_code == 401, path
    assert client.post("/find", json={"sentence": "red"}).status_code == 401
    assert client.get(f"/?token={token}").status_code == 303
    assert find(client, "red", 1)["results"][0]["video"] == "red/clip"
