"""The ONNX graph agrees, in one pass and with its cache."""

import numpy as np
import torch
from recipes_for_tests import IDS

from conformance.elsewhere import Elsewhere
from conformance.made import Made, Refused, assert_close
from exporters.onnx.graph import export_onnx
from exporters.onnx.runtime import OnnxModel

SECONDS = 8.0  # torch.onnx traces
TOLERANCE = 1e-4
PROMPT = 20


def check(made: Made, elsewhere: Elsewhere) -> None:
    out = made.root / "onnx"
    try:
        export_onnx(made.folder, out, verify=False)
    except NotImplementedError as error:
        raise Refused(str(error)) from error
    graph = OnnxModel(out, threads=1)
    first, cache = graph.forward(IDS[:, :PROMPT])
    rest, _ = graph.forward(IDS[:, PROMPT:], past=cache)
    for found in (graph.forward(IDS)[0], np.concatenate([first, rest], axis=1)):
        assert_close(torch.from_numpy(found), made.logits, TOLERANCE)
