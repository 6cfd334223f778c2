"""Source trees as people have them: near misses of the layout are read, or refused with a line that names them."""

from __future__ import annotations

import runpy
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import h5py
import numpy as np
import pytest
from support.source_tree import SourceTree

from dreamprvr_ray import convert
from dreamprvr_ray.data.shards import ShardSet
from dreamprvr_ray.errors import UserError


def two_query_files(tree: SourceTree) -> None:
    tree.write()
    shutil.copyfile(tree.text / "c_query_feat.hdf5", tree.text / "clip_c_query_feat.hdf5")


def caption_files_in_the_plural(tree: SourceTree) -> None:
    tree.write()
    for path in tree.text.glob("*.caption.txt"):
        path.rename(path.with_name(path.name.replace("caption", "captions")))


def captions_in_another_case(tree: SourceTree) -> None:
    # Without the check val would be carved from train, and test left out.
    tree.write()
    (tree.text / "ctest.caption.txt").rename(tree.text / "cTest.caption.txt")


def rename_ids(rename: Callable[[str], str]) -> Callable[[SourceTree], None]:
    """Return a case in which captions and query features name videos otherwise than the video features do."""

    def write(tree: SourceTree) -> None:
        tree.lines = {split: [rename(line) for line in lines] for split, lines in tree.lines.items()}
        tree.queries = {rename(query): rows for query, rows in tree.queries.items()}
        tree.write()

    return write


def query_features_by_number(tree: SourceTree) -> None:
    tree.queries = {str(number): rows for number, rows in enumerate(tree.queries.values())}
    tree.write()


def with_link(link: object) -> Callable[[SourceTree], None]:
    def write(tree: SourceTree) -> None:
        tree.write()
        with h5py.File(tree.features / "feature.hdf5", "a") as file:
            del file["train1"]
            file["train1"] = link

    return write


def transposed(tree: SourceTree) -> None:
    tree.videos = {video: rows.T for video, rows in tree.videos.items()}
    tree.write()


def one_transposed(tree: SourceTree) -> None:
    tree.videos["train0"] = tree.videos["train0"].T
    tree.write()


def first_video_of_another_size(tree: SourceTree) -> None:
    tree.videos["train0"] = tree.videos["train0"][:, :-1]
    tree.write()


def query_features(content: bytes) -> Callable[[SourceTree], None]:
    def write(tree: SourceTree) -> None:
        tree.write()
        (tree.text / "c_query_feat.hdf5").write_bytes(content)

    return write


def dangling_captions(tree: SourceTree) -> None:
    tree.write()
    (tree.text / "ctest.caption.txt").unlink()
    (tree.text / "ctest.caption.txt").symlink_to(tree.root / "not mounted")


def captions_that_are_a_directory(tree: SourceTree) -> None:
    tree.write()
    (tree.text / "cval.caption.txt").unlink()
    (tree.text / "cval.caption.txt").mkdir()


def utf16(tree: SourceTree) -> None:
    tree.write()
    tree.captions.write_text("\n".join(tree.lines["train"]), encoding="utf-16")


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"


def lfs_captions(tree: SourceTree) -> None:
    tree.write()
    tree.captions.write_bytes(LFS)


def lfs_matrix(tree: SourceTree) -> None:
    tree.write()
    tree.write_matrix()
    (tree.features / "feature.bin").write_bytes(LFS)


def big_endian(tree: SourceTree) -> None:
    tree.write()
    tree.write_matrix(">f4")


def rounded_big_endian(tree: SourceTree) -> None:
    tree.videos = {video: np.round(rows * 4) / 4 for video, rows in tree.videos.items()}
    tree.write()
    tree.write_matrix(">f4")


def float64_matrix(tree: SourceTree) -> None:
    tree.write()
    tree.write_matrix("<f8")


def swapped_shape(tree: SourceTree) -> None:
    tree.write()
    tree.write_matrix()
    path = tree.features / "shape.txt"
    path.write_text(" ".join(reversed(path.read_text().split())))


def video_without_frames_under_its_id(tree: SourceTree) -> None:
    tree.write()
    tree.write_matrix()
    path = tree.features / "video2frames.txt"
    path.write_text(path.read_text().replace("'train1'", "'train1.mp4'"))


