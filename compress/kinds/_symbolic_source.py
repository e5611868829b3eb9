"""Source of MLPs by closed-form expressions: one class that all share, and a subclass for each layer's expressions."""

from __future__ import annotations

from compress.source.text import in_place, text
from compress.symbolic.program import Program
from compress.symbolic.torch_source import torch_source


def base_class(affine: bool, clamped: set[bool]) -> str:
    """The class that all layers share; `affine`: some pass latents on, `clamped`: whether layers clamp."""
    doc = "MLP(x) = outer(expressions(z)), z = basis @ x + offset"
    if affine:
        doc = "MLP(x) = outer([expressions(z), rest]), [z, rest] = basis @ x + [offset, 0]"
    more = " + affine" * affine
    parameters = ["inputs: int", "outputs: int", *["affine: int = 0"] * affine, "constants: int = 0", "clamp: bool = True"]
    body = [
        *["self.inputs = inputs"] * affine,
        *["self.clamp = clamp"] * (False in clamped),
        f"self.basis = nn.Parameter(torch.empty(inputs{more}, D_MODEL))",
        "self.offset = nn.Parameter(torch.empty(inputs))",
        *_where(clamped, "clamp", [f'self.register_buffer("{name}", torch.empty(inputs))' for name in ("low", "high")]),
        "self.constants = nn.Parameter(torch.empty(constants))",
        f"self.outer = nn.Linear(outputs{more}, D_MODEL)",
    ]
    forward = [
        f"h = F.linear(x, self.basis)  # (B, T, D) → (B, T, inputs{more})",
        f"z = h{'[..., : self.inputs]' * affine}.float() + self.offset",
        *_where(
            clamped,
            "self.clamp",
            [
                "# Outside the calibrated range a closed form may do anything.",
                "z = torch.minimum(torch.maximum(z, self.low), self.high)",
            ],
        ),
        "y = self.expressions(z, self.constants).to(x.dtype)  # (B, T, inputs) → (B, T, outputs)",
        *["y = torch.cat([y, h[..., self.inputs :]], dim=-1)  # (B, T, outputs + affine)"] * affine,
        "return self.outer(y)",
    ]
    # `clamp`, the last, is an argument only where layers differ in it.
    if clamped != {True, False}:
        parameters.pop()
    return text(f'''
        class SymbolicMLP(nn.Module):
            """{doc}; the expressions are the layer's own."""

            def __init__({", ".join(["self", *parameters])}) -> None:
                super().__init__()
                {in_place(body, 16)}

            def forward(self, x: Tensor) -> Tensor:
                """x (B, T, D) → (B, T, D)"""
                {in_place(forward, 16)}

            def expressions(self, z: Tensor, c: Tensor) -> Tensor:
                """z (B, T, inputs), constants c → (B, T, outputs)"""
                raise NotImplementedError
        ''')


def _where(clamped: set[bool], condition: str, lines: list[str]) -> list[str]:
    """`lines` where all layers clamp, behind `condition` where some do, nothing where none does."""
    if clamped == {True, False}:
        return [f"if {condition}:", *(f"    {line}" for line in lines)]
    return lines if clamped == {True} else []


def layer_class(layer: int, program: Program) -> str:
    """The subclass of one layer, with its expressions as straight-line code."""
    # The last line makes the result, and becomes the return.
    *steps, last = torch_source(program, z="z", constants="c", result="y")
    lines = [*steps, f"return {last.removeprefix('y = ')}"]
    return "\n".join(
        [
            f"class SymbolicMLP{layer}(SymbolicMLP):",
            f'    """Layer {layer}: {len(program.instructions)} operations on {program.n_inputs} latents."""',
            "",
            "    def expressions(self, z: Tensor, c: Tensor) -> Tensor:",
            *(f"        {line}" for line in lines),
        ]
    )
