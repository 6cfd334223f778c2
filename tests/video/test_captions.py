"""Tables of captions, as people write them."""

from __future__ import annotations

from pathlib import Path

import pytest

from dreamprvr_ray.errors import UserError
from dreamprvr_ray.video.captions import CaptionRow, parse_columns, read_caption_table

ROWS = [
    CaptionRow(2, "cooking/eggs.mp4", "a person cracks an egg, then two", 3.5, 6.0),
    CaptionRow(4, "tür", "jemand öffnet die Tür", None, None),
]


def write(folder: Path, name: str, text: str, encoding: str = "utf-8") -> Path:
    path = folder / name
    path.write_bytes(text.encode(encoding))
    return path


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize(
    ("name", "lines"),
    [
        (
            "c.csv",
            ["video,sentence,start,end", 'cooking/eggs.mp4,"a person cracks an egg, then two",3.5,6', "",
             "tür,jemand öffnet die Tür,,", ""],
        ),
        (
            "c.csv",  # of a spreadsheet where the decimal separator is a comma
            ["End;Start;Caption;File Name", "6;3,5;a person cracks an egg, then two;cooking/eggs.mp4", ";;;",
             ";;jemand öffnet die Tür;tür"],
        ),
        (
            "c.tsv",
            ["video_id\tnotes\tstart_time\tend_time\tdescription",
             "cooking/eggs.mp4\tx\t0:03.5\t00:00:06\ta person cracks an egg, then two", "",
             "tür\t\t\t\tjemand öffnet die Tür"],
        ),
        (
            "c.jsonl",
            ["", '{"video": "cooking/eggs.mp4", "sentence": "a person cracks an egg, then two", "ts": [3.5, 6]}', "",
             '{"vid_name": "tür", "desc": "jemand öffnet die Tür", "start": null, "extra": 1}'],
        ),
    ],
)  # fmt: skip
def test_tables_are_read_as_people_write_them(
    tmp_path: Path, name: str, lines: list[str], encoding: str, end: str
) -> None:
    assert read_caption_table(write(tmp_path, name, end.join(lines), encoding)) == ROWS


def test_a_quoted_sentence_may_span_lines(tmp_path: Path) -> None:
    path = write(tmp_path, "c.csv", 'video,sentence\na,"one ""two""\n three"\nb,four\n')
    assert read_caption_table(path) == [CaptionRow(2, "a", 'one "two" three'), CaptionRow(4, "b", "four")]


def test_splits_have_their_usual_names(tmp_path: Path) -> None:
    path = write(tmp_path, "c.csv", "video,sentence,subset\na,x,Training\nb,y,validation\nc,z,test\n")
    assert [row.split for row in read_caption_table(path)] == ["train", "val", "test"]


def test_columns_are_chosen_where_names_do_not_tell(tmp_path: Path) -> None:
    path = write(tmp_path, "c.csv", "clip,caption,text_en,sentence\na,x,y,z\n")
    assert read_caption_table(path, {"video": "clip"}) == [CaptionRow(2, "a", "z")]  # the preferred name
    columns = parse_columns(["video=clip", "sentence=text_en"])
    assert read_caption_table(path, columns) == [CaptionRow(2, "a", "y")]


