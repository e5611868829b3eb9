"""Token windows: what is read, how it is cut, that the same arguments give the same windows, and what the errors say."""

import json
import random
import sys
from types import SimpleNamespace

import pytest
import torch
from pydantic import ValidationError

from compress import data
from compress.beginning import beginning, begins_with
from compress.data import TextSource


def source(path, **options):
    return TextSource(text=str(path), **options)


@pytest.fixture(scope="module")
def tokenizer():
    return data.load_tokenizer("novella")


@pytest.fixture
def prose(tmp_path):
    """A file of 2,000 distinct words."""
    path = tmp_path / "prose.txt"
    path.write_text(" ".join(f"word{i}" for i in range(2000)))
    return path


# --- windows


def test_contiguous_windows_are_the_text_without_its_tail():
    assert data.windows(range(107), 10, None).flatten().tolist() == list(range(100))


def test_contiguous_takes_the_first_windows_and_no_more_than_there_are():
    assert data.windows(range(107), 10, 3)[:, 0].tolist() == [0, 10, 20]
    assert len(data.windows(range(107), 10, 50)) == 10


@pytest.mark.parametrize("seed", range(5))
def test_random_windows_are_distinct_aligned_and_in_text_order(seed):
    starts = data.windows(range(1007), 10, 30, seed, "random")[:, 0].tolist()
    assert starts == sorted(set(starts))
    assert all(start % 10 == 0 for start in starts)
    assert len(starts) == 30


def test_every_window_can_be_drawn():
    drawn = {start for seed in range(60) for start in data.windows(range(100), 10, 2, seed, "random")[:, 0].tolist()}
    assert drawn == set(range(0, 100, 10))


