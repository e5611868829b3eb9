# pyright: strict
"""A checkpoint folder as an object: what `fit` returns, and what `Checkpoint(path)` opens again."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from compress.api import finished
from compress.api.folders import AnyPath, checkpoint_folder

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from compress.bars import Shown
    from compress.explaining.fronts import LayerExpressions
    from compress.measuring.verify import Finding
    from compress.plan import Plan
    from compress.recipe import Recipe
    from compress.stream.original import Original


class Checkpoint:
    """A finished checkpoint. It is a path too: whatever takes a folder takes it.

    Nothing is kept: each property reads the folder, as it is then.

    Args:
        path: a folder that `fit` wrote.
        original: the model that was compressed, where it was in memory; `fit` gives it, for `expressions` and `pick`.

    Raises FileNotFoundError where the folder is no checkpoint.

    >>> import tempfile, compress
    >>> recipe = {"model": "novella", "steps": [{"method": "weight_svd", "layers": [0], "rank": {"keep": 0.5}}]}
    >>> recipe["calibration"] = {"text": "novella", "sequences": 1, "length": 32}
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = compress.fit({**recipe, "output": f"{folder}/out"}).path
    ...     checkpoint = compress.Checkpoint(path)
    ...     len(checkpoint.plan.modules), checkpoint.recipe.steps[0].method
    ...     repr(checkpoint).partition(", ")[2]
    ...     checkpoint.model()(checkpoint.tokenizer()("It was", return_tensors="pt").input_ids).logits.shape[-1]
    (7, 'weight_svd')
    '94.3% kept)'
    4096
    """

    def __init__(self, path: AnyPath, *, original: Original | None = None) -> None:
        self.path = checkpoint_folder(path)
        self._original = original

    def __fspath__(self) -> str:
        return os.fspath(self.path)

    def __repr__(self) -> str:
        from compress.checkpoint.files import read_json

        facts = [repr(os.fspath(self.path))]
        report: dict[str, Any] = read_json(self.path / "report.json") or {}
        if count := report.get("parameters"):
            facts.append(f"{count['compressed'] / count['baseline']:.1%} kept")
        evaluation: dict[str, dict[str, Any]] = report.get("evaluation") or {}
        for text, found in evaluation.get("compressed", {}).items():
            facts.append(
                f"perplexity on {text} {found['perplexity']:.2f} (dense {evaluation['baseline'][text]['perplexity']:.2f})"
            )
            break
        return f"Checkpoint({', '.join(facts)})"

    @property
    def plan(self) -> Plan:
        """The replaced modules. Raises ValueError where config.json holds something else."""
        from compress.plan import read_plan

        return read_plan(self.path)

    @property
    def report(self) -> dict[str, Any]:
        """The content of report.json. Raises FileNotFoundError where it is not there."""
        from compress.checkpoint.files import read_json

        report: dict[str, Any] | None = read_json(self.path / "report.json")
        if report is None:
            raise FileNotFoundError(f"{self.path} has no readable report.json; give a folder that compress fit wrote")
        return report

    @property
    def recipe(self) -> Recipe:
        """The recipe that made it. Raises FileNotFoundError where recipe.yaml is not there."""
        from compress.recipe import load_recipe

        return load_recipe(self.path / "recipe.yaml")

    def model(self, **kwargs: Any) -> Any:
        """The transformers model, in eval mode; `kwargs` are those of `from_pretrained` (dtype, device_map, …)."""
        from compress.loading.quantizer import from_pretrained

        return from_pretrained(self.path, **kwargs)

    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Its tokenizer. Raises FileNotFoundError where there is none."""
        from compress.data import load_tokenizer

        return load_tokenizer(self.path)

    def export(
        self,
        *,
        onnx: bool = False,
        torch: bool = False,
        pt2: bool = False,
        out: AnyPath | None = None,
        dtype: Literal["float32", "float16", "bfloat16"] = "float32",
        opset: int = 23,
        quantize: Literal["int8", "int4"] | None = None,
        agreement: float | None = None,
        progress: Shown = None,
    ) -> dict[str, Any]:
        """Export it as ONNX and as standalone torch code; see `compress.export`."""
        return finished.export(
            self,
            onnx=onnx,
            torch=torch,
            pt2=pt2,
            out=out,
            dtype=dtype,
            opset=opset,
            quantize=quantize,
            agreement=agreement,
            progress=progress,
        )

    def bench(self, **options: Any) -> dict[str, Any]:
        """Measure it against its baseline and the skip-MLP controls; `options` are those of `compress.bench`."""
        return finished.bench(self, **options)

    def verify(self, *, tolerance: float = 1e-4, device: str = "auto", progress: Shown = None) -> list[Finding]:
        """Measure its report again on this machine; see `compress.verify`."""
        return finished.verify(self, tolerance=tolerance, device=device, progress=progress)

    def evaluate(
        self,
        *,
        texts: Sequence[str] = (),
        tasks: Sequence[str] = (),
        length: int = 256,
        sequences: int | None = None,
        limit: int | None = None,
        bos: Literal["auto"] | bool = "auto",
        device: str = "auto",
        progress: Shown = None,
    ) -> dict[str, Any]:
        """Perplexity on texts and accuracy on tasks; see `compress.evaluate`."""
        return finished.evaluate(
            self,
            texts=texts,
            tasks=tasks,
            length=length,
            sequences=sequences,
            limit=limit,
            bos=bos,
            device=device,
            progress=progress,
        )

    def expressions(self, layer: int | None = None) -> list[LayerExpressions]:
        """The Pareto fronts of its surrogates' expressions, of one layer or of all that have some.

        Raises ValueError where there are none, FileNotFoundError where the unit files or the original model are gone.
        """
        from compress.explaining.fronts import expressions

        return expressions(self.path, layer, self._original)

    def pick(self, layer: int, output: int, complexity: int, *, progress: Shown = None) -> LayerExpressions:
        """Put the most accurate expression of at most `complexity` at one output, and write the checkpoint again.

        Nothing is fitted again. Returns the layer's fronts with the new choice. Raises ValueError where the layer, the output
        or the complexity is not there, FileNotFoundError where the unit files or the original model are gone.
        """
        from compress.bars import shown
        from compress.explaining import fronts

        with shown(progress) as tell:
            fronts.pick(self.path, layer, output, complexity, tell, self._original)
        return self.expressions(layer)[0]
