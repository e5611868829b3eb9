"""A module inside a model, as a function of its own input at one token of a text; the other tokens stay as they are."""

from __future__ import annotations

import difflib
from typing import Any

import torch
from torch import Tensor, nn

CHUNK = 64  # rows in one call of the module


class TokenFunction:
    """f: rows (n, d) in place of the module's input at `position` → its outputs there (n, e), float64.

    `ids` is (1, front + tokens): what the tokenizer puts in front of a text is read by the model, but has no position, and no
    row in `inputs` (tokens, d), float32, which are what the module reads over the text. Raises ValueError for a module that is
    not there, is not called, or maps no activations to activations, and for a position outside the text.
    """

    def __init__(self, model: Any, name: str, ids: Tensor, position: int, front: int = 0) -> None:
        count = ids.shape[1] - front
        if not -count <= position < count:
            raise ValueError(
                f"position {position} given; the text has {count} tokens, positions 0 to {count - 1} (or negative)"
            )
        self.name, self.position = name, position % count
        self._at = front + self.position
        self._module = _find(model, name)
        self._args, self._kwargs = self._record(model, ids)
        self._keyword = None if self._args else "hidden_states"
        given = self._args[0] if self._args else self._kwargs.get("hidden_states")
        if not isinstance(given, Tensor) or not given.is_floating_point() or given.shape[:2] != ids.shape:
            found = f"{tuple(given.shape)} of {given.dtype}" if isinstance(given, Tensor) else type(given).__name__
            raise ValueError(
                f"{name} reads {found}, not activations (1, {ids.shape[1]}, d); explain an MLP, attention, linear or layer"
            )
        self._given = given
        self.inputs = given[0, front:].float()

    def __call__(self, rows: Tensor) -> Tensor:
        with torch.no_grad():
            return torch.cat([self._call(part) for part in rows.split(CHUNK)])

    def gradients(self, rows: Tensor, directions: Tensor) -> Tensor:
        """Of directions (outputs, e) @ f(row) at every row (n, d) → (n, outputs, d)."""
        out = []
        for part in rows.split(CHUNK):
            leaf = part.detach().requires_grad_()
            with torch.enable_grad():
                values = (self._call(leaf) @ directions.T).sum(dim=0)  # rows do not depend on each other
                each = [torch.autograd.grad(value, leaf, retain_graph=True)[0] for value in values]
            out.append(torch.stack(each, dim=1))
        return torch.cat(out)

    def _call(self, rows: Tensor) -> Tensor:
        batch = len(rows)
        states = self._given.expand(batch, -1, -1).clone()
        states[:, self._at] = rows.to(states.dtype)
        others = {key: _spread(value, batch) for key, value in self._kwargs.items()}
        if self._keyword is not None:
            others[self._keyword] = states
        first = () if self._keyword is not None else (states,)
        out = self._module(*first, *(_spread(a, batch) for a in self._args[1:]), **others)
        out = out[0] if isinstance(out, tuple) else out
        if not isinstance(out, Tensor) or out.shape[:2] != states.shape[:2]:
            raise ValueError(f"{self.name} gives no activations (1, tokens, e); explain an MLP, attention, linear or layer")
        return out[:, self._at].double()

    def _record(self, model: Any, ids: Tensor) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """What the module is called with over the text."""
        calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
        handle = self._module.register_forward_pre_hook(lambda _, args, kwargs: calls.append((args, kwargs)), with_kwargs=True)
        try:
            with torch.no_grad():
                model(ids, use_cache=False)
        finally:
            handle.remove()
        if not calls:
            raise ValueError(f"{self.name} is not called on this text; explain a module that the forward pass calls")
        return calls[0]


def _find(model: nn.Module, name: str) -> nn.Module:
    modules = dict(model.named_modules())
    if not name or name not in modules:
        near = difflib.get_close_matches(name, [n for n in modules if n], n=3, cutoff=0.4)
        hint = f"nearest: {', '.join(near)}" if near else "give a full name, such as model.layers.0.mlp"
        raise ValueError(f"the model has no module {name!r}; {hint}")
    return modules[name]


def _spread(value: Any, batch: int) -> Any:
    """A recorded argument for a batch of copies of the text."""
    if isinstance(value, (tuple, list)):
        return type(value)(_spread(v, batch) for v in value)
    if isinstance(value, Tensor) and value.ndim >= 2 and value.shape[0] == 1:
        return value.expand(batch, *value.shape[1:])
    return value
