"""Numbers as a reader of a table wants them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

ABSENT = "–"  # an empty cell would look like a number that was lost


def percent(value: float | None) -> str:
    """A fraction in percent, one decimal; absent for None."""
    return ABSENT if value is None else f"{value:.1%}"


def integer(value: int) -> str:
    """With commas between thousands."""
    return f"{value:,}"


def milliseconds(value: float) -> str:
    """Milliseconds, three digits; whole ones from 100 on."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def mib(value: int) -> str:
    """Bytes in MiB, three digits."""
    size = value / 2**20
    return f"{size:,.0f}" if size >= 100 else f"{size:.3g}"


def perplexity(value: float) -> str:
    """Two decimals where they can matter, none from 1,000 on, three digits once it is only large."""
    return f"{value:.3g}" if value >= 1e5 else f"{value:,.0f}" if value >= 1000 else f"{value:.2f}"


def si(value: float) -> str:
    """Three digits and a letter: k, M, G or T; below a thousand, whole.

    >>> si(1_634_816)
    '1.63 M'
    """
    for factor, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= factor:
            return f"{value / factor:.3g} {letter}"
    return f"{value:.0f}"


def speedup(found: Mapping[str, Any] | None) -> str:
    """A comparison with the baseline, as `clock.Speedup` writes it; absent for None, the baseline itself."""
    if found is None:
        return ABSENT
    if found["low"] is None:  # no interval from so few rounds
        return f"×{found['ratio']:.2f} (too few runs)"
    interval = f"[{found['low']:.2f}–{found['high']:.2f}]"  # no space: it must not be broken
    # A ratio inside the noise is left out: a reader would quote it.
    return f"no difference {interval}" if found["verdict"] == "no difference" else f"×{found['ratio']:.2f} {interval}"


def peak(cold: Mapping[str, Any] | None) -> str:
    """Peak memory in MiB of a cold start; of a process, with what its libraries take in parentheses; absent for None."""
    if not cold:
        return ABSENT
    if "device_peak_mib" in cold:  # an allocator holds no libraries
        return f"{cold['device_peak_mib']:,.0f}"
    return f"{cold['peak_mib']:,.0f} ({cold['imports_mib']:,.0f})"


def steady(cold: Mapping[str, Any] | None) -> str:
    """Memory in MiB of a cold start once the model has generated; absent for None."""
    return ABSENT if not cold else f"{cold.get('device_steady_mib', cold['steady_mib']):,.0f}"
