"""What the commands print: rich tables of plans, fits, exports and methods, for a console that takes brackets as text."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

from compress.methods.base import Method, Preview


def preview_table(rows: Sequence[Preview], peak_bytes: int, output: str) -> Table:
    """The plan of a dry run."""
    table = Table(
        title=f"plan for {output}",
        caption=f"expected peak memory beyond the imports: about {peak_bytes / 2**20:,.0f} MiB",
        show_footer=True,
    )
    before, after = sum(r.before for r in rows), [r.after for r in rows]
    known = None if None in after else sum(a for a in after if a is not None)
    # In a narrow terminal words break, numbers never: a number that is cut reads as another one.
    number: dict[str, Any] = {"justify": "right", "no_wrap": True}
    table.add_column("module", footer=f"{len(rows)} modules", overflow="fold", min_width=12)
    table.add_column("shape", **number)
    table.add_column("decision", overflow="fold", min_width=8)
    table.add_column("parameters", footer=f"{before:,}", **number)
    table.add_column("after", footer="depends" if known is None else f"{known:,}", **number)
    table.add_column("kept", footer="" if known is None else f"{known / max(before, 1):.1%}", **number)
    for row in rows:
        kept = "" if row.after is None else f"{row.after / max(row.before, 1):.1%}"
        size = "?" if row.after is None else f"{row.after:,}"
        table.add_row(row.module, "×".join(map(str, row.shape)), row.note, f"{row.before:,}", size, kept)
    return table


def preview_json(rows: Sequence[Preview], peak_bytes: int) -> dict[str, Any]:
    modules = [{"module": r.module, "shape": r.shape, "before": r.before, "after": r.after, "note": r.note} for r in rows]
    return {"modules": modules, "expected_peak_bytes": peak_bytes}


def fit_table(report: Mapping[str, Any]) -> Table:
    """Perplexity, a row per text and variant, with what remains of the parameters."""
    p = report["parameters"]
    caption = f"{p['compressed']:,} of {p['baseline']:,} parameters ({p['compressed'] / p['baseline']:.1%} of the whole model)"
    if p["targeted_baseline"]:
        caption += f"; {p['targeted_compressed'] / p['targeted_baseline']:.1%} of the targeted ones"
    table = Table(title="perplexity", caption=caption)
    evaluation = report.get("evaluation") or {}
    base = evaluation.get("baseline", {})
    held = any("clamped" in value for values in evaluation.values() for value in values.values())
    # Rows, not columns: texts and controls are as many as one likes, and a terminal is not as wide.
    for column in ("text", "variant", "perplexity", "nats more", *["latents clamped"] * held):
        number = column not in ("text", "variant")
        table.add_column(column, justify="right" if number else "left", overflow="fold", no_wrap=number)
    for text in base:
        for row, (variant, values) in enumerate(evaluation.items()):
            value = values[text]
            cells = [f"{value['perplexity']:.3f}", f"{value['nll'] - base[text]['nll']:+.4f}"]
            clamped = [f"{value['clamped']:.2%}" if "clamped" in value else ""] * held
            table.add_row("" if row else text, variant, *cells, *clamped)
        table.add_section()
    return table


def quality_table(quality: Mapping[str, Any]) -> Table:
    """What each lever did to the loss on held-out text, and which were undone."""
    table = Table(title=f"{quality['text']}, {quality['windows']} windows of {quality['length']} tokens")
    table.add_column("model")
    for column in ("nats per token", "beyond the original", "perplexity"):
        table.add_column(column, justify="right")
    undone = not all(lever["taken"] for lever in quality["levers"])
    if undone:
        table.add_column("taken")
    table.add_row("original", f"{quality['dense_nll']:.4f}", "", f"{math.exp(quality['dense_nll']):.2f}")
    for lever in quality["levers"]:
        if (nll := lever["nll"]) is None:
            table.add_row(lever["lever"], "not finite", "", "", "undone")
            continue
        taken = ["yes" if lever["taken"] else "no better: undone"] * undone
        beyond = f"{nll - quality['dense_nll']:+.4f}"
        table.add_row(lever["lever"], f"{nll:.4f}", beyond, f"{math.exp(min(nll, 700)):.2f}", *taken)
    return table


def sweep_table(points: Sequence[Mapping[str, Any]]) -> Table:
    """One row per point of a sweep: its values, what remains of the targeted parameters, perplexity per text."""
    table = Table(title="perplexity")
    keys = list(points[0]["settings"]) if points else []
    base = points[0]["evaluation"].get("baseline", {}) if points else {}
    for key in keys:
        table.add_column(key.rpartition("rank.")[2] or key)
    for column in ("targeted kept", "model kept", *base):
        table.add_column(column, justify="right")
    if base:
        dense = (f"{value['perplexity']:.3f}" for value in base.values())
        table.add_row("dense", *[""] * (len(keys) - 1), "100.0%", "100.0%", *dense)
    for point in points:
        p, values = point["parameters"], point["evaluation"].get("compressed", {})
        kept = f"{p['targeted_compressed'] / max(p['targeted_baseline'], 1):.1%}", f"{p['compressed'] / p['baseline']:.1%}"
        table.add_row(*map(str, point["settings"].values()), *kept, *(f"{values[t]['perplexity']:.3f}" for t in base))
    return table


def search_table(found: Mapping[str, Any]) -> Table:
    """Dense, surgical and its controls at equal size: numbers stored, and the metric on both splits."""
    table = Table(title=found["metric"], caption=f"tolerance {found['tolerance']:g}; the search never saw the test split")
    for column in ("ranks", "stored", "targeted kept", "search split", "test split"):
        table.add_column(column, justify="left" if column == "ranks" else "right")
    for row in found["results"]:
        shown = [f"{row[split]:.4f}" if found["metric"] == "tasks" else f"{row[split]:.3f}" for split in ("search", "test")]
        table.add_row(row["ranks"], f"{row['stored']:,}", f"{row['kept']:.1%}", *shown)
    return table


_MEASURED = "Δlogit: largest difference from the checkpoint in torch; top-1: its likeliest token; tokens: greedy"


def export_table(reports: Mapping[str, Mapping[str, Any]]) -> Table:
    """One row per artefact and provider: size and parity with the checkpoint; everything else is in export.json."""
    table = Table(
        title="export",
        caption=_MEASURED,
    )
    for column in ("artefact", "runs in", "MiB", "max |Δlogit|", "of max |logit|", "equal top-1", "equal tokens"):
        table.add_column(column, justify="left" if column in ("artefact", "runs in") else "right", overflow="fold")
    for name, report in reports.items():
        if name == "torch":
            compared = report["greedy_tokens_compared"]
            equal = f"{round(report['greedy_agreement'] * compared)}/{compared}"
            numbers = (f"{report['max_abs_logit_difference']:.1e}", f"{report['max_abs_logit']:.1f}", "", equal)
            table.add_row(str(report["file"]), "torch", f"{report['bytes'] / 2**20:.1f}", *numbers)
            continue
        # Each graph by itself: what is handed over is what is measured.
        graphs = {"model.onnx": report.get("parity", {})}
        if quantized := report.get("quantized"):
            graphs[quantized["file"]] = quantized["parity"]
        reasons = dict.fromkeys(
            f"not by {provider}: {parity['not_run']}"
            for measured in graphs.values()
            for provider, parity in measured.items()
            if "not_run" in parity
        )
        table.caption = "\n".join([_MEASURED, *reasons])
        for file, measured in graphs.items():
            size = sum(size for name, size in report["bytes"].items() if name in (file, f"{file}.data"))
            for provider, parity in measured.items():
                row = (f"{file} (opset {report['opset']})", provider, f"{size / 2**20:.1f}")
                table.add_row(*row, *(("", "", "", "not run here") if "not_run" in parity else _parity_cells(parity)))
    return table


def _parity_cells(parity: Mapping[str, Any]) -> tuple[str, str, str, str]:
    agree, equal = f"{parity['top1_agreement']:.1%}", f"{parity['greedy_equal']}/{parity['greedy_tokens']}"
    return f"{parity['max_abs_difference']:.1e}", f"{parity['max_abs_logit']:.1f}", agree, equal


def methods_table(chosen: Mapping[str, type[Method]]) -> Table:
    table = Table(title="methods", caption="compress methods NAME documents a method's options")
    for column in ("method", "replaces", "what it does"):
        table.add_column(column)
    for name, method in chosen.items():
        table.add_row(name, method.replaces, _summary(method))
    return table


def method_table(name: str, method: type[Method]) -> Table:
    """Every option of one method, nested ones dotted."""
    table = Table(title=f"{name}: {_summary(method)}", caption=f"reference: {method.reference}")
    for column in ("option", "default", "meaning"):
        table.add_column(column, overflow="fold")
    schema = method.model_json_schema()
    for option, default, meaning in _options(schema, schema.get("$defs", {})):
        table.add_row(option, default, meaning)
    return table


def _options(schema: Mapping[str, Any], definitions: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str, str]]:
    rows: list[tuple[str, str, str]] = []
    for key, field in schema.get("properties", {}).items():
        default = str(field["default"]) if "default" in field else "required" if key in schema.get("required", []) else ""
        rows.append((prefix + key, default, field.get("description", "")))
        references = [field, *field.get("anyOf", []), *field.get("allOf", [])]
        for reference in references:
            if "$ref" in reference:
                inner = definitions[reference["$ref"].rpartition("/")[2]]
                rows += _options(inner, definitions, f"{prefix}{key}.")
    return rows


def _summary(method: type[Method]) -> str:
    """The first sentence of its docstring."""
    text = " ".join((method.__doc__ or "").split("\n\n")[0].split())
    return re.split(r"(?<=[.:]) (?=[A-Z])", text)[0]


def findings_table(findings: Sequence[Any]) -> Table:
    """What `compress verify` measured again, differences marked."""
    table = Table(title="verify")
    for column in vars(findings[0]) if findings else ("result",):
        table.add_column(column, overflow="fold")
    for finding in findings:
        table.add_row(*(_short(value) for value in vars(finding).values()))
    return table


def _short(value: Any) -> str:
    """A cell people can read: six digits of a number, the first twelve of a hash; `--json` has them whole."""
    if isinstance(value, float):
        return f"{value:.6g}"
    return f"{value[:12]}…" if isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value) else str(value)


def evaluation_table(results: Mapping[str, Any]) -> Table:
    """Perplexity per text, accuracy per task."""
    table = Table(title="evaluation")
    for column in ("text or task", "measure", "value"):
        table.add_column(column, overflow="fold")
    for name, value in results.items():
        for key, item in _flat(value):
            table.add_row(name, key, f"{item:.4f}" if isinstance(item, float) else _words(item))
    return table


def _words(item: object) -> str:
    return " ".join(map(str, item)) or "the text itself" if isinstance(item, list) else str(item)


def _flat(value: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    out: list[tuple[str, Any]] = []
    for key, item in value.items():
        out += _flat(item, f"{prefix}{key}.") if isinstance(item, Mapping) else [(prefix + key, item)]
    return out


def fronts_table(layer: Mapping[str, Any]) -> Table:
    """The fronts of one layer's expressions, the chosen one of each output marked."""
    table = Table("output", "", "complexity", "R² held out", "R²", "source", "expression", title=f"layer {layer['layer']}")
    for output in layer["outputs"]:
        for index, row in enumerate(output["candidates"]):
            mark, held = "→" if index == output["chosen"] else "", row["r2_held_out"]
            numbers = [str(row["complexity"]), "" if held is None else f"{held:.3f}", f"{row['r2_train']:.3f}"]
            text = row["text"] if len(row["text"]) <= 120 else row["text"][:117] + "…"
            table.add_row(str(output["output"]) if index == 0 else "", mark, *numbers, row["source"], text)
        table.add_section()
    return table


def layers_table(found: Mapping[str, Any]) -> Table:
    """The curves of a layer choice, one row a replacement in the order of choice."""
    budget = found["budget"]
    caption = "each row replaces one layer more, the one that costs least nll for what it saves, on the search split"
    table = Table(title="layers" if budget is None else f"layers, budget {budget:g}", caption=caption)
    for column in ("method", "layer", f"{found['saves']} removed", "search split", "test split"):
        table.add_column(column, justify="left" if column == "method" else "right", no_wrap=column == "method")
    dense = found["dense"]
    table.add_row("dense", "", "0.0%", f"{dense['search']:.3f}", f"{dense['test']:.3f}")
    for method, rows in found["families"].items():
        table.add_section()
        for row in rows:
            values = ["overflows" if row[s] is None else f"{row[s]:.3f}" for s in ("search", "test")]
            size = "" if row["size"] is None else f" at {row['size']}"
            table.add_row(method, f"{row['layer']}{size}", f"{row['removed']:.1%}", *values)
    return table
