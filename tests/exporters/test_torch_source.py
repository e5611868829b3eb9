"""The standalone file computes what transformers computes, where neither compress nor transformers can be imported."""

from __future__ import annotations

import ast
import json
import shutil
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import (
    D_MODEL,
    FAMILIES,
    POSITIONS,
    VOCABULARY,
    random_plan,
    randomize,
    run_without,
    tiny_checkpoint,
    tiny_model,
)
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from compress import nn
from compress.hf import apply_plan, attach_plan, register
from compress.plan import ModuleSpec, Plan
from exporters import torch_linears, torch_parity
from exporters.torch_parity import load_standalone
from exporters.torch_source import export_pt2, export_torch

KINDS: dict[str, tuple[str, ...]] = {
    "dense": (),
    "low_rank": ("low_rank_linear",),
    "pivoted and symbolic": ("pivoted_linear", "symbolic_mlp"),
    "dense of another bias, identity, mean": ("dense_linear", "identity_mlp", "mean_mlp"),
    "zero, affine": ("zero_mlp", "affine_mlp"),
}
_LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 32}
_YARN = {"factor": 4.0, "original_max_position_embeddings": 32}
_NEOX = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.25}
# Switches of a config that change what is computed, beyond the fixture's own.
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "rope linear": ("llama", {"rope_parameters": {"rope_type": "linear", "rope_theta": 500.0, "factor": 4.0}}),
    "rope llama3": ("llama", {"rope_parameters": {"rope_type": "llama3", "rope_theta": 500.0} | _LLAMA3}),
    "rope yarn": ("qwen2", {"rope_parameters": {"rope_type": "yarn", "rope_theta": 500.0} | _YARN}),
    "no window": ("mistral", {"sliding_window": None}),
    "window on one layer": ("qwen2", {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 1}),
    "untied": ("qwen3", {"tie_word_embeddings": False}),
    "tied": ("llama", {"tie_word_embeddings": True}),
    "no caps": ("gemma2", {"attn_logit_softcapping": None, "final_logit_softcapping": None}),
    "one key and value head": ("gemma", {"num_key_value_heads": 1}),
    "normed queries": ("phi", {"qk_layernorm": True, "num_key_value_heads": 4}),
    "serial": ("gpt_neox", {"use_parallel_residual": False, "rope_parameters": _NEOX}),
    "scaled by layer": ("gpt2", {"scale_attn_by_inverse_layer_idx": True, "n_inner": None, "activation_function": "relu"}),
    "unscaled": ("gpt2", {"scale_attn_weights": False}),
    "norm after, narrow embeddings": ("opt", {"do_layer_norm_before": False, "word_embed_proj_dim": 24}),
    "no biases": ("opt", {"enable_bias": False, "layer_norm_elementwise_affine": False}),
}
IDS = [5, 17, 3, 88, 41, 2, 60, 9, 33, 7, 71, 14, 52, 96, 1, 28, 45, 11, 80, 6, 19, 64, 23, 90]
TOKENS = 12

# Imports every file by path; logits of all positions, then greedy tokens with the cache, as JSON.
_RUN = """
import importlib.util, json, sys
import torch
torch.set_num_threads(1)
folders, ids, tokens = json.loads(sys.argv[1]), json.loads(sys.argv[2]), int(sys.argv[3])
out = {}
for name, folder in folders.items():
    spec = importlib.util.spec_from_file_location("model", folder + "/model.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    model = module.load(module.Path(folder))
    with torch.no_grad():
        logits = model(torch.tensor([ids, ids[::-1]]))[0]
    out[name] = [logits.tolist(), list(module.generate(model, ids, tokens))]
assert not {"compress", "transformers", "safetensors", "tokenizers"} & set(sys.modules)
print(json.dumps(out))
"""


