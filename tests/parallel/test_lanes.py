"""The tree over the lanes: one fixed shape, whoever owns which lanes."""

from hypothesis import given
from hypothesis import strategies as st

from compress.parallel.lanes import Tree, cut, handings, owned, subtree


class Text:
    """A sum that shows in which order it was made."""

    def __init__(self, text):
        self.text = text

    def settle(self):
        pass

    def merge(self, other):
        self.text = f"({self.text}+{other.text})"


def bracketed(lanes):
    """The sum over all lanes by recursion over the tree, empty lanes left out."""
    if not lanes:
        return None
    if len(lanes) == 1:
        return str(lanes[0])
    start, stop = subtree(lanes[0], lanes[-1])
    middle = (start + stop) // 2
    left, right = [lane for lane in lanes if lane < middle], [lane for lane in lanes if lane >= middle]
    return f"({bracketed(left)}+{bracketed(right)})"


def summed(filled, size, lanes):
    """By `size` processes: each adds its own, then they hand nodes on as `handings` says. (sum, most nodes that one held)"""
    nodes, most = [], 0
    for rank in range(size):
        own = owned(rank, size, lanes)
        tree = Tree(own)
        for lane in (lane for lane in filled if lane in own):
            tree.add(lane, Text(str(lane)))
            most = max(most, len(tree._nodes))
        nodes.append({node.first: node for node in tree.nodes()})
    for step in list(handings([[(n.first, n.last) for n in held.values()] for held in nodes])):
        given_, taken = nodes[step.giver].pop(step.given), nodes[step.taker][step.taken]
        taken.value.merge(given_.value)
    (left,) = (node for held in nodes for node in held.values())
    return left.value.text, most


@given(st.sets(st.integers(0, 15), min_size=1), st.integers(1, 9))
def test_any_number_of_processes_adds_in_the_same_order(filled, size):
    lanes = sorted(filled)
    value, most = summed(lanes, size, 16)
    assert value == bracketed(lanes)
    assert size > 1 or most <= 5  # log₂ 16 + 1


@given(st.integers(1, 40), st.integers(1, 9), st.integers(1, 16))
def test_windows_are_cut_once_and_in_order(windows, micro_batch, lanes):
    pieces = cut(windows, micro_batch, lanes)
    assert [w for piece in pieces for w in range(windows)[piece.windows]] == list(range(windows))
    assert [piece.lane for piece in pieces] == sorted(piece.lane for piece in pieces)
    assert all(piece.lane < lanes for piece in pieces)
    # No lane has two micro-batches more than another.
    counts = [sum(piece.lane == lane for piece in pieces) for lane in range(lanes)]
    assert max(counts) - min(counts) <= 1


@given(st.integers(1, 9), st.integers(1, 16))
def test_every_lane_has_one_owner(size, lanes):
    assert [lane for rank in range(size) for lane in owned(rank, size, lanes)] == list(range(lanes))
