"""Turns are taken in order, intervals cover the truth as often as they say, memory is the process's own."""

from __future__ import annotations

import subprocess
import sys
import time

import numpy as np
import pytest

from compress.clock import choose_devices, interleave, paired_speedup, present_devices, resident_mib, summary_ms, timed, warm_up


def test_competitors_take_turns_in_order():
    called = []
    runs = {name: lambda name=name: called.append(name) or len(called) for name in "ABC"}
    ticks = []
    got = interleave(runs, 4, lambda: ticks.append(1))
    assert "".join(called) == "ABCABCABCABC"
    assert got == {"A": [1, 4, 7, 10], "B": [2, 5, 8, 11], "C": [3, 6, 9, 12]}
    assert len(ticks) == 12


def _rounds(random, ratio, rounds=20):
    """(times, baseline times) under a drift that both share, with heavy-tailed noise of their own."""
    drift = np.exp(np.cumsum(0.1 * random.standard_normal(rounds)))
    noise = np.exp(0.05 * random.standard_t(3, size=(2, rounds)))
    return drift * noise[0] / ratio, drift * noise[1]


@pytest.mark.parametrize("truth", [1.0, 0.8])
def test_intervals_cover_the_true_ratio(truth):
    random = np.random.default_rng(1)
    intervals = [paired_speedup(*_rounds(random, truth), seed=i) for i in range(200)]
    covered = np.mean([i.low <= truth <= i.high for i in intervals])
    assert 0.90 <= covered <= 0.99


def test_equal_competitors_show_no_difference_and_unequal_ones_do():
    random = np.random.default_rng(2)
    equal = [paired_speedup(*_rounds(random, 1.0)).verdict for _ in range(100)]
    assert equal.count("no difference") >= 90
    slower = [paired_speedup(*_rounds(random, 0.8)).verdict for _ in range(50)]
    assert slower.count("slower") >= 48
    assert paired_speedup(*_rounds(random, 1.3)).verdict == "faster"


def test_a_difference_below_the_resolution_is_none_however_sure():
    assert paired_speedup([1.0] * 20, [1.015] * 20).verdict == "no difference"
    assert paired_speedup([1.0] * 20, [1.03] * 20).verdict == "faster"
    assert paired_speedup([1.03] * 20, [1.0] * 20).verdict == "slower"


def test_drift_cancels_round_by_round():
    drift = np.exp(np.linspace(0, 3, 10))
    got = paired_speedup(0.8 * drift, drift)
    assert got.low == pytest.approx(1.25)
    assert got.high == pytest.approx(1.25)


def test_few_rounds_claim_nothing():
    assert paired_speedup([1.0] * 5, [2.0] * 5).verdict == "too few runs"
    assert paired_speedup([1.0] * 6, [2.0] * 6).verdict == "faster"


def test_unpaired_rounds_are_refused():
    with pytest.raises(ValueError, match="one pair per round"):
        paired_speedup([1.0, 2.0], [1.0])


def test_warm_up_ends_when_runs_agree_and_is_bounded():
    durations = iter([9.0, 3.0, 1.0, 1.05, 1.02, 1.0])
    assert warm_up(lambda: next(durations), most=10) == 5
    restless = iter(range(1, 100))
    assert warm_up(lambda: float(next(restless)), most=7) == 7


def test_summary_is_of_all_samples():
    got = summary_ms(list(range(1, 101)))
    assert got["mean_ms"] == 50.5
    assert got["p50_ms"] == 50.5
    assert got["p95_ms"] == pytest.approx(95.05)
    assert got["p99_ms"] == pytest.approx(99.01)
    assert got["samples_ms"][4] == 5


def test_a_duration_is_in_milliseconds():
    elapsed, result = timed("cpu", lambda: time.sleep(0.02) or "done")
    assert result == "done"
    assert 20 <= elapsed < 200


def test_absent_devices_are_named_with_those_present():
    absent = next(name for name in ("mps", "cuda", "cpu") if name not in present_devices())
    with pytest.raises(ValueError, match=f"no device '{absent}' here; present: cpu"):
        choose_devices(["cpu", absent])
    assert choose_devices(None) == present_devices()


def test_resident_memory_follows_what_is_held_and_keeps_its_peak():
    before, _ = resident_mib()
    block = np.ones(8 * 2**20)  # 64 MiB
    during, _ = resident_mib()
    del block
    after, peak = resident_mib()
    assert during - before == pytest.approx(64, abs=8)
    assert after < during
    assert peak >= during - 1  # the kernel adds both up from counters of its own


def test_a_child_does_not_inherit_its_parents_peak():
    block = np.ones(32 * 2**20)  # 256 MiB here, in the parent
    code = "from compress.clock import resident_mib; print(resident_mib()[1])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert resident_mib()[1] > float(out.stdout) + 200
    assert block[0] == 1
