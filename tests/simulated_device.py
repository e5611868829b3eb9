"""A device simulated on the CPU: tensors that say they are on it, refuse to meet others, and, as on MPS, to be float64."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

_current: list[Simulated] = []
_kernels: list[torch.library.Library] = []


def _empty_strided(size: Any, stride: Any, dtype: Any = None, device: Any = None, **_: Any) -> There:
    """Torch's own code makes tensors by this, below the mode."""
    return There(torch.empty_strided(size, stride, dtype=dtype), device)


def _copy_from(source: torch.Tensor, target: There, non_blocking: bool = False) -> There:
    target.here.copy_(source.here if isinstance(source, There) else source)
    return target


def _empty(size: Any, dtype: Any = None, device: Any = None, **_: Any) -> There:
    return There(torch.empty(size, dtype=dtype), device)


def _register() -> None:
    """Tell torch of the device, once, where it is used: what collects tests imports this file under another name."""
    if _kernels:
        return
    _setup_privateuseone_for_python_backend("simulated")
    _kernels.append(torch.library.Library("aten", "IMPL"))
    _kernels[0].impl("empty.memory_format", _empty, "PrivateUse1")
    _kernels[0].impl("empty_strided", _empty_strided, "PrivateUse1")
    _kernels[0].impl("_copy_from", _copy_from, "PrivateUse1")


class There(torch.Tensor):
    """A tensor on the simulated device; its values are in `here`, on the CPU."""

    here: torch.Tensor

    @staticmethod
    def __new__(cls, here: torch.Tensor, device: torch.device) -> There:
        out = torch.Tensor._make_wrapper_subclass(
            cls, here.size(), strides=here.stride(), storage_offset=here.storage_offset(), dtype=here.dtype, device=device
        )
        out.here = here
        return out

    def __repr__(self, **_: Any) -> str:
        return f"There({self.here})"

    def tolist(self) -> Any:
        return self.here.tolist()

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        # Below the mode: `torch.tensor` fills what it makes there.
        assert _current, "outside of the block in which the device is simulated"
        return _current[-1].__torch_dispatch__(function, types, args, kwargs)


class Simulated(TorchDispatchMode):
    """Inside the block there is a device `simulated`. Counts its operations.

    `float64` says whether it has float64. Raises AssertionError where an operation mixes it with the CPU (a number without
    dimensions may come from anywhere), or gives float64 where there is none.
    """

    def __init__(self, float64: bool) -> None:
        super().__init__()
        _register()
        self.device, self.float64, self.operations = torch.device("simulated", 0), float64, 0

    def __enter__(self) -> Any:
        _current.append(self)
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        _current.pop()
        super().__exit__(*error)

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        asked = kwargs.get("device")
        there = asked is not None and torch.device(asked).type == self.device.type
        tensors = [t for t in tree_flatten((args, kwargs))[0] if isinstance(t, torch.Tensor)]
        ours = [t for t in tensors if isinstance(t, There)]
        moves = function in (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default)
        if not ours and not there:
            return function(*args, **kwargs)
        if not moves:
            mixed = [tuple(t.shape) for t in tensors if not isinstance(t, There) and t.dim() and "index" not in str(function)]
            assert not ours or not mixed, f"{function} mixes the {self.device.type} device with the CPU: {mixed}"
        if there:
            kwargs["device"] = torch.device("cpu")
        self.operations += 1
        given, options = tree_map(lambda t: t.here if isinstance(t, There) else t, (args, kwargs))
        out = function(*given, **options)
        if function is torch.ops.aten.copy_.default:
            return args[0]
        stays = there or (ours and not (asked is not None and torch.device(asked).type == "cpu"))
        known = {id(t.here): t for t in ours}  # in place: the same tensor comes back

        def wrapped(value: Any) -> Any:
            if not isinstance(value, torch.Tensor) or not stays:
                return value
            if id(value) in known:
                return known[id(value)]
            assert self.float64 or value.dtype != torch.float64, f"{function} gives float64 on {self.device.type}"
            return There(value, self.device)

        return tree_map(wrapped, out)


def main() -> None:
    """Fit a recipe on the device, in a process of its own: autograd counts the devices when it is first used.

    python -m simulated_device RECIPE.yaml float64|blocks|host always|never
    """
    from compress.compute import Compute
    from compress.fitting import run
    from compress.numerics import products
    from compress.recipe import load_recipe

    file, path, offload = sys.argv[1:]
    device = Simulated(float64=path != "host")
    waiting = torch.device("cpu") if offload == "always" else device.device
    with (
        patch.object(Compute, "on", lambda _: device.device),
        patch.object(Compute, "states_on", lambda *_: waiting),
        patch.object(products, "path", lambda _: path),
        device,
    ):
        run.fit(load_recipe(Path(file)))
    assert device.operations > 1000


if __name__ == "__main__":
    main()
