"""A program as readable torch code, one line per shared part."""

from __future__ import annotations

import math
from collections import Counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from compress.symbolic.program import Program


# Sign, and how tightly it binds.
_INFIX = {"add": ("+", 1), "sub": ("-", 1), "mul": ("*", 2), "div": ("/", 2)}


_ATOM = 4  # binds tighter than any operator; unary minus is 3


_LINE = 72  # a longer part gets a name of its own


def torch_source(program: Program, z: str = "z", constants: str = "constants", result: str = "y") -> list[str]:
    """Lines of torch code from the tensor named `z` (…, n_inputs) and `constants` (n_constants,) to `result` (…, outputs).

    >>> from compress.symbolic.compile import compile_program
    >>> print(*torch_source(compile_program([["exp", ["mul", ["param", 0], ["var", 1]]]], 2, 1)), sep="\\n")
    z0, z1 = z.split(1, dim=-1)
    y = torch.exp(constants[0] * z1)
    """
    columns = [f"{z}{i}" for i in range(program.n_inputs)]
    # Whole numbers without a point; repr is the shortest text that reads back as the same float.
    literals = ["float('nan')" if math.isnan(v) else f"{v:.0f}" if v.is_integer() else repr(v) for v in program.literals]
    first_literal = program.n_inputs + program.n_constants
    fixed = range(program.n_inputs, program.first_instruction)
    texts = [(text, _ATOM) for text in [*columns, *(f"{constants}[{k}]" for k in range(program.n_constants)), *literals]]
    uses = Counter(a for _, args in program.instructions for a in args) + Counter(program.outputs)
    lines = [f"{', '.join(columns)}{',' * (len(columns) == 1)} = {z}.split(1, dim=-1)"]

    def tensor(register: int) -> str:
        # torch.maximum and its like take tensors only, so a bare literal becomes a column.
        is_literal = first_literal <= register < program.first_instruction
        return f"torch.full_like({columns[0]}, {texts[register][0]})" if is_literal else texts[register][0]

    def operand(register: int, least: int) -> str:
        text, binds = texts[register]
        return text if binds >= least else f"({text})"

    for name, args in program.instructions:
        if name in _INFIX:
            symbol, binds = _INFIX[name]
            left, right = args
            if name == "mul" and right in fixed and left not in fixed:
                left, right = right, left  # 2 * x, as people write it
            # One more on the right: a - (b - c) keeps its parentheses.
            text = f"{operand(left, binds)} {symbol} {operand(right, binds + 1)}"
        elif name == "neg":
            text, binds = f"-{operand(args[0], 3)}", 3
        else:
            text, binds = f"torch.{name}({', '.join(tensor(a) for a in args)})", _ATOM
        # Used twice, or too long to read: a line of its own. The first line is the split, so names count from t0 after it.
        if uses[len(texts)] > 1 or len(text) > _LINE:
            lines.append(f"t{len(lines) - 1} = {text}")
            text, binds = f"t{len(lines) - 2}", _ATOM
        texts.append((text, binds))
    varying = program.varying
    # An output that reads no input has no batch shape: zeros of a column give it one.
    parts = [texts[o][0] if o in varying else f"torch.zeros_like({columns[0]}) + {operand(o, 2)}" for o in program.outputs]
    return [*lines, f"{result} = {parts[0]}" if len(parts) == 1 else f"{result} = torch.cat([{', '.join(parts)}], dim=-1)"]
