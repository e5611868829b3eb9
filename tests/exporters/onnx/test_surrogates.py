"""A surrogate is one named function per layer, computes what torch computes, and matters in the logits that parity compares."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from checkpoints import tiny_checkpoint
from onnx_folders import folders

from compress.loading.quantizer import from_pretrained
from compress.nn.symbolic import ExpressionProgram
from compress.symbolic.compile import compile_program, program_to_json
from exporters.onnx import graph as graph_export
from exporters.onnx import parity
from exporters.onnx.graph import export_onnx
from exporters.onnx.runtime import CPU, OnnxModel
from exporters.onnx.surrogates import attach, function_proto, surrogates_as_functions

NAME = "surrogate_layer_1"
X, Y = ["var", 0], ["var", 1]


def test_the_graph_calls_one_function_per_layer(tmp_path_factory: pytest.TempPathFactory) -> None:
    model = onnx.load(folders("llama", tmp_path_factory)[1] / "model.onnx")
    assert [(f.domain, f.name) for f in model.functions] == [("compress", NAME)]
    calls = [node for node in model.graph.node if node.domain == "compress"]
    assert [(node.op_type, node.name) for node in calls] == [(NAME, f"model.layers.1.mlp.program/{NAME}")]
    assert {o.domain: o.version for o in model.opset_import}["compress"] == 1


def test_parity_sees_a_wrong_function(tmp_path_factory: pytest.TempPathFactory, tmp_path: Path) -> None:
    checkpoint, out = folders("llama", tmp_path_factory)
    model = onnx.load(out / "model.onnx")
    [tanh] = [node for node in model.functions[0].node if node.op_type == "Tanh"]
    tanh.op_type = "Neg"
    onnx.save(model, tmp_path / "model.onnx")
    given = parity.reference(from_pretrained(checkpoint, dtype=torch.float32), range(1, 97))
    right = parity.compare(given, out, CPU)
    wrong = parity.compare(given, tmp_path, CPU)
    assert parity.breach(right, CPU, "float32", 1e-4) is None
    assert wrong["max_abs_difference"] > 100 * right["max_abs_difference"]
    assert "logits differ" in str(parity.breach(wrong, CPU, "float32", 1e-4))


def test_inlined_functions_compute_the_same(
    tmp_path_factory: pytest.TempPathFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint, out = folders("llama", tmp_path_factory)
    monkeypatch.setattr(graph_export, "trace", lambda model, opset: ir.load(out / "model.onnx"))
    assert export_onnx(checkpoint, tmp_path, inline_functions=True)["functions"] == []
    assert not onnx.load(tmp_path / "model.onnx").functions
    ids = [[3, 1, 4, 1, 5, 9]]
    np.testing.assert_array_equal(OnnxModel(tmp_path, threads=1).forward(ids)[0], OnnxModel(out, threads=1).forward(ids)[0])


def test_torch_is_itself_again_after_tracing(tmp_path: Path) -> None:
    model = from_pretrained(tiny_checkpoint(tmp_path, "llama", "symbolic_mlp"), dtype=torch.float32)
    ids = torch.tensor([[3, 1, 4]])
    before = model(ids).logits
    with pytest.raises(RuntimeError, match="stop"), surrogates_as_functions(model) as programs:  # noqa: PT012
        assert list(programs) == [NAME]
        assert not torch.equal(model(ids).logits, before)
        raise RuntimeError("stop")
    assert torch.equal(model(ids).logits, before)
    assert not any("forward" in vars(module) for module in model.modules())


@pytest.mark.parametrize("constants", [[], [0.7, -1.3]], ids=["no constants", "two constants"])
def test_a_function_alone_computes_the_expressions(constants: list[float]) -> None:
    scaled = ["mul", ["param", 0], X] if constants else X
    trees = [["add", ["tanh", scaled], ["rational", 1, 3]], ["maximum", ["exp", ["neg", Y]], scaled], ["int", 2]]
    program = compile_program(trees, 2, len(constants))
    module = ExpressionProgram(program_to_json(program))
    module.load_state_dict({"constants": torch.tensor(constants)})
    z = torch.randn(2, 5, 2, generator=torch.Generator().manual_seed(0))
    tensor = onnx.helper.make_tensor_value_info
    values = np.asarray(constants, np.float32)
    model = onnx.helper.make_model(
        onnx.helper.make_graph(
            [onnx.helper.make_node("f", ["z", "c"] if constants else ["z"], ["y"], domain="compress")],
            "g",
            [tensor("z", onnx.TensorProto.FLOAT, ["b", "t", 2])],
            [tensor("y", onnx.TensorProto.FLOAT, ["b", "t", 3])],
            [onnx.numpy_helper.from_array(values, "c")] if constants else [],
        ),
        functions=[function_proto("f", program, 23)],
        opset_imports=[onnx.helper.make_opsetid("", 23), onnx.helper.make_opsetid("compress", 1)],
        ir_version=10,
    )
    onnx.checker.check_model(model, full_check=True)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=[CPU])
    with torch.no_grad():
        np.testing.assert_allclose(session.run(None, {"z": z.numpy()})[0], module(z).numpy(), rtol=1e-6, atol=1e-6)


def test_two_programs_of_a_layer_get_two_names() -> None:
    layers = torch.nn.ModuleDict()
    program = compile_program([X], 1, 0)
    for name in ("attention", "mlp"):
        layers[name] = ExpressionProgram(program_to_json(program))
    root = torch.nn.ModuleDict({"layers": torch.nn.ModuleList([torch.nn.Identity(), layers])})
    with surrogates_as_functions(root) as programs:
        assert list(programs) == ["surrogate_layer_1", "surrogate_layer_1_2"]
    model = ir.Model(ir.Graph([], [], nodes=[], opset_imports={"": 23}), ir_version=10)
    attach(model, programs)
    assert [name for _, name, _ in model.functions] == list(programs)
