"""Every pair of method, architecture and check, and every check for every kind: one checkpoint per case, seconds each."""

import random

import pytest
import torch
from checkpoints import random_plan, tiny_model
from long import LONG

from compress import kinds, methods
from compress.architecture import ARCHITECTURES
from conformance import checks
from conformance.case import Case, kind_cases, method_cases
from conformance.elsewhere import Elsewhere
from conformance.made import Made, Sources
from conformance.outcome import judge, outcomes
from conformance.pairs import uncovered
from conformance.refusal import refusal
from conformance.slice import DEAR, cells, costs, kind_slice, left_out, method_slice

# What takes seconds each, every graph, belongs to the long form; of the rest the short one takes a quarter, drawn once.
SLICE = [*method_slice(), *kind_slice()]
if not LONG:
    cheap = [(case, names) for case, names in SLICE if all(checks.seconds(name) <= DEAR for name in names)]
    SLICE = random.Random(0).sample(cheap, len(cheap) // 4)


@pytest.fixture(scope="session")
def sources(tmp_path_factory):
    return Sources(tmp_path_factory.mktemp("sources"))


@pytest.fixture(scope="session")
def elsewhere(tmp_path_factory):
    made = Elsewhere(tmp_path_factory.mktemp("elsewhere"))
    yield made
    made.close()


@pytest.mark.parametrize(("case", "names"), SLICE, ids=[f"{case}: {', '.join(names)}" for case, names in SLICE])
def test_conforms(case, names, sources, elsewhere):
    told = list(outcomes(case, names, sources, elsewhere))
    assert [outcome.check for outcome in told] == list(names)
    expected = "pass" if refusal(case) is None else "refused"
    assert not [str(outcome) for outcome in told if outcome.status != expected]


def test_the_slice_meets_every_pair_and_every_example():
    chosen = {}
    for case, names in method_slice():
        chosen.setdefault((case.name, case.architecture), []).extend(names)
    assert set(chosen) == set(cells())
    assert not any(uncovered(chosen, costs(), left_out()).values())
    examples = {(case.name, case.example) for case, _ in method_slice()}
    assert examples == {(name, i) for name in methods.names() for i in range(len(methods.load(name).examples))}


def test_a_pair_that_is_missed_is_seen():
    """The measure of the test above, on a slice with a hole."""
    chosen = {("svd", "llama"): ["memory", "onnx"], ("svd", "opt"): ["memory"], ("skip", "opt"): ["onnx"]}
    missing = uncovered(chosen, ["memory", "onnx"], {("memory", "skip", "opt")})
    assert not missing["method, check"]
    assert not missing["method, architecture"]
    assert not missing["architecture, check"]
    missing = uncovered({**chosen, ("svd", "llama"): ["memory"]}, ["memory", "onnx"], {("memory", "skip", "opt")})
    assert missing["method, check"] == {("svd", "onnx")}
    assert missing["architecture, check"] == {("llama", "onnx")}


def test_every_kind_of_ours_has_a_random_plan_or_holds_a_place():
    planned = {spec.kind for case, _ in kind_slice() for spec in _plan(case).modules}
    ours = {name for name in kinds.names() if kinds.load(name).__module__.startswith("compress.")}
    assert ours - planned <= {name for name in ours if kinds.load(name).passes_through}
    assert {case.name for case, _ in kind_slice()} == {case.name for case in kind_cases()}


def _plan(case):
    return random_plan(tiny_model(case.architecture), case.name)


def _exempted():
    """One case for every exemption that is written next to a method or a kind, checks that are not dear."""
    found: dict[tuple[str, str], Case] = {}
    for case in (*method_cases(), *kind_cases()):
        for key in case.declared:
            name, _, row = key.partition(":")
            if name != "*" and checks.seconds(name) < 2 and row in ("", case.architecture):
                found.setdefault((case.name, key), case)
    return [(case, key.partition(":")[0]) for (_, key), case in found.items()]


@pytest.mark.parametrize(("case", "name"), _exempted(), ids=str)
def test_an_exemption_is_still_needed(case, name, sources, elsewhere, tmp_path):
    status, message = judge(name, Made(case, tmp_path, sources), elsewhere)
    assert status != "pass", f"{case} holds {name}: take the exemption away"
    assert message


def test_exemptions_name_checks_and_architectures_that_exist():
    for case in (*method_cases(), *kind_cases()):
        for key, reason in case.declared.items():
            name, _, row = key.partition(":")
            assert name in (*checks.names(), "*"), f"{case.name}: no check {name!r}"
            assert row in ("", *ARCHITECTURES), f"{case.name}: no architecture {row!r}"
            assert len(reason.split()) > 3, f"{case.name}: {key}: a reason is a sentence"


def test_a_method_that_refuses_an_architecture_refuses_it_with_every_example():
    """Otherwise the example does not fit, and is no example."""
    answers: dict[tuple[str, str], set[bool]] = {}
    for case in method_cases():
        answers.setdefault((case.name, case.architecture), set()).add(refusal(case) is not None)
    assert not [cell for cell, found in answers.items() if len(found) > 1]
    taken = {name for (name, _), found in answers.items() if found == {False}}
    assert taken == set(methods.names()), "no architecture takes it"


@pytest.fixture(autouse=True)
def _one_thread():
    """As the interpreters elsewhere: bit for bit is of the same order of sums."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
