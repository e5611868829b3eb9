"""Affine map plus expressions: never worse than the affine control, exact where the MLP is of that form, the same bytes."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA
from sklearn.linear_model import LinearRegression
from torch import Tensor, nn

from compress.architecture import architecture
from compress.checkpoint.units import Artefact
from compress.loading.modules import build
from compress.methods.base import Group, Material, Replacement
from compress.methods.mlp.affine_mlp import AffineMLP
from compress.methods.mlp.residual_mlp import ResidualSurrogate
from compress.numerics.sample import Sample
from compress.numerics.statistics import Moments

D, ROWS = 12, 1000
GROUP = Group("layer1", 0, 1, ("model.layers.1.mlp",))
OPT = Group("layer0", 0, 0, tuple(f"model.decoder.layers.0.{name}" for name in ("fc1", "activation_fn", "fc2")))
OPTIONS: dict[str, Any] = {
    "latents": {"inputs": 2, "outputs": 2},
    "affine": 3,
    "samples": ROWS,
    "engine": {"name": "sparse", "terms": 8},
}


def random(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Planted(nn.Module):
    """A rank-3 affine map plus products of two directions of the input, written in two directions of the output."""

    def forward(self, x: Tensor) -> Tensor:
        x = x.double()
        frame = torch.linalg.qr(random(D, 4, seed=1))[0]
        a = (x - 3.0) @ frame[:, :2]
        products = torch.stack([a[:, 0] * a[:, 1], a[:, 0] ** 2], dim=1)
        return 1.5 + 0.5 * x @ random(D, 3, seed=2) @ random(3, D, seed=3) + products @ random(2, D, seed=4)


class Rough(nn.Module):
    """Nothing that a few expressions could express."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.sin(2 * x.double() @ random(D, 40, seed=5)) @ random(40, D, seed=6) + x.double() @ random(D, D, seed=7)


def rows(call: nn.Module, count: int = ROWS, seed: int = 0) -> tuple[Tensor, Tensor]:
    x = random(count, D, seed=seed) @ torch.diag(torch.linspace(0.5, 2, D, dtype=torch.float64)) + 3.0
    return x, call(x)


def material(call: nn.Module, method: ResidualSurrogate | AffineMLP, group: Group = GROUP, kind: str = "llama") -> Material:
    x, y = rows(call)
    joint, moments = torch.cat([x, y], dim=1), Moments(2 * D)
    sample = Sample(ROWS, ROWS, seed=0)
    for start in range(0, ROWS, 256):
        moments.update(joint[start : start + 256])
        sample.update(joint[start : start + 256], start)
    gradient = Moments(D)
    gradient.update(random(ROWS, D, seed=9) @ torch.diag(torch.logspace(-1, 1, D, dtype=torch.float64)))
    layer = nn.Module()
    if len(group.modules) == 1:
        layer.mlp = call
    else:
        layer.fc1, layer.activation_fn, layer.fc2 = nn.Identity(), nn.Identity(), call
    statistics = {"moments": moments, "sample": sample, "gradient": gradient}
    weights = {f"{m}.weight": torch.zeros(3, 5) for m in group.modules}
    return Material(group, architecture(kind), weights, statistics, layer, seed=7)


def fitted(call: nn.Module, **options: Any) -> tuple[ResidualSurrogate, Artefact]:
    method = ResidualSurrogate(**OPTIONS | options)
    return method, method.fit(material(call, method))


def predicted(replacement: Replacement, x: Tensor, group: Group = GROUP) -> Tensor:
    """What the replaced MLP gives, tensors strictly loaded."""
    for spec in replacement.specs:
        module, prefix = build(spec), f"{spec.module}."
        state = {k.removeprefix(prefix): v.float() for k, v in replacement.tensors.items() if k.startswith(prefix)}
        module.load_state_dict(state, strict=True)
        with torch.no_grad():
            x = module(x.float())
    return x.detach().double()


def weighted(error: Tensor, metric: Tensor) -> float:
    return float(np.einsum("ni,ij,nj->", error.numpy(), metric.numpy(), error.numpy()) / len(error))


