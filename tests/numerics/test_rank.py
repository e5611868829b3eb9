"""Ranks against enumeration: the largest that fits, the fewest that explain, and the allocation against all allocations."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from compress.numerics.rank import allocate, break_even, parameters, rank_at, rank_explaining

forms = pytest.mark.parametrize("form", ["plain", "pivoted"])


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 200), st.integers(1, 200), st.floats(0.01, 1.0), st.sampled_from(["plain", "pivoted"]))
@example(2, 2, 1 - 2**-53, "pivoted")
@example(200, 200, 1 - 2**-53, "pivoted")
def test_keep_gives_the_largest_rank_within_the_budget(d_out, d_in, keep, form):
    def stored(rank):  # two factors, less the identity block of the pivoted one
        return d_out * rank + rank * d_in - (rank * rank if form == "pivoted" else 0)

    fitting = [r for r in range(1, min(d_out, d_in) + 1) if stored(r) <= keep * d_out * d_in + 1e-6]
    assert rank_at(keep, d_out, d_in, form) == max(fitting, default=1)
    assert parameters(fitting[-1] if fitting else 1, d_out, d_in, form) == stored(fitting[-1] if fitting else 1)


@given(st.integers(1, 500), st.integers(1, 500))
def test_at_break_even_the_plain_form_stores_as_many_numbers_as_dense(d_out, d_in):
    assert break_even(d_out, d_in) * (d_out + d_in) == pytest.approx(d_out * d_in)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 50), min_size=1, max_size=8), st.integers(1, 100))
def test_explained_variance_takes_the_fewest_components(values, percent):
    """In integers, where a share is reached exactly or not at all."""
    values = sorted(values, reverse=True)
    reached = [r for r in range(1, len(values) + 1) if 100 * sum(values[:r]) >= percent * sum(values)]
    found = rank_explaining(torch.tensor(values, dtype=torch.float64), percent / 100)
    assert found == (reached[0] if sum(values) else len(values))  # nothing to explain: all components, whatever is asked


class Problem:
    """Three small modules with random spectra, and every allocation there is."""

    def __init__(self, seed, form):
        rng = np.random.default_rng(seed)
        self.form = form
        self.shapes = {str(k): tuple(rng.integers(2, 8, 2).tolist()) for k in range(3)}
        self.total = sum(a * b for a, b in self.shapes.values())
        powers = rng.uniform(0.5, 3, 3)
        drawn = [np.sort(rng.exponential(size=min(s)) ** p)[::-1] for s, p in zip(self.shapes.values(), powers, strict=True)]
        self.spectra = {k: torch.from_numpy(s.copy()) for k, s in zip(self.shapes, drawn, strict=True)}
        self.options = {k: self.points(k) for k in self.shapes}
        every = [(sum(c for c, _ in point), sum(e for _, e in point)) for point in self.product()]
        self.cost, self.error = np.array(every, float).T

    def points(self, name):
        """rank or None → (numbers stored, squared error): every rank cheaper than dense, and dense."""
        (d_out, d_in), spectrum = self.shapes[name], self.spectra[name].numpy()
        saved = {r: r * r if self.form == "pivoted" else 0 for r in range(1, len(spectrum) + 1)}
        low = {r: (r * (d_out + d_in) - saved[r], float(spectrum[r:].sum())) for r in saved}
        return {**{r: p for r, p in low.items() if p[0] < d_out * d_in}, None: (d_out * d_in, 0.0)}

    def product(self):
        return itertools.product(*(p.values() for p in self.options.values()))

    def allocated(self, budget):
        """(cost, error) of the allocation under test."""
        ranks = allocate(self.spectra, self.shapes, self.form, budget)
        chosen = [self.options[name][rank] for name, rank in ranks.items()]
        return sum(c for c, _ in chosen), sum(e for _, e in chosen)

    def optimum(self, limit):
        return self.error[self.cost <= limit].min()

    @property
    def cheapest(self):
        return self.cost.min() / self.total

    def largest_step(self):
        """The greatest error between neighbours of one module's lower convex hull, by definition: no chord passes below."""
        steps = [0.0]
        for points in self.options.values():
            ordered = sorted(points.values())
            hull = [p for p in ordered if all(p[1] <= chord(a, b, p[0]) for a, b in itertools.combinations(ordered, 2))]
            steps += [a[1] - b[1] for a, b in itertools.pairwise(hull)]
        return max(steps)


def chord(a, b, cost):
    """The line through two points at a cost between theirs; infinite outside."""
    if not a[0] < cost < b[0]:
        return np.inf
    return a[1] + (b[1] - a[1]) * (cost - a[0]) / (b[0] - a[0]) + 1e-12


problems = pytest.mark.parametrize("seed", range(12))


@forms
@problems
def test_the_budget_is_never_exceeded_and_the_optimum_missed_by_less_than_one_step(seed, form):
    problem = Problem(seed, form)
    step = problem.largest_step()
    for budget in np.linspace(problem.cheapest + 1e-9, 1, 9):
        cost, error = problem.allocated(budget)
        assert cost <= budget * problem.total
        best = problem.optimum(budget * problem.total)
        assert best - 1e-12 <= error <= best + step + 1e-12


@forms
@problems
def test_at_the_cost_of_any_price_it_is_the_optimum(seed, form):
    """Everett's theorem: what minimises error + price · cost has the least error of all that cost no more."""
    problem = Problem(seed, form)
    for price in 10.0 ** np.arange(-4, 1, 0.5):
        limit = problem.cost[(problem.error + price * problem.cost).argmin()]
        _, error = problem.allocated(limit / problem.total * (1 + 1e-12))
        assert error == pytest.approx(problem.optimum(limit), abs=1e-12)


@forms
@problems
def test_a_larger_budget_never_has_a_larger_error(seed, form):
    """No theorem: spending what is left over is greedy. But it holds on these, and by less than one step always."""
    errors = [Problem(seed, form).allocated(budget)[1] for budget in np.linspace(0.2, 1, 12)]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] == 0  # the whole budget is every module dense, or as good


@forms
def test_below_every_allocation_it_is_rank_one(form):
    problem = Problem(1, form)
    assert problem.allocated(0.5 * problem.cheapest)[0] == problem.cost.min()


def test_equal_convex_modules_get_equal_ranks_and_scale_goes_where_the_error_is():
    spectrum = torch.tensor([2.0**-k for k in range(8)], dtype=torch.float64)
    shapes = {"a": (32, 32), "b": (32, 32)}
    assert allocate({"a": spectrum, "b": spectrum}, shapes, "plain", 0.25) == {"a": 4, "b": 4}
    assert allocate({"a": 4.0 * spectrum, "b": spectrum}, shapes, "plain", 0.25) == {"a": 5, "b": 3}
