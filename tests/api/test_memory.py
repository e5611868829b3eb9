"""A model in memory gives what its folder gives."""

import json

import pytest
import torch
import yaml
from checkpoints import FAMILIES, tiny_model
from recipes_for_tests import STEP, evaluated_recipe, symbolic_step, tiny_folder
from transformers import AutoModelForCausalLM, AutoTokenizer

import compress
from compress.checkpoint.in_memory import InMemory
from compress.checkpoint.shards import Shards


def stored(folder):
    """{name: tensor} of a folder's weights."""
    shards = Shards(folder)
    return {name: shards.tensor(name) for name in shards}


def same_bits(a, b):
    assert a.keys() == b.keys()
    for name, value in a.items():
        assert value.dtype == b[name].dtype, name
        assert torch.equal(value.contiguous().view(torch.uint8), b[name].contiguous().view(torch.uint8)), name


@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_in_memory_has_the_tensors_that_it_would_be_saved_with(family, tmp_path):
    model = tiny_model(family)
    model.save_pretrained(tmp_path)
    memory, shards = InMemory(model), Shards(tmp_path)
    assert (memory.shapes, memory.dtypes) == (shards.shapes, shards.dtypes)
    same_bits({name: memory.tensor(name) for name in memory}, stored(tmp_path))
    assert {n: memory.bytes(n) for n in memory} == {n: shards.bytes(n) for n in shards}
    prefix = next(iter(memory))[:8]
    assert memory.under(prefix).keys() == shards.under(prefix).keys()


def test_the_fingerprint_is_of_the_content():
    model, same, other = tiny_model("llama"), tiny_model("llama"), tiny_model("llama")
    with torch.no_grad():
        next(other.parameters())[0, 0] += 1
    assert InMemory(model).fingerprint() == InMemory(same).fingerprint() != InMemory(other).fingerprint()


@pytest.mark.parametrize(
    ("family", "dtype", "levers"),
    [
        ("llama", torch.float32, {}),
        ("qwen2", torch.bfloat16, {}),  # tied embeddings
        ("gpt2", torch.float32, {"propagate_error": True}),
        ("llama", torch.float16, {"refine": {"steps": 2, "batch": 2}, "finetune": {"steps": 2, "batch": 2}}),
    ],
    ids=["llama", "tied bfloat16", "gpt2 propagated", "llama refined float16"],
)
def test_a_fit_from_memory_is_the_fit_from_the_folder_bit_for_bit(family, dtype, levers, tmp_path):
    folder = tiny_folder(tmp_path / "model", family)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation="eager")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model.save_pretrained(folder)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    plain = evaluated_recipe(folder, tmp_path / "a", **levers)
    on_disk = compress.fit(plain)
    nameless = {k: v for k, v in yaml.safe_load(plain.to_yaml()).items() if k != "model"}
    in_memory = compress.fit({**nameless, "output": str(tmp_path / "b")}, model=model, tokenizer=tokenizer)
    same_bits(stored(on_disk.path), stored(in_memory.path))
    for file in ("config.json", "generation_config.json"):
        assert (on_disk.path / file).is_file() == (in_memory.path / file).is_file()
        if (on_disk.path / file).is_file():
            assert json.loads((on_disk.path / file).read_text()) == json.loads((in_memory.path / file).read_text())
    assert on_disk.report["evaluation"] == in_memory.report["evaluation"]
    assert in_memory.recipe.model.name == "in_memory"
    same_bits(before, dict(model.state_dict()))
    ids = torch.arange(20)[None]
    assert torch.equal(on_disk.model()(ids).logits, in_memory.model()(ids).logits)
    assert tokenizer.get_vocab() == in_memory.tokenizer().get_vocab()


def test_a_model_keeps_the_tokenizer_it_was_loaded_with(tmp_path):
    folder = tiny_folder(tmp_path / "model", "llama")
    made = compress.fit(evaluated_recipe(folder, tmp_path / "out"), model=compress.from_pretrained(folder))
    assert (made.path / "tokenizer.json").is_file()
    assert made.recipe.model.name == str(folder)  # the label that the recipe gives


def test_what_cannot_be_compressed_from_memory(tmp_path, fitted):
    plain = {"calibration": {"text": "novella", "sequences": 2, "length": 32}, "steps": [STEP], "output": str(tmp_path / "out")}
    with pytest.raises(ValueError, match="model: Linear given; give a transformers model"):
        compress.fit(plain, model=torch.nn.Linear(2, 2))
    with pytest.raises(ValueError, match="give tokenizer= beside model="):
        compress.fit(plain, model=tiny_model("llama"))
    with pytest.raises(ValueError, match="already compressed"):
        compress.fit(plain, model=fitted.model(), tokenizer=fitted.tokenizer())
    with pytest.raises(ValueError, match="tokenizer: it goes with model="):
        compress.fit(plain, tokenizer=fitted.tokenizer())
    with pytest.raises(ValueError, match="model: Field required"):
        compress.fit(plain)


def test_expressions_and_pick_of_a_model_that_was_in_memory(tmp_path):
    folder = tiny_folder(tmp_path / "model", "llama")
    symbolic = symbolic_step(outputs=1, terms=2)
    recipe = evaluated_recipe(folder, tmp_path / "out", symbolic, model="nowhere", evaluation={})
    made = compress.fit(recipe, model=compress.from_pretrained(folder))
    least = min(candidate.complexity for candidate in made.expressions(1)[0].fronts[0].candidates)
    made.pick(1, 0, least)
    assert (made.path / "config.json").is_file()
    with pytest.raises(FileNotFoundError, match="no model folder 'nowhere'"):
        compress.Checkpoint(made.path).expressions()