@pytest.mark.parametrize("kind", ["gradient", "regression", "pca"])
@pytest.mark.parametrize("call", [Planted(), Rough()], ids=["planted", "rough"])
@pytest.mark.parametrize("affine", [0, 3])
def test_on_calibration_data_it_is_never_worse_than_the_affine_map(call, kind, affine):
    latents = {"kind": kind, "inputs": 6, "outputs": 3}
    method, artefact = fitted(call, latents=latents, affine=affine)
    control = AffineMLP(rank=affine, importance="fisher")
    alone = control.replace(GROUP, control.fit(material(call, control)), architecture("llama"))
    x, y = rows(call)
    metric = artefact.tensors["metric"]
    affine_error = weighted(y - predicted(alone, x), metric)
    for rule in ("held_out", "knee", 5, 1):
        ours = method.model_copy(update={"choose": rule}).replace(GROUP, artefact, architecture("llama"))
        error = weighted(y - predicted(ours, x), metric)
        assert error <= affine_error * (1 + 1e-5), rule
        (row,) = ours.report
        total = weighted(y - y.mean(0), metric)
        assert row["error"] * total == pytest.approx(error, rel=1e-3, abs=1e-5 * total) or rule == "held_out"
        assert row["affine_error"] * total == pytest.approx(affine_error, rel=1e-3)


def test_an_mlp_of_its_form_is_reproduced_on_new_tokens():
    method, artefact = fitted(Planted(), clamp=False, affine=5)  # 3, and what takes the expressions' linear terms out again
    x, y = rows(Planted(), 300, seed=5)
    found = predicted(method.replace(GROUP, artefact, architecture("llama")), x)
    assert (found - y).norm() / (y - y.mean(0)).norm() < 1e-3


def test_the_gradient_finds_what_variance_does_not():
    errors = {}
    for kind in ("gradient", "pca"):
        method, artefact = fitted(Planted(), latents={"kind": kind, "inputs": 2, "outputs": 2})
        errors[kind] = method.replace(GROUP, artefact, architecture("llama")).report[0]["error_held_out"]
    assert errors["gradient"] < 1e-2 < errors["pca"]


def test_without_expressions_it_is_exactly_the_affine_control():
    method, artefact = fitted(Rough(), choose=1)
    ours = method.replace(GROUP, artefact, architecture("llama"))
    control = AffineMLP(rank=3, importance="fisher")
    alone = control.replace(GROUP, control.fit(material(Rough(), control)), architecture("llama"))
    assert [s.kind for s in ours.specs] == ["affine_mlp"]
    assert ours.specs == alone.specs
    assert ours.tensors.keys() == alone.tensors.keys()
    assert all(torch.equal(ours.tensors[k], alone.tensors[k]) for k in ours.tensors)
    assert any("affine map used" in note for note in ours.report[0]["notes"])


def test_an_affine_mlp_needs_no_expression():
    class Affine(nn.Module):
        def forward(self, x):
            return x.double() @ random(D, 2, seed=2) @ random(2, D, seed=3) + 1

    method, artefact = fitted(Affine())
    ours = method.replace(GROUP, artefact, architecture("llama"))
    x, y = rows(Affine(), 100, seed=3)
    assert (predicted(ours, x) - y).norm() / y.norm() < 1e-5


def test_affine_map_is_the_weighted_optimum():
    call = Rough()
    x, y = rows(call)
    method = AffineMLP(rank=3, importance="fisher")
    artefact = method.fit(material(call, method))
    found = predicted(method.replace(GROUP, artefact, architecture("llama")), x)
    # Oracle: whiten both sides in numpy, truncate the SVD of the full least-squares map.
    metric = artefact.tensors["metric"].numpy()
    root = np.linalg.cholesky(metric).T
    xc, yc = (x - x.mean(0)).numpy(), ((y - y.mean(0)) @ torch.from_numpy(root).T).numpy()
    full = xc @ np.linalg.lstsq(xc, yc, rcond=None)[0]
    u, s, vh = np.linalg.svd(full, full_matrices=False)
    best = ((yc - (u[:, :3] * s[:3]) @ vh[:3]) ** 2).sum() / ROWS
    assert weighted(y - found, torch.from_numpy(metric)) == pytest.approx(best, rel=1e-5)
    mean = method.model_copy(update={"rank": 0}).replace(GROUP, artefact, architecture("llama"))
    assert [s.kind for s in mean.specs] == ["mean_mlp"]
    torch.testing.assert_close(mean.tensors["model.layers.1.mlp.down_proj.bias"], y.mean(0))


@pytest.mark.parametrize(("inputs", "outputs"), [(5, 2), (2, 5), (D, D)])
def test_through_the_latents_it_is_least_squares_between_principal_components(inputs, outputs):
    call = Rough()
    x, y = rows(call)
    method = AffineMLP.model_validate({"through": {"inputs": inputs, "outputs": outputs}})
    assert set(method.needs(GROUP, architecture("llama"))) == {"moments"}
    replacement = method.replace(GROUP, method.fit(material(call, method)), architecture("llama"))
    reads, writes = PCA(inputs).fit(x.numpy()), PCA(outputs).fit(y.numpy())
    z, targets = reads.transform(x.numpy()), writes.transform(y.numpy())
    expected = writes.inverse_transform(LinearRegression().fit(z, targets).predict(z))
    np.testing.assert_allclose(predicted(replacement, x).numpy(), expected, rtol=1e-4, atol=1e-4)
    assert replacement.report[0]["rank"] == min(inputs, outputs)