REFUSED: dict[str, tuple[Callable[[SourceTree], None], list[str]]] = {
    "two query files": (two_query_files, ["--queries", "c_query_feat.hdf5, clip_c_query_feat.hdf5"]),
    "caption files in the plural": (
        caption_files_in_the_plural,
        ["ctrain.caption.txt", "there is 'ctrain.captions.txt'; rename it"],
    ),
    "test captions in another case": (captions_in_another_case, ["there is 'cTest.caption.txt'; rename it"]),
    "the prefix v_": (rename_ids(lambda name: f"v_{name}"), ["'v_train0' has no features", "it has 'train0'"]),
    "ids in another case": (rename_ids(str.capitalize), ["'Train0' has no features", "it has 'train0'"]),
    "ids with a file's ending": (
        rename_ids(lambda name: name.replace("#", ".mp4#", 1)),
        ["'train0.mp4' has no features", "it has 'train0'"],
    ),
    "ids with a no-break space": (
        rename_ids(lambda name: name.replace("#", "\xa0#", 1)),
        [r"'train0\xa0' has no features", "it has 'train0'"],
    ),
    "query features by number": (query_features_by_number, ["its ids look like '0', '1', ..."]),
    "a dangling link": (with_link(h5py.SoftLink("/gone")), ["'train1' is a link to '/gone', which does not exist"]),
    "a link to a file that is missing": (
        with_link(h5py.ExternalLink("gone.hdf5", "/x")),
        ["'train1' is a link to '/x' in the file 'gone.hdf5', which cannot be opened"],
    ),
    "transposed": (transposed, ["look transposed", "(16, 20)", "shape must be (frames, 16)"]),
    "one transposed video": (one_transposed, ["video 'train0': features of size 20", "most videos have size 16"]),
    "a first video of another size": (
        first_video_of_another_size,
        ["video 'train0': features of size 15, but most videos have size 16"],
    ),
    "an empty file": (query_features(b""), ["c_query_feat.hdf5: is empty"]),
    "a Git LFS pointer": (
        query_features(LFS),
        ["c_query_feat.hdf5: is a Git LFS pointer", "git lfs pull"],
    ),
    "captions that are a Git LFS pointer": (lfs_captions, ["ctrain.caption.txt: is a Git LFS pointer"]),
    "a matrix that is a Git LFS pointer": (lfs_matrix, ["feature.bin: is a Git LFS pointer"]),
    "a page of an error": (query_features(b"<html>Not Found</html>"), ["is not an HDF5 file", "<html>"]),
    "dangling captions": (dangling_captions, ["ctest.caption.txt: no such file"]),
    "captions that are a directory": (captions_that_are_a_directory, ["cval.caption.txt: cannot be read"]),
    "captions in UTF-16": (utf16, ["ctrain.caption.txt: not UTF-8 at byte 0: it is UTF-16; save it as UTF-8"]),
    "a big-endian matrix": (big_endian, ["feature.bin: the values are big-endian"]),
    "a big-endian matrix of round values": (rounded_big_endian, ["feature.bin: the values are big-endian"]),
    "a matrix of float64": (float64_matrix, ["feature.bin", "it looks like float64, and must be float32"]),
    "a swapped shape": (swapped_shape, ["id.txt", "are they swapped?"]),
    "a video under another name": (video_without_frames_under_its_id, ["no video 'train1'", "it has 'train1.mp4'"]),
}


@contextmanager
def held_by(script: str, *arguments: str) -> Iterator[None]:
    """Run a script that prints a line once it holds something, until the block ends."""
    command = [sys.executable, "-c", script, *arguments]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        process.stdout.readline()
        try:
            yield
        finally:
            process.communicate("\n")


def run(root: Path) -> ShardSet:
    convert.main(["--source", str(root), "--collection", "c", "--out", str(root / "shards"), "--workers", "1"])
    return ShardSet.open(root / "shards")


@pytest.mark.parametrize("name", REFUSED)
def test_a_near_miss_is_refused_with_its_name(tmp_path: Path, name: str) -> None:
    write, parts = REFUSED[name]
    write(SourceTree(tmp_path))
    with pytest.raises(UserError) as error:
        run(tmp_path)
    assert [part for part in parts if part not in str(error.value)] == [], str(error.value)
    assert all(len(mistake.splitlines()) == 1 for mistake in error.value.mistakes)
    assert not (tmp_path / "shards").exists()


def test_a_file_that_is_being_written_is_locked(tmp_path: Path) -> None:
    tree = SourceTree(tmp_path)
    tree.write()
    script = "import h5py, sys; file = h5py.File(sys.argv[1], 'a', locking=True); print(flush=True); input()"
    path = tree.features / "feature.hdf5"
    with held_by(script, str(path)), pytest.raises(UserError, match="is locked by another process"):
        run(tmp_path)
    run(tmp_path)


