"""Token windows: how a text is cut, that the same arguments give the same windows, and what the errors say."""

import pytest
import torch

from compress import data
from compress.beginning import beginning, begins_with
from compress.texts import TextSource


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
