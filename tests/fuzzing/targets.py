"""What is fuzzed: each target makes a case from a seed and does with it what a command would."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from checkpoints import tiny_checkpoint
from results_for_tests import made_results
from safetensors.torch import save

from compress import data, kinds
from compress.checkpoint.shards import Shards
from compress.loading.remote_code import remote_code
from compress.nn.symbolic import SymbolicMLP
from compress.packaged import recipes_folder
from compress.plan import checked_plan, read_plan
from compress.recipe import load_recipe
from compress.reporting.page import page
from compress.reporting.write import markdown, read_results, reading_results
from compress.symbolic.compile import compile_program
from compress.symbolic.expression import check_tree, from_tree, symbols, to_text
from compress.symbolic.torch_source import torch_source
from exporters.torch.assembly import source
from exporters.torch.parts import read
from fuzzing import mutate

Case = Callable[[random.Random, Path], None]
REFUSED = (ValueError, FileNotFoundError, NotImplementedError)  # one line and exit code 2

_TAG = b"!!python/object/apply:os.system ['true']"
YAML_WORDS = (_TAG, b"\xff", b"\x00", b"\t", b"%YAML 1.1\n", b"---\n", b"&a ", b"*a ", b"<<: *a", b"0-9999", b"0x", b"1:2:3")
YAML_WORDS += tuple(bytes([character]) for character in b"[{}]?-:|>~#'\n")
TREE = [
    ["add", ["mul", ["param", 0], ["tanh", ["var", 1]]], ["pow", ["var", 2], ["int", 2]]],
    ["where", ["lt", ["var", 0], ["rational", 1, 3]], ["sin", ["var", 1]], ["nan"]],
]


class Originals:
    """What cases are made from, once per process."""

    def __init__(self, folder: Path) -> None:
        self.checkpoint = tiny_checkpoint(folder / "checkpoint", "llama", "low_rank_linear", "symbolic_mlp", "affine_mlp")
        self.config = json.loads((self.checkpoint / "config.json").read_text())
        self.results = json.loads(json.dumps(made_results()))
        self.recipes = [path.read_bytes() for path in sorted(recipes_folder().glob("*.yaml"))]
        self.safetensors = save({"a": torch.zeros(3, 4), "b": torch.zeros(5, dtype=torch.int32)}, {"format": "pt"})


def targets(folder: Path) -> dict[str, Case]:
    """The targets by name; `folder` is theirs."""
    made = Originals(folder)

    def plan(choose: random.Random, place: Path) -> None:
        found = checked_plan(mutate.data({"modules": made.config["quantization_config"]["modules"]}, choose), "config.json")
        for spec in found.modules:
            kinds.of(spec)
        if choose.random() < 0.02:
            remote_code(found, "llama")

    def config(choose: random.Random, place: Path) -> None:
        changed = mutate.data(made.config, choose)
        (made.checkpoint / "config.json").write_text(json.dumps(changed))
        read_plan(made.checkpoint)
        text = source(read(made.checkpoint))
        assert mutate.MARK not in text.replace(repr(mutate.MARK), "").replace(json.dumps(mutate.MARK), "")

    def expression(choose: random.Random, place: Path) -> None:
        trees: Any = mutate.data(TREE, choose)
        program = compile_program(trees, 3, 1)
        compile("\n".join(torch_source(program)), "generated", "exec", dont_inherit=True)
        SymbolicMLP  # noqa: B018 - what the program is for
        for tree in trees:
            check_tree(tree, 3, 1)
            from_tree(tree, symbols(3), [0.5])
            to_text(tree, [0.5], ["z0", "z1", "z2"])

    def results(choose: random.Random, place: Path) -> None:
        file = place / "results.json"
        file.write_text(json.dumps(mutate.data(made.results, choose)))
        found = read_results(file)
        with reading_results(str(file)):
            markdown(found)
            html = page(found, [])
        assert "<script>" not in html

    def header(choose: random.Random, place: Path) -> None:
        raw = made.safetensors
        size = int.from_bytes(raw[:8], "little")
        if choose.random() < 0.5:
            changed = json.dumps(mutate.data(json.loads(raw[8 : 8 + size]), choose)).encode()
            raw = len(changed).to_bytes(8, "little") + changed + raw[8 + size :]
        else:
            raw = mutate.raw(raw, choose, (b"[", b"{", b'"', b"9" * 30, b"-1", b"\xff" * 8))
        (place / "model.safetensors").write_bytes(raw)
        shards = Shards(place)
        for name in shards:
            shards.tensor(name)

    def recipe(choose: random.Random, place: Path) -> None:
        file = place / "recipe.yaml"
        file.write_bytes(mutate.raw(choose.choice(made.recipes), choose, YAML_WORDS))
        load_recipe(file)

    def rows(choose: random.Random, place: Path) -> None:
        file = place / "text.jsonl"
        text = json.dumps({"text": "water and wind", "messages": [{"role": "user", "content": "x"}]}).encode() + b"\n"
        file.write_bytes(mutate.raw(text * 3, choose, (b"[" * 200, b"{", b'"', b"\\ud83d", b"\xef\xbb\xbf", b"9" * 5000)))
        data.read_text(data.TextSource(text=str(file)), "calibration")

    return {f.__name__: f for f in (plan, config, expression, results, header, recipe, rows)}


# Of twenty cases: a config makes a whole file, results a whole page, and cost fifty times what a header does.
TURNS = ("plan", "expression", "header", "rows") * 4 + ("recipe", "recipe", "results", "config")