def test_fitting_twice_gives_the_same_bytes():
    (_, first), (_, again) = fitted(Rough()), fitted(Rough())
    assert json.dumps(first.metadata, sort_keys=True) == json.dumps(again.metadata, sort_keys=True)
    assert all(torch.equal(first.tensors[k], again.tensors[k]) for k in first.tensors)


def test_clamped_it_grows_no_faster_than_its_affine_part():
    method, artefact = fitted(Planted(), affine=0)
    x, y = rows(Planted())
    far = predicted(method.replace(GROUP, artefact, architecture("llama")), x * 1e5)
    assert torch.isfinite(far).all()
    assert far.abs().max() < 10 * y.abs().max()


def test_an_inline_mlp_passes_through_to_its_last_linear():
    method = ResidualSurrogate.model_validate(OPTIONS | {"affine": 5})
    replacement = method.replace(OPT, method.fit(material(Planted(), method, OPT, "opt")), architecture("opt"))
    assert [s.kind for s in replacement.specs] == ["pass_through", "pass_through", "symbolic_mlp"]
    x, y = rows(Planted())
    assert (predicted(replacement, x, OPT) - y).norm() / (y - y.mean(0)).norm() < 1e-3


SHAPES = {f"model.layers.1.mlp.{n}_proj.weight": (12, 20) if n == "down" else (20, 12) for n in ("gate", "up", "down")}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"latents": {"inputs": 13}}, "latents.inputs: 13 given, at most d_model = 12"),
        ({"affine": 13}, "affine: 13 given, at most d_model = 12"),
        ({"samples": 10, "latents": {"inputs": 12}}, "samples: 10 leaves 8 rows to fit 12 inputs"),
    ],
)
def test_impossible_options_are_named_before_a_weight_is_read(change, message):
    with pytest.raises(ValueError, match=message):
        ResidualSurrogate(**OPTIONS | change).preview(GROUP, SHAPES, architecture("llama"))
    with pytest.raises(ValueError, match="rank: 13 given, at most d_model = 12"):
        AffineMLP(rank=13, importance="none").preview(GROUP, SHAPES, architecture("llama"))
    with pytest.raises(ValueError, match="outputs: 13 given, at most d_model = 12"):
        AffineMLP.model_validate({"through": {"inputs": 2, "outputs": 13}}).preview(GROUP, SHAPES, architecture("llama"))


class Gated(nn.Module):
    """A real gated MLP, float64 weights, with one activation."""

    def __init__(self, activation: nn.Module) -> None:
        super().__init__()
        self.act_fn = activation

    def weights(self) -> dict[str, Tensor]:
        shapes = {"gate": (20, D), "up": (20, D), "down": (D, 20)}
        return {f"model.layers.1.mlp.{n}_proj.weight": random(*s, seed=k) / 4 for k, (n, s) in enumerate(shapes.items())}

    def forward(self, x: Tensor) -> Tensor:
        gate, up, down = self.weights().values()
        return (self.act_fn(x.double() @ gate.T) * (x.double() @ up.T)) @ down.T


ACTIVATIONS = [nn.SiLU(), nn.GELU(), nn.GELU(approximate="tanh"), nn.ReLU(), nn.Tanh()]


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=str)
def test_all_neurons_are_the_mlp_and_fewer_are_better_with_the_affine_map_than_it_alone(activation):
    call, errors = Gated(activation), {}
    for count in (20, 10):
        method = ResidualSurrogate.model_validate(
            {"latents": {"kind": "neurons", "outputs": count}, "affine": 3, "clamp": False}
        )
        given = material(call, method)
        given = Material(GROUP, given.architecture, call.weights(), given.statistics, given.layer, 7)
        replacement = method.replace(GROUP, method.fit(given), architecture("llama"))
        x, y = rows(call, 200, seed=8)
        errors[count] = float((predicted(replacement, x) - y).norm() / (y - y.mean(0)).norm())
        (row,) = replacement.report
        assert row["rank"] == [2 * count, count, 3]
        assert row["error"] < row["affine_error"]
    assert errors[20] < 1e-4 < errors[10] < 1


def test_an_activation_without_a_closed_form_is_named():
    method = ResidualSurrogate.model_validate({"latents": {"kind": "neurons", "outputs": 2}, "affine": 3})
    with pytest.raises(
        ValueError, match=r"knows the activations silu, gelu.*this MLP has \['Softshrink'\]; use kind: gradient"
    ):
        method.fit(material(Gated(nn.Softshrink()), method))
