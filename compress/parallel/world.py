"""The processes of one run: alone, or those that torchrun started (torch.distributed, gloo).

Every process follows the same program. Files in the shared work folder are what they have in common; here is the rest: who owns
which lanes, sums by the tree, work handed out piece by piece, and one verdict where all must decide alike. What is sent is
JSON or safetensors bytes, never pickles.
"""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import timedelta
from functools import cache
from typing import Any, TypeVar

import torch
from torch import Tensor

from compress.parallel import several
from compress.parallel.lanes import Summable, Tree, handings, owned

T = TypeVar("T", bound=Summable)
Tensors = Mapping[str, Tensor]

POLL = 0.002  # seconds between two looks for what another process says
BEAT = 2.0  # seconds between the signs of life of a process
GRACE = 5.0  # seconds that the others have to hear of a failure
LOST = 60.0  # seconds without one after which it counts as dead
PATIENCE = timedelta(hours=12)  # the longest that a message may be waited for: processes wait in `share`, which watches beats


_JSON = "/json"  # no tensor is called so


class LostError(RuntimeError):
    """Another process of the run has stopped."""


class World:
    """One process alone."""

    rank, size = 0, 1

    @property
    def first(self) -> bool:
        """Whether this process is the one that writes what there is one of, and prints."""
        return self.rank == 0

    def owned(self, lanes: int) -> range:
        """The lanes of this process."""
        return owned(self.rank, self.size, lanes)

    def total(self, tree: Tree[T], kind: type[T]) -> T | None:
        """The sum over all lanes, the same bytes for every process; None where there was nothing to add."""
        return next((node.value for node in tree.nodes()), None)

    def share(self, count: int) -> Iterator[int]:
        """Numbers below `count`, each for one process, as it asks for the next; ends when all are done."""
        yield from range(count)

    def first_alone(self, count: int) -> Iterator[int]:
        """As `share`, but all of them for the first process."""
        yield from range(count if self.first else 0)
        self.meet()

    def everyone(self, value: Any) -> list[Any]:
        """What each process says, by rank: JSON values."""
        return [value]

    def agreed(self, say: Callable[[], Any]) -> Any:
        """What the first process says, which alone is asked: a JSON value. So all decide alike by a file that it is writing."""
        return say()

    def tensors(self, owner: int, value: Tensors | None) -> Tensors:
        """The tensors of the process `owner`, which gives them; the others give None."""
        assert value is not None
        return value

    def made(self, owner: int, value: tuple[Any, Tensors] | None) -> tuple[Any, Tensors]:
        """The same of a JSON value with tensors."""
        if self.rank != owner:
            value = None
        said = self.tensors(owner, value and {**value[1], _JSON: _bytes(json.dumps(value[0]).encode())})
        return json.loads(said[_JSON].numpy().tobytes()), {name: tensor for name, tensor in said.items() if name != _JSON}

    def meet(self) -> None:
        """Go on when every process is here."""

    def failed(self, line: str) -> bool:
        """Tell the others of a failure; whether it is this process that is to print it."""
        return True

    def leave(self) -> None:
        """The run is over."""


