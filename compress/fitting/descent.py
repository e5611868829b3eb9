"""What refinement and fine-tuning have in common: windows held out, clipped Adam steps, and the best parameters so far."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from compress.numerics.lapack import one_thread
from compress.parallel.lanes import Tree
from compress.parallel.world import world

CLIP = 1.0  # norm of all gradients together


def held_out_split(windows: int, share: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """(indices to train on, indices held out) of some windows, drawn at random; a single window is both."""
    order = torch.randperm(windows, generator=generator)
    held = order[: max(1, int(windows * share))]
    return (order[len(held) :] if windows > 1 else order), held


def drawn(train: Tensor, batch: int, generator: torch.Generator) -> Tensor:
    """`batch` of the training windows, in order: one from each of as many equal parts, so that every lane gets its share.

    Each window is as likely as any other.
    """
    at = (torch.arange(batch) + torch.rand(batch, generator=generator, dtype=torch.float64)) * (len(train) / batch)
    return train.sort().values[at.long().clamp_max(len(train) - 1)]


@dataclass(frozen=True)
class _Gradients:
    """∂ loss / ∂ parameters, as lanes add theirs."""

    values: Sequence[Tensor]

    def state(self) -> dict[str, Tensor]:
        return {f"{at:06d}": value for at, value in enumerate(self.values)}

    @classmethod
    def from_state(cls, tensors: Mapping[str, Tensor]) -> _Gradients:
        return cls([tensors[name] for name in sorted(tensors)])

    def settle(self) -> None:
        """They stay where the parameters are: the next step is taken there."""

    def merge(self, other: _Gradients) -> None:
        for value, more in zip(self.values, other.values, strict=True):
            value.add_(more)


def gradients_of(
    parameters: Sequence[nn.Parameter], losses: Mapping[int, Callable[[], Tensor]], lanes: int
) -> Sequence[Tensor]:
    """The gradient of the sum of the lanes' losses, by lane: summed by the tree, the same in every process.

    Lanes are worked on side by side, each on one thread: a gradient of few rows, as that of a factor of low rank, would differ
    in its last bits with the number of threads.
    """

    def of(loss: Callable[[], Tensor]) -> _Gradients:
        with one_thread():
            return _Gradients(torch.autograd.grad(loss(), parameters))

    tree: Tree[_Gradients] = Tree(world().owned(lanes))
    # A device has one queue: there lanes follow each other.
    with ThreadPoolExecutor(torch.get_num_threads() if parameters[0].device.type == "cpu" else 1) as threads:
        for lane, gradients in zip(losses, threads.map(of, losses.values()), strict=True):
            tree.add(lane, gradients)
    total = world().total(tree, _Gradients)
    assert total is not None  # some lane has a window
    return total.values


def descend(optimiser: torch.optim.Optimizer, parameters: Sequence[nn.Parameter], gradients: Sequence[Tensor]) -> None:
    """One step along the clipped gradient."""
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient.to(parameter.device)  # from another process it comes to the host
    with one_thread():  # a sum over all elements at once is cut by the number of threads
        nn.utils.clip_grad_norm_(parameters, CLIP)
    optimiser.step()


def mean_over_all(by_window: Sequence[float]) -> float:
    """The mean of what each process measured on its windows, exactly rounded, so that no order of them matters."""
    values = [value for some in world().everyone(list(by_window)) for value in some]
    return math.fsum(values) / len(values)


def copies(parameters: Sequence[nn.Parameter]) -> list[Tensor]:
    """The parameters' values as they are now."""
    return [parameter.detach().clone() for parameter in parameters]


def put_back(parameters: Sequence[nn.Parameter], values: Sequence[Tensor]) -> None:
    """Give parameters values that `copies` took."""
    with torch.no_grad():
        for parameter, value in zip(parameters, values, strict=True):
            parameter.copy_(value)