def _reference(folder: Path) -> tuple[torch.Tensor, list[int]]:
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    with torch.no_grad():
        logits = model(torch.tensor([IDS, IDS[::-1]])).logits
        tokens = torch_parity.greedy_transformers(model, torch.tensor([IDS]), TOKENS)
    return logits, tokens


Case = tuple[Path, torch.Tensor, list[int], torch.Tensor, list[int]]
NAMES = [*(f"{family}, {kind}" for family in FAMILIES for kind in KINDS), *VARIANTS]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Case]:
    """Per case: the exported folder, transformers' logits and tokens, the standalone file's logits and tokens."""
    register()
    root = tmp_path_factory.mktemp("standalone")
    cases: dict[str, tuple[str, tuple[str, ...], dict[str, Any]]] = {
        f"{family}, {kind}": (family, kinds, {}) for family in FAMILIES for kind, kinds in KINDS.items()
    }
    cases |= {name: (family, ("low_rank_linear",), overrides) for name, (family, overrides) in VARIANTS.items()}
    folders, references = {}, {}
    for number, (name, (family, kinds, overrides)) in enumerate(cases.items()):
        checkpoint = tiny_checkpoint(root / f"{number}", family, *kinds, seed=number, **overrides)
        export_torch(checkpoint, out := root / f"{number}-torch", verify=False)
        folders[name], references[name] = out, _reference(checkpoint)
    arguments = json.dumps({name: str(folder) for name, folder in folders.items()}), json.dumps(IDS), str(TOKENS)
    found = json.loads(run_without(["compress", "transformers", "safetensors", "tokenizers"], _RUN, root, *arguments))
    return {name: (folders[name], *references[name], torch.tensor(found[name][0]), found[name][1]) for name in cases}


@pytest.mark.parametrize("name", NAMES)
def test_logits_and_greedy_tokens_are_those_of_transformers(exported: dict[str, Case], name: str) -> None:
    _, logits, tokens, got, generated = exported[name]
    assert logits.std() > 0.3, "logits that hardly differ would prove nothing"
    assert (got - logits).abs().max() <= 1e-4 * max(1.0, float(logits.abs().max()))
    assert generated == tokens


@pytest.mark.parametrize("name", NAMES)
def test_the_file_has_nothing_it_does_not_use_and_no_long_line(exported: dict[str, Case], name: str) -> None:
    text = (exported[name][0] / "model.py").read_text()
    assert max(map(len, text.splitlines())) <= 128
    tree = ast.parse(text)
    defined = {node.name for node in tree.body if isinstance(node, ast.ClassDef | ast.FunctionDef)}
    constants = {
        n.id for node in tree.body if isinstance(node, ast.Assign) for n in ast.walk(node.targets[0]) if isinstance(n, ast.Name)
    }
    imported = {
        alias.asname or alias.name
        for node in tree.body
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in node.names
    }
    # Annotations are strings at run time but names in the tree, so a type alias counts as used where it is written.
    used = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)}
    assert (defined | constants | imported) - used - {"annotations"} == set()
    assert all(
        (module or "").partition(".")[0]
        in {"__future__", "argparse", "collections", "json", "pathlib", "torch", "tokenizers", "typing"}
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
        for module in [node.module]
    )


def test_a_model_in_the_manner_of_the_quickstart_is_short_and_reports_its_parity(tmp_path: Path) -> None:
    checkpoint = _novella(tmp_path / "checkpoint")
    report = export_torch(checkpoint, tmp_path / "out")
    assert report["max_abs_logit_difference"] <= 1e-4 * max(1.0, report["max_abs_logit"])
    assert (report["greedy_tokens_compared"], report["greedy_agreement"]) == (64, 1.0)
    text = (tmp_path / "out" / "model.py").read_text()
    assert report["file"] == str(tmp_path / "out" / "model.py")
    assert report["bytes"] == sum((tmp_path / "out" / name).stat().st_size for name in ("model.py", "model.safetensors"))
    assert len(text.splitlines()) <= 320, "some 60 of them are expressions"
    assert "MLPs of layers 1 and 4 are SymbolicMLP" in text
    compile(text, "model.py", "exec", dont_inherit=True)


