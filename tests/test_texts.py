"""The text of a source: what is read from files and hubs, and what the errors say."""

import json
import random
import sys
from types import SimpleNamespace

import pytest
from pydantic import ValidationError

from compress.texts import TextSource, read_text


def source(path, **options):
    return TextSource(text=str(path), **options)


@pytest.fixture
def prose(tmp_path):
    """A file of 2,000 distinct words."""
    path = tmp_path / "prose.txt"
    path.write_text(" ".join(f"word{i}" for i in range(2000)))
    return path


# --- reading


def test_a_text_file_is_taken_as_it_is(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes("one\r\n\r\n\ntwo é\n".encode())
    assert read_text(source(path), "calibration") == "one\r\n\r\n\ntwo é\n"


def test_rows_are_joined_without_the_empty_ones(tmp_path):
    path = tmp_path / "a.jsonl"
    rows = [
        {"body": " = Title = \n"},
        {"body": ""},
        {"body": " \n"},
        {"body": None},
        {"body": "line\u2028separator", "other": 1},
    ]
    path.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n\n", encoding="utf-8")
    assert read_text(source(path, column="body"), "evaluation") == " = Title = \n\nline\u2028separator"


def test_parquet_gives_what_jsonl_gives(tmp_path):
    pyarrow = pytest.importorskip("pyarrow", reason='the hub extra is not installed: pip install "compress[hub]"')
    from pyarrow import parquet

    rows = ["first", "", "second", None, "third"]
    parquet.write_table(pyarrow.table({"id": range(5), "text": rows}), tmp_path / "a.parquet")
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps({"text": row}) for row in rows))
    read = [read_text(source(tmp_path / name), "calibration") for name in ("a.parquet", "a.jsonl")]
    assert read == ["first\nsecond\nthird"] * 2
    with pytest.raises(ValueError, match=r"no column 'content'; set column to one of 'id', 'text'"):
        read_text(source(tmp_path / "a.parquet", column="content"), "calibration")


def test_characters_start_where_the_published_study_starts(tmp_path):
    text = "".join(chr(97 + i % 26) for i in range(5000))
    (tmp_path / "a.txt").write_text(text)
    random.seed(290402)
    start = random.randint(0, 5000 - 700)
    assert read_text(source(tmp_path / "a.txt", characters=700, seed=290402), "calibration") == text[start : start + 700]


@pytest.mark.parametrize("characters", [5000, 5001])
def test_characters_beyond_the_end_take_all(tmp_path, characters):
    (tmp_path / "a.txt").write_text("x" * 5000)
    assert len(read_text(source(tmp_path / "a.txt", characters=characters), "calibration")) == 5000


class FakeHub(SimpleNamespace):
    """Stands for the datasets library and records what it is asked for."""

    down = False

    def get_dataset_split_names(self, name, config, revision):
        if self.down:
            raise ConnectionError("no network")
        return ["train", "validation", "test"]

    def load_dataset(self, name, config, split, revision):
        self.asked = (name, config, split, revision)
        rows = {"id": [1, 2], "text": [f"{split} one", f"{split} two"]}
        return type("Rows", (dict,), {"column_names": list(rows)})(rows)


@pytest.mark.parametrize(
    ("role", "split", "expected"),
    [("calibration", None, "train"), ("evaluation", None, "validation"), ("evaluation", "test", "test")],
)
def test_hub_split_follows_the_use_unless_given(monkeypatch, role, split, expected):
    hub = FakeHub()
    monkeypatch.setitem(sys.modules, "datasets", hub)
    wikitext = TextSource(text="Salesforce/wikitext", config="wikitext-2-v1", revision="abc", split=split)
    assert read_text(wikitext, role) == f"{expected} one\n{expected} two"
    assert hub.asked == ("Salesforce/wikitext", "wikitext-2-v1", expected, "abc")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"split": "dev"}, "no split 'dev'; set split to one of train, validation, test"),
        ({"column": "content"}, "no column 'content'; set column to one of 'id', 'text'"),
        ({"column": "id"}, "column 'id' holds int, not text"),
    ],
)
def test_hub_mistakes_name_what_there_is(monkeypatch, options, message):
    monkeypatch.setitem(sys.modules, "datasets", FakeHub())
    with pytest.raises(ValueError, match=message):
        read_text(TextSource(text="Salesforce/wikitext", **options), "calibration")


def test_a_hub_that_does_not_answer_says_what_else_there_is(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", FakeHub(down=True))
    with pytest.raises(FileNotFoundError, match=r"hub dataset 'a/b': no network; give 'novella', a \.txt"):
        read_text(TextSource(text="a/b"), "calibration")


# --- mistakes


@pytest.mark.parametrize(("name", "module"), [("Salesforce/wikitext", "datasets"), ("a.parquet", "pyarrow")])
def test_a_missing_reader_names_the_extra(monkeypatch, tmp_path, name, module):
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.parquet").touch()
    with pytest.raises(ValueError, match=r'pip install "compress\[hub\]"'):
        read_text(TextSource(text=name), "calibration")


def test_a_missing_file_names_the_nearest(prose):
    with pytest.raises(FileNotFoundError, match=r"no file .*prosa\.txt'; did you mean .*prose\.txt'\?"):
        read_text(source(prose.with_name("prosa.txt")), "calibration")


@pytest.mark.parametrize("name", ["no/such/folder/a.txt", "zzz.jsonl", "a/b/c", "http://example.com/a"])
def test_a_missing_file_without_a_neighbour_says_what_is_allowed(name):
    with pytest.raises(FileNotFoundError, match=r"give 'novella', a \.txt, \.jsonl or \.parquet file, or a hub dataset id"):
        read_text(TextSource(text=name), "calibration")


def test_folders_and_other_formats_are_refused(tmp_path):
    (tmp_path / "a.csv").write_text("a,b")
    for path, what in ((tmp_path, "a folder"), (tmp_path / "a.csv", r"a \.csv file")):
        with pytest.raises(ValueError, match=f"is {what}; give 'novella'"):
            read_text(source(path), "calibration")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"title": "x", "body": "y"}', "line 1 has no column 'text'; set column to one of 'title', 'body'"),
        (b'{"text": "x"}\n{"text": ', "line 2 is not JSON"),
        (b'["x"]', "line 1 is a JSON list; each line is one object"),
        (b'{"text": 3}', "column 'text' holds int, not text"),
        (b'{"text": ""}', "holds no text"),
        (b"", "holds no text"),
        (b'{"text": "\xff"}', r"is not UTF-8 \(byte 10\)"),
    ],
)
def test_a_bad_jsonl_says_where(tmp_path, content, message):
    (tmp_path / "a.jsonl").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_text(source(tmp_path / "a.jsonl"), "calibration")


@pytest.mark.parametrize("options", [{"lenght": 8}, {"length": 1}, {"sequences": 0}, {"characters": 0}])
def test_a_source_refuses_unknown_and_impossible_options(options):
    with pytest.raises(ValidationError):
        TextSource(text="novella", **options)
