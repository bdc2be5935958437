"""Tables of spreadsheets, by hand-worked values."""

from pathlib import Path

import pytest

from demr.annotations.annotations import Annotation, read_annotations, read_annotations_with_report
from demr.annotations.repairs import RepairReport
from demr.errors import AnnotationError

HEADING = "video,query,start,end\n"


def read(
    tmp_path: Path, text: str, name: str = "q.csv", encoding: str = "utf-8"
) -> tuple[list[Annotation], RepairReport]:
    path = tmp_path / name
    path.write_bytes(text.encode(encoding))
    return read_annotations_with_report(path)


TABLE = (
    'video,query,start,end,split\nAB.mp4,"a man, ""tall"", runs",1.5,6,train\n\n'
    "AB.mp4,a dog barks,,,train\nCD, a  cat ,0,4.25,test\n"
)


def test_a_table(tmp_path: Path) -> None:
    found, report = read(tmp_path, TABLE)
    assert found == [
        Annotation("AB_2", 'a man, "tall", runs', "AB", 6.0, ((1.5, 6.0),)),
        Annotation("AB_4", "a dog barks", "AB", 6.0, (), kind="absent"),
        Annotation("CD_5", "a cat", "CD", 4.25, ((0.0, 4.25),)),
    ]
    assert [a.extra for a in found] == [{"split": s} for s in ("train", "train", "test")]
    assert all(a.duration_guessed for a in found)
    assert (report.absent, report.guessed_durations) == (1, 2)
    assert report.further_keys == {"split": 3}


@pytest.mark.parametrize(
    ("text", "name", "encoding"),
    [
        (TABLE, "q.CSV", "utf-8-sig"),
        (TABLE.replace("\n", "\r\n"), "q.csv", "utf-8"),
        (TABLE, "no_ending", "utf-8"),
        (
            TABLE.replace(",", "\t").replace("a man\t", "a man,").replace('"\t runs', '", runs'),
            "unicode_text.txt",
            "utf-16",
        ),
        (TABLE, "q.csv", "utf-16"),
        ("sep=,\r\n" + TABLE.removeprefix("\n").replace("\n\n", "\n"), "q.csv", "utf-8"),
        (TABLE.replace("video,query", "Video,Sentence").replace("end,", "END,"), "q.csv", "utf-8"),
        (TABLE.partition("\n")[2].replace("\n\n", "\n"), "q.csv", "utf-8"),
    ],
)
def test_marks_names_and_line_ends_do_not_matter(
    tmp_path: Path, text: str, name: str, encoding: str
) -> None:
    found, _ = read(tmp_path, text, name, encoding)
    assert [a.query for a in found] == ['a man, "tall", runs', "a dog barks", "a cat"]
    assert [a.windows_s for a in found] == [((1.5, 6.0),), (), ((0.0, 4.25),)]


@pytest.mark.parametrize("mark", [";", "\t", "|"])
def test_other_separators_and_decimal_commas(tmp_path: Path, mark: str) -> None:
    rows = (("video", "query", "start", "end"), ("a", "x, y", "1,5", "2,125"), ("b", "z", "0", "9"))
    text = "".join(mark.join(row) + "\n" for row in rows)
    found, _ = read(tmp_path, text, "q.tsv" if mark == "\t" else "q.csv")
    assert [(a.query, a.windows_s) for a in found] == [
        ("x, y", ((1.5, 2.125),)),
        ("z", ((0.0, 9.0),)),
    ]


