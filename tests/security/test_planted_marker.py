"""A marker in the place of every value of a checkpoint, a recipe, a report: in what is generated it is text alone."""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import yaml
from checkpoints import tiny_checkpoint
from results_for_tests import made_results

from compress.fitting.model_card import model_card
from compress.loading.remote_code import remote_code
from compress.plan import read_plan
from compress.recipe import parse_recipe
from compress.reporting.page import page
from compress.reporting.write import markdown
from exporters.torch.assembly import source
from exporters.torch.parts import read

MARK = '0)\n"""; __import__("os").system("true")  # <script>alert(1)</script> | ](http://x) \x1b[2J'
# What generated files call beside what they define, import, or are handed as an argument.
_BUILTINS = (
    "bool bytes dict enumerate float getattr hasattr int isinstance len list map max min next print property range repr set"
)
_BUILTINS += " setattr sorted str sum super tuple type zip NotImplementedError RuntimeError ValueError"
_IMPORTS = "__future__ argparse collections copy json math pathlib tokenizers torch transformers typing"
BUILTINS, IMPORTS = set(_BUILTINS.split(" ")), set(_IMPORTS.split(" "))
NAMES = {"__name__", "__file__", "__doc__"}


def planted(value: Any) -> Iterator[Any]:
    """Copies of JSON data, each with the marker in the place of another leaf."""
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in parts:
        for changed in planted(inner):
            yield {**value, key: changed} if isinstance(value, dict) else [*value[:key], changed, *value[key + 1 :]]
    if isinstance(value, dict):
        yield {**value, MARK: 1}
    elif not isinstance(value, list):
        yield MARK