HEADER = "video,sentence,start,end\n"


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("c.csv", HEADER + "a,x,5,3\n", "{path}, line 2: start 5 is after end 3"),
        ("c.csv", HEADER + "\na,x,-1,3\n", "{path}, line 3: start -1 is negative"),
        ("c.csv", HEADER + "a,x,soon,3\n", "{path}, line 2: start must be a number of seconds, or as in 1:03.5, not"),
        ("c.csv", HEADER + "a,x,nan,3\n", "{path}, line 2: start must be a number of seconds"),
        ("c.csv", HEADER + "a,x,1,\n", "{path}, line 2: no end: a moment needs both start and end"),
        ("c.csv", HEADER + "a,,1,2\n", "{path}, line 2: the sentence is empty"),
        ("c.csv", HEADER + ",x,1,2\n", "{path}, line 2: the video is empty"),
        ("c.csv", HEADER + "a\n", "{path}, line 2: only 1 fields, but the header has 4"),
        (
            "c.csv",
            HEADER + "a,one, two,1,2\n",
            "{path}, line 2: 5 fields, but the header has 4; a field that holds ',' must be in double quotes",
        ),
        ("c.csv", HEADER + 'a,"x,1,2\nb,y,1,2\n', "{path}, line 2: cannot be read: a double quote is not closed"),
        (
            "c.csv",
            HEADER + 'a,"x"y,1,2\n',
            "{path}, line 2: cannot be read: a double quote is not closed, or not doubled",
        ),
        ("c.csv", "", "{path}: is empty; its first line must name the columns"),
        ("c.csv", HEADER, "{path}: no captions; to extract videos without captions, omit the option"),
        (
            "c.csv",
            "video,words\na,x\n",
            "{path}, line 1: no column for the sentence; the columns are 'video', 'words': name it sentence, or choose"
            " with --columns sentence=NAME",
        ),
        (
            "c.csv",
            "video,text,caption\na,x,y\n",
            "{path}, line 1: columns 'text' and 'caption' may both be the sentence; choose with --columns sentence=",
        ),
        ("c.csv", "video,sentence,start\na,x,1\n", "{path}, line 1: a column for the start, but none for the end"),
        ("c.csv", "video,sentence,split\na,x,trian\n", "{path}, line 2: split must be train, val or test, not 'trian'"),
        ("c.csv", "video,sentence,split\na,x,val\nb,y,\n", "{path}, line 3: no split, but other lines have one"),
        ("c.jsonl", '{"video": "a", "sentence": "x"}\n{"video": "a"', "{path}, line 2: not valid JSON"),
        ("c.jsonl", "[1]\n", "{path}, line 1: must be a JSON object, with the keys video and sentence"),
        ("c.jsonl", '{"video": "a", "sentence": 3.5}', "{path}, line 1: the sentence must be a string, not '3.5'"),
        (
            "c.jsonl",
            '{"video": "a", "text": "x", "ts": 4}\n{"video": "a"}',
            "{path}, line 2: no column for the sentence",
        ),
        ("c.txt", "a x\n", "{path}: captions must be in a file whose name ends in .csv, .tsv or .jsonl"),
    ],
)
def test_a_mistake_names_its_line(tmp_path: Path, name: str, text: str, message: str) -> None:
    path = write(tmp_path, name, text)
    with pytest.raises(UserError) as error:
        read_caption_table(path)
    assert error.value.mistakes[0].startswith(message.replace("{path}", str(path)))


def test_the_first_of_many_mistakes_are_named(tmp_path: Path) -> None:
    path = write(tmp_path, "c.csv", HEADER + "a,x,5,3\n" * 10 + "b,fine,1,2\n")
    with pytest.raises(UserError) as error:
        read_caption_table(path)
    assert [line.split(": ")[0][-6:] for line in error.value.mistakes[:3]] == ["line 2", "line 3", "line 4"]
    assert error.value.mistakes[3] == "... and 7 more like these"


def test_a_file_that_does_not_exist_or_is_not_utf8(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"c\.csv: no such file"):
        read_caption_table(tmp_path / "c.csv")
    with pytest.raises(UserError, match="not UTF-8 at byte"):
        read_caption_table(write(tmp_path, "c.csv", HEADER + "tür,x,1,2", "latin-1"))


@pytest.mark.parametrize(
    ("pair", "message"),
    [
        ("sentence", "--columns 'sentence': must be WHAT=COLUMN, as in sentence=caption"),
        ("sentense=x", "--columns 'sentense=x': must name one of video, sentence, start, end, split; did you mean"),
    ],
)
def test_wrong_columns(pair: str, message: str) -> None:
    with pytest.raises(UserError) as error:
        parse_columns([pair])
    assert error.value.mistakes[0].startswith(message)
    with pytest.raises(UserError, match="video is given twice"):
        parse_columns(["video=a", "video=b"])


def test_a_chosen_column_that_does_not_exist(tmp_path: Path) -> None:
    path = write(tmp_path, "c.csv", "video,caption\na,x\n")
    with pytest.raises(UserError, match=r"line 1: no column 'captoin'; the columns are 'video', 'caption'; did you"):
        read_caption_table(path, {"sentence": "captoin"})
