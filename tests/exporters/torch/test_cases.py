"""The standalone torch file in its special cases: the demo model, the command line, dtypes, odd replacements, refusals."""

from __future__ import annotations

import json
import shutil
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import D_MODEL, VOCABULARY, random_plan, scaled_kind, tiny_checkpoint, tiny_model, with_plan
from interpreters import run_without
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from compress.cli.main import app
from compress.plan import ModuleSpec, Plan
from exporters.torch import source as torch_source
from exporters.torch.assembly import source
from exporters.torch.parity import load_standalone
from exporters.torch.source import export_pt2, export_torch

ROPE_LINEAR = {"rope_type": "linear", "rope_theta": 500.0, "factor": 4.0}


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
    export_torch(with_plan(tmp_path / "checkpoint", tiny_model("llama"), Plan(modules=tuple(specs))), tmp_path / "out")
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


def test_bfloat16_halves_the_weights_and_computes_the_same_function(tmp_path: Path) -> None:
    checkpoint = tiny_checkpoint(tmp_path / "checkpoint", "llama", "low_rank_linear", "symbolic_mlp")
    report = export_torch(checkpoint, tmp_path / "out", dtype="bfloat16")  # compared at the rounded weights
    assert report["dtype"] == "bfloat16"
    _, model = load_standalone(tmp_path / "out")
    dtypes = {name: tensor.dtype for name, tensor in model.state_dict().items()}
    assert dtypes["layers.0.attention.q.basis"] == torch.bfloat16
    assert dtypes["layers.1.mlp.constants"] == torch.float32, "an expression's constants are never rounded"
    assert model(torch.arange(20)[None])[0].dtype == torch.bfloat16


def test_a_file_that_computes_something_else_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = tiny_checkpoint(tmp_path / "checkpoint", "llama")
    monkeypatch.setattr(torch_source, "source", lambda parts: source(parts).replace("= 500.0,", "= 510.0,"))
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
    export_torch(with_plan(tmp_path / "checkpoint", tiny_model("mistral"), plan), tmp_path / "out")
    text = (tmp_path / "out" / "model.py").read_text()
    assert "LowRankLinear(D_MODEL, VOCABULARY, rank=7, bias=False)" in text
    assert "lambda *_: nn.Linear(20, 32, bias=False)" in text


def test_a_kind_that_wraps_the_linear_it_replaces(tmp_path: Path) -> None:
    names = [f"model.layers.0.self_attn.{name}_proj" for name in ("q", "o")]  # with a bias and without
    plan = Plan(modules=tuple(ModuleSpec(module=name, kind="scaled_linear", options={"factor": 0.5}) for name in names))
    with scaled_kind():
        export_torch(with_plan(tmp_path / "checkpoint", tiny_model("qwen2"), plan), tmp_path / "out")
    assert (
        "lambda *shape: ScaledLinear(nn.Linear(*shape, bias=False), factor=0.5)" in (tmp_path / "out" / "model.py").read_text()
    )


def test_a_base_model_saved_without_its_prefix(tmp_path: Path) -> None:
    checkpoint = tiny_checkpoint(tmp_path / "checkpoint", "gpt2")
    tensors = {
        name.removeprefix("transformer."): tensor for name, tensor in load_file(checkpoint / "model.safetensors").items()
    }
    save_file(tensors, checkpoint / "model.safetensors", metadata={"format": "pt"})
    assert export_torch(checkpoint, tmp_path / "out")["greedy_agreement"] == 1


def test_the_export_command_writes_pt2_beside_the_file(tmp_path: Path) -> None:
    checkpoint = tiny_checkpoint(tmp_path / "checkpoint", "llama", "shared_across")
    done = CliRunner().invoke(app, ["export", str(checkpoint), "--torch", "--pt2", "--json"])
    assert done.exit_code == 0, done.output
    path = Path(json.loads(done.stdout)["torch"]["pt2"])
    assert path == checkpoint / "torch" / "model.pt2"
    ids = torch.arange(20).view(4, 5)
    with torch.no_grad():
        expected = AutoModelForCausalLM.from_pretrained(checkpoint)(ids).logits
        torch.testing.assert_close(torch.export.load(path).module()(ids)[0], expected, rtol=0, atol=1e-4)
    with pytest.raises(ValueError, match="give torch too"):
        CliRunner().invoke(app, ["export", str(checkpoint), "--onnx", "--pt2"], catch_exceptions=False)


def test_an_owner_that_is_no_linear_is_refused_by_name(tmp_path: Path) -> None:
    checkpoint = tiny_checkpoint(tmp_path / "checkpoint", "llama", "shared_across")
    config = (checkpoint / "config.json").read_text()
    (checkpoint / "config.json").write_text(
        config.replace('"owner": "model.layers.0.self_attn.v_proj"', '"owner": "model.norm"')
    )
    with pytest.raises(ValueError, match=r"names 'model\.norm', which is no linear of llama"):
        export_torch(checkpoint, tmp_path / "out")


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
    with pytest.raises(NotImplementedError, match=r"'model.norm' by 'identity_mlp'; supported: linears, MLPs and attentions"):
        export_torch(with_plan(tmp_path / "checkpoint", tiny_model("llama"), plan), tmp_path / "out")


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
    with_plan(folder, model, Plan(modules=(*kept.values(), *moved.values())))
    for name in ("tokenizer.json", "generation_config.json"):
        shutil.copyfile(source / name, folder / name)
    return folder
