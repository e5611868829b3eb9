"""The published surrogate: exact where the MLP is what it can express, the same bytes every time, under the right names."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from compress.architecture import architecture
from compress.checkpoint.units import Artefact
from compress.loading.modules import build
from compress.methods.base import Group, Material, Replacement
from compress.methods.mlp.symbolic_mlp import SymbolicSurrogate
from compress.numerics.sample import Sample
from compress.numerics.statistics import Moments

D_MODEL, DIRECTIONS, ROWS = 12, 4, 800
GROUP = Group("layer1", 0, 1, ("model.layers.1.mlp",))
OPT = Group("layer0", 0, 0, tuple(f"model.decoder.layers.0.{name}" for name in ("fc1", "activation_fn", "fc2")))
OPTIONS: dict[str, Any] = {
    "latents": {"inputs": DIRECTIONS, "outputs": 2},
    "samples": 500,
    "engine": {"name": "sparse", "terms": 30},
}


def planted(rows: int = ROWS, seed: int = 0) -> tuple[Tensor, Tensor]:
    """(x, y), (rows, D_MODEL) each: x moves in four directions, y is quadratic in them and moves in two; both far from zero."""
    generator = torch.Generator().manual_seed(seed)
    frame = torch.linalg.qr(torch.randn(D_MODEL, DIRECTIONS, generator=torch.Generator().manual_seed(1), dtype=torch.float64))[
        0
    ]
    a = torch.randn(rows, DIRECTIONS, generator=generator, dtype=torch.float64) * torch.tensor([4.0, 3.0, 2.0, 1.0])
    y = torch.stack([a[:, 0] * a[:, 1] + a[:, 2], a[:, 3] ** 2 - 0.3 * a[:, 0]], dim=1) @ frame[:, :2].T
    return a @ frame.T + 3.0, y - 1.5


def material(x: Tensor, y: Tensor, method: SymbolicSurrogate, group: Group = GROUP, model_type: str = "llama") -> Material:
    joint = torch.cat([x, y], dim=1)
    moments, sample = Moments(joint.shape[1]), Sample(method.samples, len(joint), seed=0)
    for start in range(0, len(joint), 256):
        moments.update(joint[start : start + 256], start)
        sample.update(joint[start : start + 256], start)
    weights = {f"{m}.weight": torch.zeros(3, 5) for m in group.modules}
    statistics = {"moments": moments, "sample": sample}
    return Material(group, architecture(model_type), weights, statistics, nn.Identity(), seed=7)


def fitted(**options: Any) -> tuple[SymbolicSurrogate, Artefact]:
    method = SymbolicSurrogate(**OPTIONS | options)
    return method, method.fit(material(*planted(), method))


def module_of(replacement: Replacement, group: Group = GROUP) -> nn.Module:
    """The last replaced module with its tensors, strictly loaded."""
    module, prefix = build(replacement.specs[-1]), f"{group.modules[-1]}."
    module.load_state_dict(
        {k.removeprefix(prefix): v for k, v in replacement.tensors.items() if k.startswith(prefix)}, strict=True
    )
    return module.eval()


def test_an_mlp_it_can_express_is_reproduced_on_new_tokens():
    method, artefact = fitted(clamp=False)
    replacement = method.replace(GROUP, artefact, architecture("llama"))
    x, y = planted(300, seed=5)
    predicted = module_of(replacement)(x.float()).double()
    assert (predicted - y).norm() / (y - y.mean(0)).norm() < 1e-4
    (row,) = replacement.report
    assert row["explained_variance"] == pytest.approx(1.0, abs=1e-6)
    assert row["explained_variance_in"] == pytest.approx(1.0)
    assert row["parameters_before"] == 15
    assert row["parameters"] == sum(t.numel() for t in replacement.tensors.values())


def test_expressions_beat_the_affine_control_where_the_mlp_is_not_affine():
    method, artefact = fitted()
    (row,) = method.replace(GROUP, artefact, architecture("llama")).report
    assert all(found > affine + 0.3 for found, affine in zip(row["r2_held_out"], row["affine_r2"], strict=True))


def test_clamped_it_is_bounded_however_far_the_input():
    method, artefact = fitted()
    module = module_of(method.replace(GROUP, artefact, architecture("llama")))
    x, y = planted()
    far = module(torch.cat([x * 1e6, -x * 1e6]).float())
    assert torch.isfinite(far).all()
    assert far.abs().max() < 10 * y.abs().max()


def test_fitting_twice_gives_the_same_bytes():
    engine = {"evaluations": 1000, "population": 50, "terms": 4, "max_length": 15}
    (_, first), (_, again) = fitted(engine=engine), fitted(engine=engine)
    assert json.dumps(first.metadata, sort_keys=True) == json.dumps(again.metadata, sort_keys=True)
    assert first.tensors.keys() == again.tensors.keys()
    assert all(torch.equal(first.tensors[k], again.tensors[k]) for k in first.tensors)


def test_choosing_again_needs_no_new_fit():
    method, artefact = fitted()
    stored = Artefact(artefact.tensors, json.loads(json.dumps(artefact.metadata, allow_nan=False)))
    assert "choose" in method.decided_late
    simple = method.model_copy(update={"choose": 1}).replace(GROUP, stored, architecture("llama"))
    assert simple.report[0]["complexity"] == [1, 1]
    assert simple.report[0]["r2_held_out"][0] < 0.1
    assert simple.tensors[f"{GROUP.modules[0]}.program.constants"].numel() == 2
    x, y = planted()
    constant = module_of(simple)(x.float()).double()  # with complexity 1, the mean control
    torch.testing.assert_close(constant[0], y.mean(0), rtol=0.1, atol=0.5)
    assert torch.equal(constant, constant[:1].expand_as(constant))


def test_stored_names_and_dtypes_for_an_mlp_that_is_one_module():
    method, artefact = fitted()
    replacement = method.replace(GROUP, artefact, architecture("llama"))
    assert [(s.module, s.kind) for s in replacement.specs] == [("model.layers.1.mlp", "symbolic_mlp")]
    assert replacement.removed == GROUP.modules
    # float64 is stored in the model's dtype; what the expressions read stays float32
    assert {name: t.dtype for name, t in replacement.tensors.items()} == {
        "model.layers.1.mlp.basis": torch.float64,
        "model.layers.1.mlp.offset": torch.float32,
        "model.layers.1.mlp.low": torch.float32,
        "model.layers.1.mlp.high": torch.float32,
        "model.layers.1.mlp.program.constants": torch.float32,
        "model.layers.1.mlp.down_proj.weight": torch.float64,
        "model.layers.1.mlp.down_proj.bias": torch.float64,
    }
    assert replacement.tensors["model.layers.1.mlp.down_proj.weight"].shape == (D_MODEL, 2)


def test_an_inline_mlp_passes_through_to_its_last_linear():
    method = SymbolicSurrogate(**OPTIONS)
    artefact = method.fit(material(*planted(), method, OPT, "opt"))
    replacement = method.replace(OPT, artefact, architecture("opt"))
    layer = "model.decoder.layers.0"
    assert [(s.module, s.kind, s.options.get("occupied")) for s in replacement.specs] == [
        (f"{layer}.fc1", "pass_through", True),
        (f"{layer}.activation_fn", "pass_through", False),
        (f"{layer}.fc2", "symbolic_mlp", None),
    ]
    assert replacement.tensors[f"{layer}.fc1.weight"].numel() == 0
    x = planted()[0].float()
    for spec in replacement.specs[:-1]:
        x = build(spec)(x)
    assert module_of(replacement, OPT)(x).shape == x.shape


def test_needs_are_the_joint_rows_of_the_mlp():
    method = SymbolicSurrogate(**OPTIONS)
    needs = method.needs(OPT, architecture("opt"))
    assert {(n.input_of, n.output_of) for n in needs.values()} == {(OPT.modules[0], OPT.modules[-1])}
    assert (needs["sample"].statistic, needs["sample"].rows, needs["moments"].statistic) == ("sample", 500, "moments")


SHAPES = {
    "model.layers.1.mlp.gate_proj.weight": (20, 12),
    "model.layers.1.mlp.up_proj.weight": (20, 12),
    "model.layers.1.mlp.down_proj.weight": (12, 20),
}


def test_preview_counts_projections():
    (preview,) = SymbolicSurrogate(**OPTIONS).preview(GROUP, SHAPES, architecture("llama"))
    assert (preview.shape, preview.before, preview.after) == ((12, 12), 720, 4 * (12 + 3) + 2 * 12 + 12)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"latents": {"inputs": 13}}, "latents.inputs: 13 given, at most d_model = 12"),
        ({"latents": {"outputs": 20, "inputs": 2}}, "latents.outputs: 20 given"),
        ({"samples": 10, "latents": {"inputs": 12}}, "samples: 10 leaves 8 rows to fit 12 inputs"),
        ({"engine": {"name": "pysr"}}, "needs the package pysr"),
    ],
)
def test_impossible_options_are_named_before_a_weight_is_read(change, message):
    with pytest.raises(ValueError, match=message):
        SymbolicSurrogate(**OPTIONS | change).preview(GROUP, SHAPES, architecture("llama"))


def test_more_latents_than_calibration_moved_along_are_refused():
    with pytest.raises(ValueError, match=r"latents.inputs: 6 given, but the calibrated MLP inputs vary in 4 directions only"):
        fitted(latents={"inputs": 6, "outputs": 2})
