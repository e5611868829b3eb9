"""Seeded damage: to JSON data leaf by leaf and branch by branch, to bytes anywhere."""

from __future__ import annotations

import copy
import random
from typing import Any

MARK = "0) or __import__('os').system('true') or (0"
WORDS = (
    MARK,
    "",
    "a" * 3000,
    "\x1b[2J",
    "../../etc/passwd",
    "<script>alert(1)</script>",
    "\ud83d",
    "x\ny: 1",
    "{{7*7}}",
    "%s%n",
)
NUMBERS = (0, -1, 1, 2**31, 2**63, 10**40, 1e308, -0.0, float("nan"), float("inf"), True, 3.5)


def value(choose: random.Random) -> Any:
    """Something that is not what was expected."""
    kind = choose.randrange(6)
    if kind == 0:
        return choose.choice(WORDS)
    if kind == 1:
        return choose.choice(NUMBERS)
    if kind == 2:
        return choose.choice((None, [], {}, [None], {"": None}))
    if kind == 3:
        return _deep(choose.choice((3, 40, 129, 300)), choose)
    if kind == 4:
        return [choose.choice((0, MARK, None))] * choose.choice((2, 100, 20_000))
    return {f"{MARK if choose.random() < 0.3 else 'k'}{i}": i for i in range(choose.choice((1, 10, 3000)))}


def _deep(depth: int, choose: random.Random) -> Any:
    out: Any = choose.choice((0, MARK))
    for _ in range(depth):
        out = [out] if choose.random() < 0.7 else {"neg": out}
    return out


def data(root: Any, choose: random.Random) -> Any:
    """A copy with one to three places changed, removed, doubled or exchanged."""
    out = copy.deepcopy(root)
    for _ in range(choose.randint(1, 3)):
        out = _once(out, choose)
    return out


def _once(root: Any, choose: random.Random) -> Any:
    places = list(_places(root))
    if not places:
        return value(choose)
    holder, key = choose.choice(places)
    action = choose.randrange(6)
    if action == 0:
        del holder[key]
    elif action == 1 and isinstance(holder, list):
        holder.append(copy.deepcopy(holder[key]))
    elif action == 2 and isinstance(holder, dict):
        holder[choose.choice((MARK, "code", str(key) + "_", "__class__"))] = holder.pop(key)
    elif action == 3:
        other, at = choose.choice(places)
        if at in other if isinstance(other, dict) else at < len(other):
            holder[key] = copy.deepcopy(other[at])
    else:
        holder[key] = value(choose)
    return root


def _places(root: Any) -> Any:
    """(container, key) of everything below, without recursion."""
    stack = [root]
    while stack:
        found = stack.pop()
        for key in list(found) if isinstance(found, dict) else range(len(found)) if isinstance(found, list) else ():
            yield found, key
            stack.append(found[key])


def raw(root: bytes, choose: random.Random, words: tuple[bytes, ...]) -> bytes:
    """A copy with one to four runs of bytes changed, cut out, repeated or put in."""
    out = bytearray(root)
    for _ in range(choose.randint(1, 4)):
        at, length = choose.randrange(len(out) + 1), choose.choice((1, 2, 8, 60))
        action = choose.randrange(5)
        if action == 0:
            out[at : at + length] = choose.randbytes(length)
        elif action == 1:
            del out[at : at + length]
        elif action == 2:
            out[at:at] = bytes(out[at : at + length]) * choose.choice((1, 50, 3000))
        elif action == 3:
            out[at:at] = choose.choice(words) * choose.choice((1, 1, 1, 1000))
        else:
            del out[at:]
    return bytes(out)