def test_a_model_of_low_rank_linears_is_a_short_read(exported: dict[str, Case]) -> None:
    assert len((exported["qwen2, low_rank"][0] / "model.py").read_text().splitlines()) <= 255


def test_expressions_of_many_latents_keep_to_the_line_length(tmp_path: Path) -> None:
    inputs, outputs = 32, 12

    def tree(output: int) -> list[Any]:
        terms = [
            ["mul", ["param", (output + i) % 7], ["tanh", ["mul", ["var", i], ["var", (i + output) % inputs]]]]
            for i in range(9)
        ]
        return ["div", ["add", *terms], ["add", ["int", 2], ["cos", ["var", output]]]]

    options = {"d_model": D_MODEL, "inputs": inputs, "outputs": outputs, "affine": 0, "constants": 7, "clamp": False}
    clamped = options | {
        "inputs": 3,
        "outputs": 1,
        "constants": 0,
        "clamp": True,
        "expressions": [["mul", ["var", 0], ["var", 2]]],
    }
    each = (options | {"expressions": [tree(o) for o in range(outputs)]}, clamped)
    specs = [
        ModuleSpec(module=f"model.layers.{layer}.mlp", kind="symbolic_mlp", options={"outer": "down_proj"} | more)
        for layer, more in enumerate(each)
    ]
    export_torch(_with_plan(tmp_path / "checkpoint", "llama", Plan(modules=tuple(specs))), tmp_path / "out")
    text = (tmp_path / "out" / "model.py").read_text()
    assert max(map(len, text.splitlines())) <= 128
    assert "SymbolicMLP0(inputs=32, outputs=12, constants=7, clamp=False)" in text


def test_the_command_line_generates_from_text_and_from_ids(tmp_path: Path) -> None:
    export_torch(_novella(tmp_path / "checkpoint"), out := tmp_path / "out", verify=False)
    code = """
import runpy, sys
for arguments in (["--prompt", "The", "--tokens", "5"], ["--ids", "5,6,7", "--tokens", "5"]):
    for seed in ("1", "1"):
        sys.argv = ["model.py", *arguments, "--temperature", "0.9", "--seed", seed]
        runpy.run_path("model.py", run_name="__main__")
"""
    first, again, ids, ids_again = run_without(["compress", "transformers", "safetensors"], code, out).splitlines()
    assert first.startswith("The")
    assert (first, ids) == (again, ids_again), "the same seed draws the same tokens"
    assert 1 <= len([int(token) for token in ids.split(",")]) <= 5


@pytest.mark.parametrize("family", ["qwen2", "gpt2"])
def test_torch_compile_takes_the_forward_as_one_graph(exported: dict[str, Case], family: str) -> None:
    _, model = load_standalone(exported[f"{family}, pivoted and symbolic"][0])
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    ids, cache, compiled_cache = torch.tensor([IDS]), None, None
    with torch.no_grad():
        for _ in range(3):  # the prefill, then single tokens on a growing cache
            logits, cache = model(ids, cache)
            compiled_logits, compiled_cache = compiled(ids, compiled_cache)
            assert torch.equal(compiled_logits, logits)
            ids = logits[:, -1:].argmax(dim=-1)


