"""SymbolicMLP computes outer(expressions(clamp(basis x + offset)), rest), however the model is loaded or traced."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from compress import kinds
from compress.nn.symbolic import SymbolicMLP
from compress.plan import ModuleSpec
from compress.symbolic.compile import compile_program, program_from_json

D_MODEL = 6
EXPRESSIONS = [
    ["add", ["mul", ["param", 0], ["var", 0]], ["sin", ["mul", ["var", 1], ["var", 2]]], ["int", 1]],
    ["mul", ["param", 1], ["exp", ["neg", ["pow", ["var", 2], ["int", 2]]]]],
    ["param", 2],  # reads no input at all
    ["maximum", ["var", 0], ["int", 0]],
]


def built(options: dict[str, Any]) -> dict[str, Any]:
    """Constructor arguments of a spec with these options."""
    return kinds.of(ModuleSpec(module="model.layers.0.mlp", kind="symbolic_mlp", options=options)).arguments()


def options(affine: int = 2, clamp: bool = True, expressions: list[Any] | None = None) -> dict[str, Any]:
    trees = expressions or EXPRESSIONS
    sizes = {"d_model": D_MODEL, "inputs": 3, "outputs": len(trees), "affine": affine, "constants": 3}
    return built({"outer": "down_proj", **sizes, "clamp": clamp, "expressions": trees})


def symbolic_mlp(affine: int = 2, clamp: bool = True) -> SymbolicMLP:
    torch.manual_seed(0)
    module = SymbolicMLP(**options(affine, clamp))
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_()
        module.low.fill_(-1.0)
        module.high.fill_(1.25)
    return module.eval()


def oracle(module: SymbolicMLP, x: torch.Tensor, clamp: bool) -> np.ndarray:
    """Plain float64 numpy, written from the definition."""
    state = {k: v.double().numpy() for k, v in module.state_dict().items()}
    h = x.double().numpy() @ state["basis"].T
    z = h[..., :3] + state["offset"]
    if clamp:
        z = np.clip(z, state["low"], state["high"])
    c = state["program.constants"]
    z0, z1, z2 = np.moveaxis(z, -1, 0)
    y = np.stack([c[0] * z0 + np.sin(z1 * z2) + 1, c[1] * np.exp(-(z2**2)), np.full_like(z0, c[2]), np.maximum(z0, 0)], axis=-1)
    return np.concatenate([y, h[..., 3:]], axis=-1) @ state["down_proj.weight"].T + state["down_proj.bias"]


@pytest.mark.parametrize("affine", [0, 2])
@pytest.mark.parametrize("clamp", [True, False])
@pytest.mark.parametrize("shape", [(4,), (2, 5), (1, 1), (2, 3, 2)])
def test_it_computes_its_definition(affine, clamp, shape):
    module, x = symbolic_mlp(affine, clamp), torch.randn(*shape, D_MODEL)
    np.testing.assert_allclose(module(x).detach().numpy(), oracle(module, x, clamp), rtol=1e-4, atol=1e-4)
    assert not np.allclose(oracle(module, x, clamp), oracle(module, x, not clamp))  # the range matters at these points


def test_clamping_bounds_what_any_input_can_do():
    module = symbolic_mlp(affine=0, clamp=True)
    far = module(torch.tensor([[1e6] * D_MODEL, [-1e6] * D_MODEL]))
    assert torch.isfinite(far).all()
    torch.testing.assert_close(far, module(torch.tensor([[1e9] * D_MODEL, [-1e9] * D_MODEL])))
    assert module.clamped_fraction(torch.full((1, 2, D_MODEL), 1e6)).tolist() == [1.0, 1.0, 1.0]
    assert module.clamped_fraction(torch.zeros(1, 2, D_MODEL)).shape == (3,)


def test_names_dtypes_and_shapes_of_what_is_stored():
    torch.set_default_dtype(torch.bfloat16)  # as transformers does while it builds a bfloat16 model
    try:
        with torch.device("meta"):
            module = SymbolicMLP(**options())
    finally:
        torch.set_default_dtype(torch.float32)
    assert {name: (tuple(t.shape), t.dtype) for name, t in module.state_dict().items()} == {
        "basis": ((5, 6), torch.bfloat16),
        "offset": ((3,), torch.float32),
        "low": ((3,), torch.float32),
        "high": ((3,), torch.float32),
        "program.constants": ((3,), torch.float32),
        "down_proj.weight": ((6, 6), torch.bfloat16),
        "down_proj.bias": ((6,), torch.bfloat16),
    }


def test_a_module_built_on_the_meta_device_is_complete_once_its_state_is_assigned():
    reference, x = symbolic_mlp(), torch.randn(3, D_MODEL)
    with torch.device("meta"):
        module = SymbolicMLP(**options()).eval()
    module.load_state_dict(reference.state_dict(), assign=True)
    assert torch.equal(module(x), reference(x))


def test_bfloat16_models_evaluate_expressions_in_float32():
    module, x = symbolic_mlp(), torch.randn(64, D_MODEL).bfloat16()
    exact = oracle(module, x.float(), clamp=True)
    module.basis.data, module.down_proj = module.basis.data.bfloat16(), module.down_proj.bfloat16()
    y = module(x)
    assert y.dtype == torch.bfloat16
    assert np.abs(y.float().detach().numpy() - exact).max() < 0.1 * np.abs(exact).max()


def test_gradients_reach_every_parameter():
    module = symbolic_mlp()
    module(torch.randn(7, D_MODEL)).square().sum().backward()
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


def test_it_can_be_trained_after_it_was_used_in_inference_mode():
    module, x = symbolic_mlp(), torch.randn(3, D_MODEL)
    with torch.inference_mode():
        module(x)
    module(x).sum().backward()
    assert module.program.constants.grad is not None


def test_it_compiles_as_one_graph_for_any_length():
    module = symbolic_mlp()
    compiled = torch.compile(module, fullgraph=True, backend="eager", dynamic=True)
    for tokens in (1, 4, 9):
        x = torch.randn(2, tokens, D_MODEL)
        torch.testing.assert_close(compiled(x), module(x))


def test_it_exports_with_a_dynamic_length():
    module, x = symbolic_mlp(), torch.randn(2, 7, D_MODEL)
    exported = torch.export.export(module, (x[:, :3].contiguous(),), dynamic_shapes=({1: torch.export.Dim.DYNAMIC},))
    torch.testing.assert_close(exported.module()(x), module(x))


def test_one_input_one_output_no_constants():
    module = SymbolicMLP(
        **built(
            {"outer": "outer", "d_model": 2, "inputs": 1, "outputs": 1, "affine": 0, "constants": 0, "clamp": False}
            | {"expressions": [["pow", ["var", 0], ["int", 2]]]}
        )
    )
    torch.nn.init.ones_(module.basis)
    torch.nn.init.ones_(module.outer.weight)
    torch.nn.init.zeros_(module.outer.bias)
    assert module(torch.tensor([[1.0, 2.0]])).tolist() == [[9.0, 9.0]]


def test_a_program_of_another_size_is_refused():
    given = options()
    with pytest.raises(ValueError, match="not one of 3 inputs, 4 constants and 4 outputs"):
        SymbolicMLP(**given | {"constants": 4})


def test_it_is_a_kind_of_the_plan_under_names_no_loader_rewrites():
    assert kinds.load("symbolic_mlp").runtime is SymbolicMLP
    module = symbolic_mlp()
    assert not any(word in type(m).__name__ for m in module.modules() for word in ("LayerNorm", "RMSNorm", "RotaryEmbedding"))
    assert not any(name.endswith(("weight_g", "weight_v", "gamma", "beta")) for name in module.state_dict())


OPTIONS = {"outer": "down_proj", "d_model": 4, "inputs": 2, "outputs": 1, "affine": 0, "constants": 1, "clamp": True}


def test_symbolic_options_compile_the_expressions_and_keep_the_rest():
    options = built(OPTIONS | {"expressions": [["mul", ["param", 0], ["sin", ["var", 1]]]]})
    program = program_from_json(options.pop("program"))
    assert options == OPTIONS
    assert program == compile_program([["mul", ["param", 0], ["sin", ["var", 1]]]], 2, 1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({}, "expressions: Field required"),
        ({"expressions": "sin(z0)"}, "expressions: Input should be a valid list; given 'sin"),
        ({"expressions": []}, "0 expressions for 1 outputs"),
        ({"expressions": [["var", 0]], "inputs": 0}, "inputs: Input should be greater than or equal to 1; given 0"),
        ({"expressions": [["var", 0]], "constants": "1"}, "constants: Input should be a valid integer; given '1'"),
        ({"expressions": [["var", 0]], "d_model": None}, "d_model: Input should be a valid integer; given None"),
        ({"expressions": [["var", 2]]}, "expression 0: 'var' 2 is out of range"),
        ({"expressions": [["exec", ["var", 0]]]}, "expression 0: no operation 'exec'"),
    ],
)
def test_symbolic_options_name_what_is_wrong(change, message):
    with pytest.raises(ValueError, match=message):
        built(OPTIONS | change)