@pytest.mark.parametrize(
    ("cell", "seconds"),
    [
        ("7", 7.0),
        (" 7.25 ", 7.25),
        (".5", 0.5),
        ("1e1", 10.0),
        ('"7,5"', 7.5),
        ("1:05", 65.0),
        ("01:05.5", 65.5),
        ('"1:05,5"', 65.5),
        ("90:00", 5400.0),
        ("1:02:03", 3723.0),
        ("01:02:03.250", 3723.25),
    ],
)
def test_times(tmp_path: Path, cell: str, seconds: float) -> None:
    ((found,), _) = read(tmp_path, f"{HEADING}v,a dog,0,{cell}\n")
    assert found.windows_s == ((0.0, seconds),)


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        ("1:60", "seconds or mm:ss as end, got '1:60'"),
        ("1:60:00", "seconds or mm:ss as end"),
        ("soon", "seconds or mm:ss as end, got 'soon'"),
        ("nan", "seconds or mm:ss as end"),
        ("inf", "seconds or mm:ss as end"),
        ('"1,250"', "end with a point before its decimals, got 1,250 (or thousands?)"),
        ("", "start and end, or neither, got 0.0 and None"),
        ("1,5", "4 columns, got 5: quote cells that hold the separator"),
        ('"7', "rows of comma-separated values"),
        ("1e999", "seconds or mm:ss as end"),
    ],
)
def test_what_is_no_time_is_named_by_its_line(tmp_path: Path, cell: str, message: str) -> None:
    with pytest.raises(AnnotationError) as caught:
        read(tmp_path, f"{HEADING}v,a cat,0,3\nv,a dog,0,{cell}\n")
    assert str(caught.value).startswith(f"{tmp_path / 'q.csv'}:3: expected ")
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "name,sentence,from,to\na,b,1,2\n",
            ":1: expected the columns video, query, start and end",
        ),
        ("video,query,query,start,end\na,b,c,1,2\n", ":1: expected one column of each name"),
        (f"{HEADING},a dog,1,2\n", ":2: expected a video, got an empty cell"),
        (f"{HEADING}v,,1,2\n", ":2: expected a query, got an empty cell"),
        (f"{HEADING}v,a dog,,\n", ":2: expected the duration of video v, as no row has times"),
        (f"{HEADING}v,a dog,1,2\nv,a dog,,\n", ":3: expected windows of this query, or one row"),
        ("", ": expected at least one query, got none"),
        (HEADING, ": expected at least one query, got none"),
        (
            "video,query,start_frame,end_frame\nv,a dog,3,9\n",
            ":1: expected the columns start and end, or duration, got video, query, start_frame",
        ),
        ("video,query,start,end,duration\nv,x,1,2,0\n", ":2: expected a duration above 0 s"),
    ],
)
def test_tables_that_cannot_be_read(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(AnnotationError) as caught:
        read(tmp_path, text)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_columns_in_any_order_with_qid_and_duration(tmp_path: Path) -> None:
    text = "end,note,vid,duration,start,qid,query\n0:04,ours,v,1:30,2,007,a dog\n,,v,,,8,a cat\n"
    found, report = read(tmp_path, text)
    assert found == [
        Annotation("007", "a dog", "v", 90.0, ((2.0, 4.0),)),
        Annotation("8", "a cat", "v", 90.0, (), kind="absent"),
    ]
    assert found[0].extra == {"note": "ours"}
    assert report.guessed_durations == 0


def test_rows_of_one_query_are_its_windows(tmp_path: Path) -> None:
    text = f"{HEADING}v,a dog,5,6\nv,a  dog,1,2\nv,a dog,5,6\nw,a dog,1,2\n"
    found, report = read(tmp_path, text)
    assert [(a.qid, a.windows_s) for a in found] == [
        ("v_2", ((5.0, 6.0), (1.0, 2.0))),
        ("w_5", ((1.0, 2.0),)),
    ]
    assert report.merged_rows == 2


def test_a_cell_over_two_lines_does_not_shift_the_numbers(tmp_path: Path) -> None:
    with pytest.raises(AnnotationError, match=r":4: expected seconds"):
        read(tmp_path, f'{HEADING}v,"a\ndog",1,2\nv,a cat,x,2\n')


def test_no_times_at_all_are_unknown_windows(tmp_path: Path) -> None:
    found, report = read(tmp_path, "video,query,duration\nv,a dog,9\n")
    assert (found[0].windows_s, report.unknown) == (None, 1)


def test_a_video_of_absent_queries_alone_lasts_as_long_as_the_longest(tmp_path: Path) -> None:
    found, report = read(tmp_path, f"{HEADING}v,a dog,5,6\nw,a cat,,\n")
    assert [a.duration_s for a in found] == [6.0, 6.0]
    assert report.guessed_durations == 2


def test_the_durations_of_other_annotations_count(tmp_path: Path) -> None:
    path = tmp_path / "q.csv"
    path.write_text(f"{HEADING}v.mp4,a dog,5,6\n")
    ((found,), _) = read_annotations_with_report(path, durations_s={"v": 20.0})
    assert (found.duration_s, found.duration_guessed) == (20.0, False)
    assert read_annotations(path)[0].duration_s == 6.0


def test_lines_of_charades(tmp_path: Path) -> None:
    found, report = read(tmp_path, "A.mp4 1 4.5##a dog\nB 0 0##a cat\nA 5 2##it runs\n", "q.txt")
    assert [(a.qid, a.vid, a.duration_s, a.windows_s) for a in found] == [
        ("A_1", "A", 5.0, ((1.0, 4.5),)),
        # Of B nothing is known: as long as the longest.
        ("B_2", "B", 5.0, ()),
        ("A_3", "A", 5.0, ((2.0, 5.0),)),
    ]
    assert (report.guessed_durations, report.absent, report.swapped) == (2, 1, 1)
    path = tmp_path / "q.txt"
    known, _ = read_annotations_with_report(path, durations_s={"A": 9.0, "B": 8.0})
    assert [a.duration_s for a in known] == [9.0, 8.0, 9.0]
    for line in ("A 0 inf##a dog", "A nan 3##a dog"):
        with pytest.raises(AnnotationError, match=r"q\.txt:1: expected 'vid start end##sentence'"):
            read(tmp_path, f"{line}\n", "q.txt")