def test_random_windows_depend_on_the_seed_only():
    first, again, other = (data.windows(range(1000), 10, 20, seed, "random") for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_windows_hold_the_text_not_its_positions():
    ids = [7, 7, 9, 9, 5, 5]
    assert data.windows(ids, 2, None).tolist() == [[7, 7], [9, 9], [5, 5]]
    assert data.windows(ids, 2, None).dtype == torch.long


def test_too_few_tokens_for_the_windows_asked():
    with pytest.raises(ValueError, match=r"107 tokens; 11 windows of 10 need 110: lower length or sequences \(at most 10\)"):
        data.windows(range(107), 10, 11, 0, "random")
    assert len(data.windows(range(107), 10, 10, 0, "random")) == 10


def test_not_one_whole_window_is_an_error_that_counts(tmp_path, tokenizer):
    path = tmp_path / "short.txt"
    path.write_text("Too short.")
    with pytest.raises(
        ValueError, match=r"evaluation from .*short\.txt'.* gives \d tokens; 1 window of 256 need 256: lower length"
    ):
        data.evaluation_tokens(source(path), tokenizer)


# --- tokens


def test_tokens_are_the_text_tokenised_once_and_cut(prose, tokenizer):
    tokens = data.evaluation_tokens(source(prose, length=64), tokenizer)
    assert prose.read_text().startswith(tokenizer.decode(tokens.flatten()))


class Begins:
    """A tokenizer of one word, whose template puts `front` before a text and `end` behind it."""

    def __init__(self, front=(), end=(), bos_token_id=None):
        self.front, self.end, self.bos_token_id = [*front], [*end], bos_token_id

    def __call__(self, text, add_special_tokens=True, **_):
        ids = [9] * len(text.split())
        return {"input_ids": self.front + ids + self.end if add_special_tokens else ids}


@pytest.mark.parametrize(
    ("tokenizer", "bos", "front"),
    [
        (Begins([0]), "auto", [0]),
        (Begins([0], end=[1]), "auto", [0]),  # a window is not where a text ends
        (Begins([0, 5]), True, [0, 5]),
        (Begins([0]), False, []),
        (Begins(), "auto", []),
        (Begins(end=[1]), "auto", []),
        (Begins(bos_token_id=3), "auto", []),
        (Begins(bos_token_id=3), True, [3]),
    ],
)
def test_windows_begin_as_the_tokenizer_has_it_and_are_as_long_as_asked(prose, tokenizer, bos, front):
    tokens = data.evaluation_tokens(source(prose, length=16, bos=bos), tokenizer)
    own = 16 - len(front)
    assert tokens.tolist() == [front + [9] * own] * (2000 // own)


def test_every_token_of_the_text_is_in_one_window_behind_the_beginning():
    found = data.windows(range(107), 10, None, prefix=[500])
    assert found[:, 0].tolist() == [500] * 11
    assert found[:, 1:].flatten().tolist() == list(range(99))


def test_a_beginning_that_there_is_not_and_one_that_fills_the_window(prose):
    with pytest.raises(ValueError, match="bos: true given, but the tokenizer has no beginning-of-sequence token; give auto"):
        data.evaluation_tokens(source(prose, bos=True), Begins())
    with pytest.raises(ValueError, match="length: 2 given, and 2 tokens stand in front of the text"):
        data.windows(range(9), 2, None, prefix=[1, 2])


def test_a_real_template_is_read_and_novella_has_none(prose, tokenizer):
    from tokenizers.processors import TemplateProcessing

    assert beginning(tokenizer) == []
    with_bos = data.load_tokenizer("novella")
    bos = str(with_bos.bos_token)
    with_bos._tokenizer.post_processor = TemplateProcessing(f"{bos} $A", special_tokens=[(bos, with_bos.bos_token_id)])
    assert begins_with(with_bos) == [bos]
    ours, plain = (data.evaluation_tokens(source(prose, length=65, bos=bos), with_bos) for bos in ("auto", False))
    assert with_bos(prose.read_text())["input_ids"][:65] == ours[0].tolist()
    assert torch.equal(ours[:, 1:].flatten()[:650], plain.flatten()[:650])
    assert torch.equal(plain, data.evaluation_tokens(source(prose, length=65), tokenizer))


def test_calibration_is_drawn_by_seed_and_evaluation_is_not(prose, tokenizer):
    a, b = (source(prose, length=16, sequences=8, seed=seed) for seed in (0, 1))
    assert not torch.equal(data.calibration_tokens(a, tokenizer), data.calibration_tokens(b, tokenizer))
    assert torch.equal(data.evaluation_tokens(a, tokenizer), data.evaluation_tokens(b, tokenizer))


def test_novella_means_another_text_by_role(tokenizer):
    novella = TextSource(text="novella")
    calibration, evaluation = data.read_text(novella, "calibration"), data.read_text(novella, "evaluation")
    assert not set(calibration.split("\n\n")) & set(evaluation.split("\n\n"))
    assert data.calibration_tokens(TextSource(text="novella", sequences=128), tokenizer).shape == (128, 256)


def test_token_hash_tells_values_and_shape_apart():
    tokens = torch.arange(12).view(3, 4)
    other = tokens.clone()
    other[2, 3] += 1
    hashes = {data.token_hash(t) for t in (tokens, tokens.clone(), tokens.int(), other, tokens.view(4, 3), tokens[:2])}
    assert len(hashes) == 4
    assert all(len(h) == 64 for h in hashes)


# --- reading


def test_a_text_file_is_taken_as_it_is(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes("one\r\n\r\n\ntwo é\n".encode())
    assert data.read_text(source(path), "calibration") == "one\r\n\r\n\ntwo é\n"


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
    assert data.read_text(source(path, column="body"), "evaluation") == " = Title = \n\nline\u2028separator"


def test_parquet_gives_what_jsonl_gives(tmp_path):
    pyarrow = pytest.importorskip("pyarrow", reason='the hub extra is not installed: pip install "compress[hub]"')
    from pyarrow import parquet

    rows = ["first", "", "second", None, "third"]
    parquet.write_table(pyarrow.table({"id": range(5), "text": rows}), tmp_path / "a.parquet")
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps({"text": row}) for row in rows))
    read = [data.read_text(source(tmp_path / name), "calibration") for name in ("a.parquet", "a.jsonl")]
    assert read == ["first\nsecond\nthird"] * 2
    with pytest.raises(ValueError, match=r"no column 'content'; set column to one of 'id', 'text'"):
        data.read_text(source(tmp_path / "a.parquet", column="content"), "calibration")


def test_characters_start_where_the_published_study_starts(tmp_path):
    text = "".join(chr(97 + i % 26) for i in range(5000))
    (tmp_path / "a.txt").write_text(text)
    random.seed(290402)
    start = random.randint(0, 5000 - 700)
    assert data.read_text(source(tmp_path / "a.txt", characters=700, seed=290402), "calibration") == text[start : start + 700]


@pytest.mark.parametrize("characters", [5000, 5001])
def test_characters_beyond_the_end_take_all(tmp_path, characters):
    (tmp_path / "a.txt").write_text("x" * 5000)
    assert len(data.read_text(source(tmp_path / "a.txt", characters=characters), "calibration")) == 5000


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
    assert data.read_text(wikitext, role) == f"{expected} one\n{expected} two"
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
        data.read_text(TextSource(text="Salesforce/wikitext", **options), "calibration")


def test_a_hub_that_does_not_answer_says_what_else_there_is(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", FakeHub(down=True))
    with pytest.raises(FileNotFoundError, match=r"hub dataset 'a/b': no network; give 'novella', a \.txt"):
        data.read_text(TextSource(text="a/b"), "calibration")


# --- mistakes


@pytest.mark.parametrize(("name", "module"), [("Salesforce/wikitext", "datasets"), ("a.parquet", "pyarrow")])
def test_a_missing_reader_names_the_extra(monkeypatch, tmp_path, name, module):
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.parquet").touch()
    with pytest.raises(ValueError, match=r'pip install "compress\[hub\]"'):
        data.read_text(TextSource(text=name), "calibration")


def test_a_missing_file_names_the_nearest(prose):
    with pytest.raises(FileNotFoundError, match=r"no file .*prosa\.txt'; did you mean .*prose\.txt'\?"):
        data.read_text(source(prose.with_name("prosa.txt")), "calibration")


@pytest.mark.parametrize("name", ["no/such/folder/a.txt", "zzz.jsonl", "a/b/c", "http://example.com/a"])
def test_a_missing_file_without_a_neighbour_says_what_is_allowed(name):
    with pytest.raises(FileNotFoundError, match=r"give 'novella', a \.txt, \.jsonl or \.parquet file, or a hub dataset id"):
        data.read_text(TextSource(text=name), "calibration")


def test_folders_and_other_formats_are_refused(tmp_path):
    (tmp_path / "a.csv").write_text("a,b")
    for path, what in ((tmp_path, "a folder"), (tmp_path / "a.csv", r"a \.csv file")):
        with pytest.raises(ValueError, match=f"is {what}; give 'novella'"):
            data.read_text(source(path), "calibration")


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
        data.read_text(source(tmp_path / "a.jsonl"), "calibration")


@pytest.mark.parametrize("options", [{"lenght": 8}, {"length": 1}, {"sequences": 0}, {"characters": 0}])
def test_a_source_refuses_unknown_and_impossible_options(options):
    with pytest.raises(ValidationError):
        TextSource(text="novella", **options)


# --- models


def test_only_the_alias_is_resolved():
    assert data.resolve_model("./novella") == "./novella"
    assert data.resolve_model("Qwen/Qwen2.5-0.5B") == "Qwen/Qwen2.5-0.5B"
    assert data.resolve_model("novella") != "novella"


def test_a_folder_without_a_tokenizer_is_an_error(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"no tokenizer for .*; give 'novella', a folder with tokenizer\.json, or a hub id"
    ):
        data.load_tokenizer(str(tmp_path))
