"""A program batched for runtimes that pay per operation: equal operations at one depth are one call on gathered columns, and
sums of many terms are one matrix product. 1,300 instructions of eight wide expressions become a dozen calls.

Values are columns of one growing matrix, the inputs first. Numbers that no input changes live in a vector `fixed`: the
constants, then 1, then the literals, then results on those alone (`scalars`). JSON throughout, so that the torch interpreter
needs nothing else:

    {"scalars": [[op, [fixed, …]], …], "levels": [[step, …], …], "final": linear}
    step    {"op": name, "args": [["column", […]] | ["fixed", […]], …]}, or linear with "op": "linear"
    linear  {"rows": n, "weight": [[row, …], [column, …], [sign, …], [fixed, …]], "bias": [[row, …], [sign, …], [fixed, …]]}

Columns of a level are read by later levels only. They are held within the finite range of float32: in a matrix product, zero
times an infinity would reach rows that do not use it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from compress.symbolic.operations import PRIMITIVES

if TYPE_CHECKING:
    from compress.symbolic.program import Program

_ONE = -1  # the column of a term that is a fixed number
Term = tuple[int, int, int]  # column's register (or _ONE), sign, index in `fixed`


def schedule(program: Program) -> dict[str, Any] | None:
    """The batched form, or None for programs with conditions: there a NaN may stand in a branch that is not taken."""
    if any(PRIMITIVES[name].gives == "bool" for name, _ in program.instructions):
        return None
    return _Scheduler(program).steps()


class _Scheduler:
    def __init__(self, program: Program) -> None:
        self.program = program
        self.first = program.first_instruction
        self.varying = program.varying
        # `fixed` is the constants, a 1, the literals, the scalars: a literal is `shift` from its register.
        one = program.n_constants
        shift = one + 1 - (program.n_inputs + program.n_constants)
        self.fixed = {program.n_inputs + k: k for k in range(program.n_constants)}
        self.fixed |= {r: r + shift for r in range(program.n_inputs + program.n_constants, self.first)}
        self.scalars: list[list[Any]] = []
        # What no input changes is computed once per call instead of once per token.
        for register, (name, args) in enumerate(program.instructions, self.first):
            if register not in self.varying:
                self.fixed[register] = one + 1 + len(program.literals) + len(self.scalars)
                self.scalars.append([name, [self.fixed[a] for a in args]])
        self.one = one
        self.forms: list[tuple[Term, ...]] = []
        for register in range(self.first + len(program.instructions)):
            self.forms.append(self.form(register))

    def form(self, register: int) -> tuple[Term, ...]:
        """The register as a linear combination of columns; itself alone where it is an input or no sum."""
        itself = ((register, 1, self.one),)
        if register not in self.varying:
            return ((_ONE, 1, self.fixed[register]),)
        if register < self.first:
            return itself
        name, args = self.program.instructions[register - self.first]
        # Sums are merged into one combination of columns, to become one row of a matrix product.
        if name == "add":
            return self.forms[args[0]] + self.forms[args[1]]
        if name in ("sub", "neg"):
            negated = tuple((column, -sign, which) for column, sign, which in self.forms[args[-1]])
            return self.forms[args[0]] + negated if name == "sub" else negated
        # A number times a sum multiplies every term of it.
        if name == "mul" and len(fixed := [a for a in args if a not in self.varying]) == 1:
            inner = args[0] if args[1] == fixed[0] else args[1]
            terms = self.forms[inner]
            if any(which != self.one for _, _, which in terms):  # one factor per term: the sum becomes a column of its own
                terms = ((inner, 1, self.one),)
            return tuple((column, sign, self.fixed[fixed[0]]) for column, sign, _ in terms)
        return itself

    def column(self, register: int) -> int:
        """The register whose column holds this one's value."""
        terms = self.forms[register]
        return terms[0][0] if len(terms) == 1 and terms[0][1:] == (1, self.one) else register

    def reads(self, register: int) -> list[int]:
        """The columns that computing this column reads."""
        if register < self.first:
            return []
        if self.forms[register] == ((register, 1, self.one),):
            _, args = self.program.instructions[register - self.first]
            return [self.column(a) for a in args if a in self.varying]
        return [column for column, _, _ in self.forms[register] if column != _ONE]

    def steps(self) -> dict[str, Any]:
        """The JSON of this file's docstring."""
        program = self.program
        needed: set[int] = set()
        for output in program.outputs:
            needed.update(column for column, _, _ in self.forms[output])
        level = dict.fromkeys(range(program.n_inputs), 0)
        # Backwards, since an instruction reads earlier registers only: one pass finds everything that an output needs.
        for register in range(len(self.forms) - 1, self.first - 1, -1):
            if register in needed:
                needed.update(self.reads(register))
        groups: dict[tuple[int, str, tuple[bool, ...]], list[int]] = {}
        # A level after the deepest column read: everything in one level can run at once.
        for register in sorted(needed - set(level) - {_ONE}):
            level[register] = 1 + max(level[r] for r in self.reads(register))
            groups.setdefault((level[register], *self.kind(register)), []).append(register)
        # Numbered as the runtime appends them: inputs, then level by level; sorted, so that the numbers are always the same.
        place = {register: register for register in range(program.n_inputs)}
        levels: list[list[Any]] = [[] for _ in range(max(level.values(), default=0))]
        for (depth, name, varies), members in sorted(groups.items()):
            place |= {register: len(place) + i for i, register in enumerate(members)}
            levels[depth - 1].append(self.step(name, varies, members, place))
        return {"scalars": self.scalars, "levels": levels, "final": self.linear(program.outputs, place)}

    def kind(self, register: int) -> tuple[str, tuple[bool, ...]]:
        """What is computed together: the operation and which of its arguments vary."""
        if self.forms[register] != ((register, 1, self.one),):
            return "linear", ()
        name, args = self.program.instructions[register - self.first]
        return name, tuple(a in self.varying for a in args)

    def step(self, name: str, varies: tuple[bool, ...], members: list[int], place: dict[int, int]) -> dict[str, Any]:
        """One call on gathered columns, or one matrix product; `place` gives the column of a register."""
        if name == "linear":
            return {"op": "linear", **self.linear(members, place)}
        args = [self.program.instructions[m - self.first][1] for m in members]
        columns = [
            ["column", [place[self.column(a[i])] for a in args]] if vary else ["fixed", [self.fixed[a[i]] for a in args]]
            for i, vary in enumerate(varies)
        ]
        return {"op": name, "args": columns}

    def linear(self, members: Iterable[int], place: dict[int, int]) -> dict[str, Any]:
        """Rows of a matrix product, one per member."""
        rows = list(members)
        terms = [(i, *term) for i, register in enumerate(rows) for term in self.forms[register]]
        weight = [(i, place[column], sign, which) for i, column, sign, which in terms if column != _ONE]
        bias = [(i, sign, which) for i, column, sign, which in terms if column == _ONE]
        return {
            "rows": len(rows),
            # zip of no terms gives no lists at all; the format has one for each part.
            "weight": [list(part) for part in zip(*weight, strict=True)] or [[], [], [], []],
            "bias": [list(part) for part in zip(*bias, strict=True)] or [[], [], []],
        }