class Ranks(World):
    """One of several processes that torchrun started."""

    def __init__(self) -> None:
        from torch import distributed
        from torch.distributed.rendezvous import rendezvous

        store, self.rank, self.size = next(rendezvous("env://", timeout=timedelta(minutes=5)))
        distributed.init_process_group("gloo", store=store, rank=self.rank, world_size=self.size, timeout=PATIENCE)
        self._distributed: Any = distributed
        self._store: Any = self._distributed.PrefixStore("compress", store)
        self._step = 0  # every process follows the same program: equal numbers mean the same step
        self._seen: dict[int, tuple[bytes | None, float]] = {}
        self._over = threading.Event()
        connection: Any = store
        # A connection of its own: the other one may be waiting.
        self._beats: Any = self._distributed.PrefixStore("beats", connection.clone())
        self._beats.set(str(self.rank), "0")
        self._host = socket.gethostname()
        threading.Thread(target=self._beat, daemon=True).start()

    def total(self, tree: Tree[T], kind: type[T]) -> T | None:
        held = {node.first: node for node in tree.nodes()}
        spans: list[list[tuple[int, int]]] = [
            [(first, last) for first, last in nodes] for nodes in self.everyone([[n.first, n.last] for n in held.values()])
        ]
        if not any(spans):
            return None
        for step in handings(spans):
            given = None
            if step.giver == self.rank:
                given = held.pop(step.given).value
                if step.taker != self.rank:
                    self._send(given.state(), step.taker)
            elif step.taker == self.rank:
                given = kind.from_state(self._receive(step.giver))
            if step.taker == self.rank and given is not None:
                held[step.taken].value.merge(given)
        owner = next(rank for rank, nodes in enumerate(spans) if nodes)
        if self.rank == owner:
            (root,) = held.values()
            self.tensors(owner, root.value.state())
            return root.value
        return kind.from_state(self.tensors(owner, None))

    def share(self, count: int) -> Iterator[int]:
        key = self._key("share")
        while (number := self._store.add(f"{key}/next", 1) - 1) < count:
            yield number
            self._store.add(f"{key}/done", 1)
        while self._store.add(f"{key}/done", 0) < count:
            self._watch()
            time.sleep(BEAT / 20)

    def everyone(self, value: Any) -> list[Any]:
        key = self._key("everyone")
        self._store.set(f"{key}/{self.rank}", json.dumps(value))
        return [self._read(f"{key}/{rank}") for rank in range(self.size)]

    def agreed(self, say: Callable[[], Any]) -> Any:
        key = self._key("agreed")
        if self.first:
            self._store.set(key, json.dumps(say()))
        return self._read(key)

    def tensors(self, owner: int, value: Tensors | None) -> Tensors:
        if self.rank == owner:
            assert value is not None
            for other in range(self.size):
                if other != owner:
                    self._send(value, other)
            return value
        return self._receive(owner)

    def meet(self) -> None:
        self.everyone(None)

    def failed(self, line: str) -> bool:
        # The first to fail prints; those that fail because of it are silent.
        said = self._store.compare_set("failed", "", f"rank {self.rank} on {self._host}: {line}")
        self._store.add("heard", 1)
        until = time.monotonic() + GRACE
        # The first one may keep the store, from which the others are to hear of it.
        while self.first and self._store.add("heard", 0) < self.size and time.monotonic() < until:
            time.sleep(POLL)
        return bool(said.decode().startswith(f"rank {self.rank} "))

    def leave(self) -> None:
        self.meet()
        self._over.set()
        self._distributed.destroy_process_group()
        world.cache_clear()

    def _key(self, kind: str) -> str:
        self._step += 1
        return f"{self._step}/{kind}"

    def _read(self, key: str) -> Any:
        """What some process says under a key, as soon as it does."""
        looked = time.monotonic()
        while not self._store.check([key]):
            time.sleep(POLL)
            if time.monotonic() - looked > BEAT:
                try:
                    self._watch()
                except LostError:
                    if not self._store.check([key]):  # what it said before it failed still counts: all end in the same way
                        raise
                looked = time.monotonic()
        return json.loads(self._store.get(key))

    def _send(self, value: Tensors, to: int) -> None:
        from safetensors.torch import save

        content = _bytes(save({k: v.cpu().contiguous() for k, v in value.items()}))
        with _Peer(self, to):
            self._distributed.send(torch.tensor([len(content)]), to)
            self._distributed.send(content, to)

    def _receive(self, giver: int) -> Tensors:
        from safetensors.torch import load

        with _Peer(self, giver):
            size = torch.empty(1, dtype=torch.int64)
            self._distributed.recv(size, giver)
            content = torch.empty(int(size), dtype=torch.uint8)
            self._distributed.recv(content, giver)
        return load(content.numpy().tobytes())

    def _beat(self) -> None:
        for number in range(1, 2**62):
            if self._over.wait(BEAT):
                return
            try:
                self._beats.set(str(self.rank), str(number))
            except RuntimeError:  # the store is gone, and with it the run
                return

    def _watch(self) -> None:
        """Raises LostError where a process has given no sign of life for LOST seconds, or told of a failure."""
        if self._store.check(["failed"]):
            raise LostError(self._store.get("failed").decode())
        now = time.monotonic()
        for rank in range(self.size):
            beat = self._beats.get(str(rank))
            last, since = self._seen.get(rank, (None, now))
            self._seen[rank] = (beat, now if beat != last else since)
            if now - self._seen[rank][1] > LOST:
                raise LostError(f"rank {rank} of {self.size} has given no sign of life for {LOST:.0f} s")


def _bytes(content: bytes) -> Tensor:
    return torch.frombuffer(bytearray(content), dtype=torch.uint8)


class _Peer:
    """What fails in talking to another process is told as that."""

    def __init__(self, ranks: Ranks, other: int) -> None:
        self._ranks, self._other = ranks, other

    def __enter__(self) -> None: ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        if isinstance(error, RuntimeError):
            raise LostError(f"rank {self._other} of {self._ranks.size} has stopped ({error})") from error


@cache
def world() -> World:
    """The processes of this run, joined when first asked for."""
    return Ranks() if several() else World()