@pytest.mark.parametrize("end", ["\r", "\r\n", "\n", "\n\n", " \n"])
def test_all_line_ends_are_read(tmp_path: Path, end: str) -> None:
    tree = SourceTree(tmp_path)
    tree.write(end)
    split = run(tmp_path).split("train")
    assert len(split.queries) == 12
    assert split.captions[:2] == ["a person does thing 0", "a person does thing 1"]


UNUSUAL_TEXTS = ["one\u2028two", "one\x0btwo\x0cthree", "one\x1ctwo\x1dthree\x1efour", "one\x85two", "\xa0one\u3000"]


@pytest.mark.parametrize("text", UNUSUAL_TEXTS)
def test_unicode_blanks_and_separators_are_part_of_a_sentence(tmp_path: Path, text: str) -> None:
    tree = SourceTree(tmp_path)
    tree.lines["train"][0] = f"train0#enc#0 {text}"
    tree.write()
    assert run(tmp_path).split("train").captions[0] == text


def test_tabs_and_byte_order_marks(tmp_path: Path) -> None:
    tree = SourceTree(tmp_path)
    tree.lines["train"] = [line.replace(" ", "\t", 1) for line in tree.lines["train"]]
    tree.lines["train"][0] = "\ufeff" + tree.lines["train"][0]
    tree.lines["train"][5] = "\ufeff \t" + tree.lines["train"][5] + "\t"  # where files were concatenated
    tree.write()
    assert set(run(tmp_path).split("train").captions) == {"a person does thing 0", "a person does thing 1"}


@pytest.mark.parametrize(
    ("frame", "separator"),
    [
        ("{video} frame {number}", "\n"),
        ("{video} frame {number}", "\r"),
        ("{video} frame {number}", "\t"),
        ("{video}\xa0{number}", " "),
        ("{video}\u2028{number}", "\n"),
        ("{video}\x1c{number}", " \r\n"),
        ("{video}_{number}", "\r\n"),
    ],
)
def test_frame_ids_with_blanks(tmp_path: Path, frame: str, separator: str) -> None:
    tree = SourceTree(tmp_path)
    tree.write()
    tree.write_matrix(separator=separator, frame=frame)
    matrix = run(tmp_path).split("train")
    (tmp_path / "other").mkdir()
    hdf5 = SourceTree(tmp_path / "other")
    hdf5.write()
    expected = run(tmp_path / "other").split("train")
    assert all((matrix.clips(video) == expected.clips(video)).all() for video in range(6))


def test_sparse_and_tiny_matrices_are_little_endian(tmp_path: Path) -> None:
    tree = SourceTree(tmp_path)
    for number, (video, rows) in enumerate(tree.videos.items()):
        tree.videos[video] = np.maximum(rows, 0) * np.float32(1e-8 if number % 2 else 1)
    tree.write()
    tree.write_matrix()
    run(tmp_path)


# What `../shared/cases` expect: an error's or a note's text, or None where the tree is converted.
SHARED: dict[str, tuple[str | None, str | None]] = {
    "01": (None, None),
    "02": (None, None),
    "03": (None, None),
    "04": ("clip_c_query_feat.hdf5, roberta_c_query_feat.hdf5", None),
    "06": (None, None),
    "07": ("it has 'train0'", None),
    "08": ("it has 'train0'", None),
    "10": ("its ids look like '0', '1'", None),
    "11": (None, None),
    "13": (None, None),
    "14": (None, None),
    "15": (None, "'train4'"),
    "17": (None, "rows of almost no length"),
    "18": ("the values are big-endian", None),
    "19": (None, "are all zeros"),
    "21": ("look transposed", None),
    "23": ("there is 'ctrain.captions.txt'", None),
}


@pytest.mark.parametrize("number", SHARED)
def test_shared_cases(
    shared: Path, tmp_path: Path, number: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    scripts = list((shared / "cases").glob(f"{number}_*.py"))
    if not scripts:
        pytest.skip("no such case in ../shared/cases")
    error, note = SHARED[number]
    monkeypatch.setattr(sys, "argv", ["case", str(tmp_path)])
    runpy.run_path(str(scripts[0]))
    if error is not None:
        with pytest.raises(UserError) as raised:
            run(tmp_path)
        assert error in str(raised.value)
        return
    split = run(tmp_path).split("train")
    assert (len(split), len(split.queries)) == (12, 24)
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("note: ")]
    assert (note is None) == (lines == []) and (note or "") in "".join(lines)