def test_torch_export_serves_any_batch_and_length(exported: dict[str, Case]) -> None:
    folder = exported["mistral, low_rank"][0]
    program = torch.export.load(export_pt2(folder)).module()
    _, model = load_standalone(folder)
    for shape in ((1, 1), (3, 40), (2, POSITIONS)):
        ids = torch.randint(90, shape, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            torch.testing.assert_close(program(ids)[0], model(ids)[0], rtol=0, atol=1e-5)


def test_bfloat16_halves_the_weights_and_computes_the_same_function(tmp_path: Path) -> None:
    checkpoint = tiny_checkpoint(tmp_path / "checkpoint", "llama", "low_rank_linear", "symbolic_mlp")
    report = export_torch(checkpoint, tmp_path / "out", dtype="bfloat16")  # compared at the rounded weights
    assert report["dtype"] == "bfloat16"
    _, model = load_standalone(tmp_path / "out")
    dtypes = {name: tensor.dtype for name, tensor in model.state_dict().items()}
    assert dtypes["layers.0.attention.q.basis"] == torch.bfloat16
    assert dtypes["layers.1.mlp.constants"] == torch.float32, "an expression's constants are never rounded"
    assert model(torch.tensor([IDS]))[0].dtype == torch.bfloat16


def test_a_file_that_computes_something_else_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from exporters import torch_source

    checkpoint = tiny_checkpoint(tmp_path / "checkpoint", "llama")
    honest = torch_source.source
    monkeypatch.setattr(torch_source, "source", lambda parts: honest(parts).replace("= 500.0,", "= 510.0,"))
    with pytest.raises(RuntimeError, match=r"max \|Δlogit\|.*greedy tokens"):
        export_torch(checkpoint, tmp_path / "out")


def test_a_replaced_output_projection_and_a_pruned_mlp(tmp_path: Path) -> None:
    def linear(name: str, kind: str, d_in: int, d_out: int, **options: Any) -> ModuleSpec:
        return ModuleSpec(module=name, kind=kind, options={"in_features": d_in, "out_features": d_out, "bias": False} | options)

    mlp = "model.layers.0.mlp"
    plan = Plan(
        modules=(
            linear("lm_head", "low_rank_linear", D_MODEL, VOCABULARY, rank=7),
            linear(f"{mlp}.gate_proj", "dense_linear", D_MODEL, 20),
            linear(f"{mlp}.up_proj", "dense_linear", D_MODEL, 20),
            linear(f"{mlp}.down_proj", "dense_linear", 20, D_MODEL),
        )
    )
    export_torch(_with_plan(tmp_path / "checkpoint", "mistral", plan), tmp_path / "out")
    text = (tmp_path / "out" / "model.py").read_text()
    assert "LowRankLinear(D_MODEL, VOCABULARY, rank=7, bias=False)" in text
    assert "lambda *_: nn.Linear(20, 32, bias=False)" in text


class Scaled(torch.nn.Module):
    """Test double of a kind that keeps the linear it replaces."""

    def __init__(self, original: torch.nn.Module, factor: float) -> None:
        super().__init__()
        self.original, self.factor = original, factor
        self.weight = torch.nn.Parameter(torch.empty(0))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.original(x) * self.factor


def test_a_kind_that_wraps_the_linear_it_replaces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(nn.KINDS, "scaled_linear", Scaled)
    for module in (nn, torch_linears):
        monkeypatch.setattr(module, "WRAPPERS", frozenset({"scaled_linear"}))
    names = [f"model.layers.0.self_attn.{name}_proj" for name in ("q", "o")]  # with a bias and without
    plan = Plan(modules=tuple(ModuleSpec(module=name, kind="scaled_linear", options={"factor": 0.5}) for name in names))
    export_torch(_with_plan(tmp_path / "checkpoint", "qwen2", plan), tmp_path / "out")
    assert "lambda *shape: Scaled(nn.Linear(*shape, bias=False), factor=0.5)" in (tmp_path / "out" / "model.py").read_text()


def test_a_base_model_saved_without_its_prefix(tmp_path: Path) -> None:
    checkpoint = tiny_checkpoint(tmp_path / "checkpoint", "gpt2")
    tensors = {
        name.removeprefix("transformer."): tensor for name, tensor in load_file(checkpoint / "model.safetensors").items()
    }
    save_file(tensors, checkpoint / "model.safetensors", metadata={"format": "pt"})
    assert export_torch(checkpoint, tmp_path / "out")["greedy_agreement"] == 1


def test_two_exports_are_the_same_bytes(tmp_path: Path) -> None:
    checkpoint = tiny_checkpoint(tmp_path / "checkpoint", "qwen2", "pivoted_linear", "affine_mlp", "mean_mlp")
    for name in ("a", "b"):
        export_torch(checkpoint, tmp_path / name, verify=False)
    for file in ("model.py", "model.safetensors"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


@pytest.mark.parametrize(
    ("family", "overrides", "says"),
    [
        (
            "llama",
            {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 500.0, "factor": 2.0}},
            "'dynamic'.*default, linear, llama3",
        ),
        ("llama", {"hidden_act": "mish"}, "activation 'mish'.*silu"),
    ],
)
def test_what_the_file_cannot_hold_is_refused_by_name(
    tmp_path: Path, family: str, overrides: dict[str, Any], says: str
) -> None:
    checkpoint = tiny_checkpoint(tmp_path / "checkpoint", family, **overrides)
    with pytest.raises(NotImplementedError, match=says):
        export_torch(checkpoint, tmp_path / "out")


def test_a_replaced_module_of_no_known_place_is_refused_by_name(tmp_path: Path) -> None:
    plan = Plan(modules=(ModuleSpec(module="model.norm", kind="identity_mlp", options={"outer": "outer"}),))
    with pytest.raises(NotImplementedError, match=r"'model.norm' by 'identity_mlp'; supported: linears and MLPs"):
        export_torch(_with_plan(tmp_path / "checkpoint", "llama", plan), tmp_path / "out")


def test_wrong_arguments_name_what_is_allowed(tmp_path: Path) -> None:
    checkpoint = tiny_checkpoint(tmp_path / "checkpoint", "llama")
    with pytest.raises(ValueError, match="unknown dtype 'int4'; allowed: float32"):
        export_torch(checkpoint, tmp_path / "out", dtype="int4")
    tensors = load_file(checkpoint / "model.safetensors")
    save_file({name: tensor for name, tensor in tensors.items() if "norm" not in name}, checkpoint / "model.safetensors")
    with pytest.raises(ValueError, match="has no tensor"):
        export_torch(checkpoint, tmp_path / "out")
    with pytest.raises(FileNotFoundError, match=r"no model\.py"):
        export_pt2(tmp_path)


def _with_plan(folder: Path, family: str, plan: Plan) -> Path:
    """A random model with this plan applied, parameters seeded."""
    model = tiny_model(family)
    apply_plan(model, plan)
    for position, spec in enumerate(plan.modules):
        randomize(model.get_submodule(spec.module), position)
    attach_plan(model, plan)
    model.save_pretrained(folder)
    return folder


def _novella(folder: Path) -> Path:
    """The packaged model with every decoder linear factored (noise in place of fitted factors) and two symbolic MLPs."""
    source = Path(str(files("compress"))) / "novella"
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    plan = random_plan(model, "low_rank_linear", "symbolic_mlp")
    d_model = model.config.hidden_size
    specs = {
        spec.module: spec.model_copy(update={"options": dict(spec.options) | {"d_model": d_model}})
        if spec.kind == "symbolic_mlp"
        else spec
        for spec in plan.modules
    }
    last = next(spec for spec in specs.values() if spec.kind == "symbolic_mlp")
    moved = {f"model.layers.{layer}.mlp": last.model_copy(update={"module": f"model.layers.{layer}.mlp"}) for layer in (1, 4)}
    kept = {name: spec for name, spec in specs.items() if spec is not last and not any(name.startswith(m + ".") for m in moved)}
    plan = Plan(modules=(*kept.values(), *moved.values()))
    apply_plan(model, plan)
    for position, spec in enumerate(plan.modules):
        randomize(model.get_submodule(spec.module), position)
    attach_plan(model, plan)
    model.save_pretrained(folder)
    for name in ("tokenizer.json", "generation_config.json"):
        shutil.copyfile(source / name, folder / name)
    return folder
