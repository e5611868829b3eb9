"""Numbers as a reader of a table wants them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

ABSENT = "–"


def percent(value: float | None) -> str:
    return ABSENT if value is None else f"{value:.1%}"


def integer(value: int) -> str:
    return f"{value:,}"


def milliseconds(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def mib(value: int) -> str:
    """Bytes in MiB, three digits."""
    size = value / 2**20
    return f"{size:,.0f}" if size >= 100 else f"{size:.3g}"


def perplexity(value: float) -> str:
    return f"{value:.3g}" if value >= 1e5 else f"{value:,.0f}" if value >= 1000 else f"{value:.2f}"


def si(value: float) -> str:
    """Three digits and a letter.

    >>> si(1_634_816)
    '1.63 M'
    """
    for factor, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= factor:
            return f"{value / factor:.3g} {letter}"
    return f"{value:.0f}"


def speedup(found: Mapping[str, Any] | None) -> str:
    """A comparison with the baseline: a difference inside the noise is none."""
    if found is None:
        return ABSENT
    if found["low"] is None:
        return f"×{found['ratio']:.2f} (too few runs)"
    interval = f"[{found['low']:.2f}–{found['high']:.2f}]"  # no space: it must not be broken
    return f"no difference {interval}" if found["verdict"] == "no difference" else f"×{found['ratio']:.2f} {interval}"


def peak(cold: Mapping[str, Any] | None) -> str:
    """Peak memory in MiB; of a process, with what its libraries take in parentheses."""
    if not cold:
        return ABSENT
    if "device_peak_mib" in cold:
        return f"{cold['device_peak_mib']:,.0f}"
    return f"{cold['peak_mib']:,.0f} ({cold['imports_mib']:,.0f})"


def steady(cold: Mapping[str, Any] | None) -> str:
    """Memory in MiB once a model is at work."""
    return ABSENT if not cold else f"{cold.get('device_steady_mib', cold['steady_mib']):,.0f}"