def everywhere(value: Any) -> Any:
    """JSON data with the marker behind every text."""
    if isinstance(value, dict):
        return {key: everywhere(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [everywhere(inner) for inner in value]
    return value + MARK if isinstance(value, str) else value


def check_source(text: str) -> None:
    """Fails where the source runs, imports or names anything but its own."""
    tree = ast.parse(text)
    bound = {node.name for node in ast.walk(tree) if isinstance(node, ast.ClassDef | ast.FunctionDef)}
    bound |= {node.arg for node in ast.walk(tree) if isinstance(node, ast.arg)}
    bound |= {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [str(node.module)]
            assert {name.partition(".")[0] for name in names} <= IMPORTS
            bound |= {(alias.asname or alias.name).partition(".")[0] for alias in node.names}
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            root = node.func
            while isinstance(root, ast.Attribute | ast.Subscript | ast.Call):
                root = root.func if isinstance(root, ast.Call) else root.value
            if isinstance(root, ast.Name):
                assert root.id in bound | BUILTINS, f"the file calls {root.id}"
        if isinstance(node, ast.Name) and node.id.startswith("__") and node.id not in NAMES:
            pytest.fail(f"the file names {node.id}")


@pytest.mark.parametrize(
    ("family", "kinds"),
    [
        ("llama", ("low_rank_linear", "symbolic_mlp", "affine_mlp")),
        ("qwen2", ("latent_attention", "mean_mlp")),
        ("opt", ("pivoted_linear", "symbolic_mlp")),
        ("gpt2", ("crystallized_attention", "dense_linear", "zero_mlp")),
        ("llama", ("shared_pivoted", "identity_mlp")),
    ],
)
def test_no_value_of_a_checkpoint_becomes_code(tmp_path: Path, family: str, kinds: tuple[str, ...]) -> None:
    checkpoint = tiny_checkpoint(tmp_path / "checkpoint", family, *kinds)
    path = checkpoint / "config.json"
    whole = json.loads(path.read_text())
    check_source(source(read(checkpoint)))
    check_source(remote_code(read_plan(checkpoint), family))
    seen, refused = set(), 0
    for config in planted(whole):
        path.write_text(json.dumps(config))
        for write in (lambda: source(read(checkpoint)), lambda: remote_code(read_plan(checkpoint), family)):
            try:
                text = write()
            except (ValueError, NotImplementedError):  # any other exception is a fault, too
                refused += 1
                continue
            if text not in seen:  # most leaves of a config change nothing
                check_source(text)
                seen.add(text)
    assert refused > 10
    assert 1 < len(seen) < 200


def test_no_value_beside_the_config_becomes_code(tmp_path: Path) -> None:
    checkpoint = tiny_checkpoint(tmp_path / "checkpoint", "llama", "low_rank_linear")
    text = source(read(checkpoint))
    tokenizer = {"tokenizer_class": "x", "chat_template": "x", "added_tokens_decoder": {"0": {"content": "x"}}}
    for config in planted(tokenizer):
        (checkpoint / "tokenizer_config.json").write_text(json.dumps(config))
        assert source(read(checkpoint)) == text
    for value in (MARK, [MARK], {MARK: 1}, 1.5, True, [-5], 2**40):
        (checkpoint / "generation_config.json").write_text(json.dumps({"eos_token_id": value}))
        with pytest.raises(ValueError, match=r"eos_token_id .* given; allowed: token ids"):
            read(checkpoint)
    (checkpoint / "generation_config.json").write_text(json.dumps({"eos_token_id": [7] * 999}))
    assert "END: set[int] = {7}" in source(read(checkpoint))
    (checkpoint / "generation_config.json").write_text(json.dumps({"eos_token_id": list(range(2000))}))
    with pytest.raises(ValueError, match="2000 values of eos_token_id given; allowed: at most 1000"):
        read(checkpoint)


class Tags(HTMLParser):
    """The tags of a page and the names of their attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: set[tuple[str, str | None]] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found |= {(tag, None), *((tag, name) for name, _ in attrs)}


def test_no_text_of_results_becomes_part_of_a_page() -> None:
    results = json.loads(json.dumps(made_results()))
    hostile = everywhere(results)
    for entry in (*hostile["models"], *hostile["rows"]):  # what branches on these would not find them
        entry["kind"] = entry["kind"].removesuffix(MARK)
    hostile["texts"] = {f"{name}{MARK}": texts for name, texts in hostile["texts"].items()}
    hostile["settings"]["runtimes"] = results["settings"]["runtimes"]
    for row, entry in zip(hostile["rows"], results["rows"], strict=True):
        row["runtime"] = row["quality"]["runtime"] = entry["runtime"]
    names = [text["name"] for text in next(iter(hostile["texts"].values()))]
    for row in hostile["rows"]:
        row["quality"]["texts"] = dict(zip(names, row["quality"]["texts"].values(), strict=True))
        for found in (row["prefill"], *row["decode"]):
            for verdict in filter(None, (found["speedup"], found.get("first_token", {}).get("speedup"))):
                verdict["verdict"] = verdict["verdict"].removesuffix(MARK)
    html, text = page(hostile, []), markdown(hostile)
    assert Tags(html).found <= Tags(page(results, [])).found
    assert "alert(1)" in html, "the marker is there, as text"
    assert "<script" not in html
    assert "<script" not in text
    assert "](http" not in text


def test_no_name_of_a_recipe_becomes_part_of_a_model_card() -> None:
    name = f"org/{MARK}"
    step = {"method": "weight_svd", "rank": 3}
    recipe = parse_recipe({"model": name, "calibration": {"text": "x"}, "steps": [step], "output": "o"})
    parameters = {"compressed": 1, "baseline": 2}
    evaluation = {"baseline": {MARK: {"perplexity": 1.0}}}
    card = model_card(recipe, {"parameters": parameters, "evaluation": evaluation})
    _, front, body = card.split("---\n", 2)
    tags = ["compress", "low-rank", "symbolic"]
    assert yaml.safe_load(front) == {"library_name": "transformers", "base_model": name, "tags": tags}
    assert "<script" not in body
    assert "](http" not in body
    header, rule, row = [line for line in body.splitlines() if line.startswith("|")]
    assert header.replace("\\|", "").count("|") == rule.count("|") == row.count("|")
