"""A model whose tokenizer puts a token in front: calibration, evaluation and what reports say of it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing

import compress
from compress import data
from compress.evaluating.perplexity import perplexity
from compress.novella import FOLDER


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """novella with a template that puts its beginning-of-text token in front."""
    folder = tmp_path_factory.mktemp("begins") / "model"
    shutil.copytree(FOLDER, folder, ignore=shutil.ignore_patterns("*.py", "text", "__pycache__"))
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    bos = str(data.load_tokenizer("novella").bos_token)
    tokenizer.post_processor = TemplateProcessing(f"{bos} $A", special_tokens=[(bos, tokenizer.token_to_id(bos))])  # pyright: ignore[reportAttributeAccessIssue]
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def test_a_fit_calibrates_and_judges_with_it_and_says_so(model: Path, tmp_path: Path) -> None:
    bos = str(data.load_tokenizer("novella").bos_token)
    texts = {"auto": "novella", "none": {"text": "novella", "bos": False}}
    recipe = {
        "model": str(model),
        "calibration": {"text": "novella", "sequences": 4, "length": 32},
        "steps": [{"method": "weight_svd", "targets": {"roles": ["q"], "layers": [0]}, "rank": 8}],
        "evaluation": {"texts": texts, "length": 32, "sequences": 4},
        "output": str(tmp_path / "out"),
    }
    compress.fit(compress.load_recipe(recipe))
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["begins_with"] == {"calibration": [bos], "evaluation": {"auto": [bos], "none": []}}
    assert f"begin with `{bos}`" in (tmp_path / "out" / "README.md").read_text()
    # The two readings of one text, against windows made here.
    tokenizer, loaded = data.load_tokenizer(model), compress.from_pretrained(model, dtype=torch.float32).eval()
    ids = tokenizer(data.read_text(data.TextSource(text="novella"), "evaluation"), add_special_tokens=False)["input_ids"]
    for name, front in (("auto", [tokenizer.bos_token_id]), ("none", [])):
        own = 32 - len(front)
        rows = [front + ids[i * own : (i + 1) * own] for i in range(4)]
        expected = perplexity(loaded, torch.tensor(rows))["perplexity"]
        assert report["evaluation"]["baseline"][name]["perplexity"] == pytest.approx(expected, rel=1e-5)


def test_a_command_says_what_its_windows_begin_with(model: Path) -> None:
    options = {"texts": ["novella"], "length": 32, "sequences": 2}
    with_token, without = (compress.evaluate(model, **options, bos=bos)["novella"] for bos in ("auto", False))
    assert with_token["begins_with"] == [str(data.load_tokenizer(model).bos_token)]
    assert without["begins_with"] == []
    assert with_token["perplexity"] != without["perplexity"]
    assert compress.evaluate("novella", **options)["novella"] == without
