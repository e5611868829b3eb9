"""Reports say what was measured, claim nothing inside the noise, escape what is not theirs, and fetch nothing."""

from __future__ import annotations

import io
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser

import pytest
from PIL import Image
from results_for_tests import HOSTILE, SPEEDUPS, made_results
from rich.console import Console

from compress.reporting import numbers
from compress.reporting.sentences import summary
from compress.reporting.tables import tables
from compress.reporting.write import markdown, read_results, render_table, report

VOID = {"meta", "img", "source", "br"}


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    return report(made_results(), folder)


def _printed(results, width=200):
    console = Console(file=io.StringIO(), width=width, color_system=None, markup=False)
    console.print(render_table(results))
    return console.file.getvalue()


class Reader(HTMLParser):
    """Collects tags and text, and checks that every tag is closed where it was opened."""

    def __init__(self):
        super().__init__()
        self.open, self.tags, self.texts, self.attributes = [], [], {}, []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open:
            self.texts.setdefault(self.open[-1], []).append(data)


@pytest.fixture(scope="module")
def parsed(written):
    reader = Reader()
    reader.feed(written["page"].read_text())
    assert reader.open == []
    return reader


@pytest.mark.parametrize(
    "what", ["replaced kept", "model kept", "weights MiB", "multiply-adds", "cache B/token", "perplexity own", "on disk MiB"]
)
def test_what_a_ratio_may_mean_is_always_printed(what, written):
    words = re.sub(r"\s+", " ", _printed(made_results()))
    for text in (words, written["markdown"].read_text(), written["page"].read_text()):
        assert what in text


def test_numbers_are_the_measured_ones():
    text = markdown(made_results())
    row = next(line for line in text.splitlines() if line.startswith("| skip-zero"))
    assert row == "| skip-zero | 50.0% | 60.0% | 600 k | 2.4 | 1.2 M (60.0%) | 1,234 |"
    assert "| eager · cpu · float32 | baseline | 10.00 | 0.1000 | 50.0% | 20.00 | 0.1000 | 50.0% |" in text


def test_a_difference_inside_the_noise_is_none():
    assert numbers.speedup(SPEEDUPS["none"]) == "no difference [0.97–1.04]"
    assert numbers.speedup(SPEEDUPS["faster"]) == "×1.40 [1.30–1.50]"
    assert numbers.speedup(SPEEDUPS["slower"]) == "×0.70 [0.60–0.80]"
    assert numbers.speedup(SPEEDUPS["few"]) == "×1.20 (too few runs)"
    assert numbers.speedup(None) == "–"
    said = " ".join(summary(made_results()))
    assert "prefill no difference (95 % interval ×0.97 to ×1.04)" in said
    assert "1.01" not in said


def test_the_summary_names_the_controls_of_the_same_layers():
    line = next(line for line in summary(made_results()) if "“own”" in line)
    assert "perplexity is 12.00 against the baseline's 10.00 (+20.0%)" in line
    results = made_results()
    results["models"][2]["label"] = "compressed"
    for row in results["rows"]:
        row["label"] = "compressed" if row["kind"] == "compressed" else row["label"]
    line = next(line for line in summary(results) if "“own”" in line)
    assert "Controls on the same layers: skip-zero 500.00." in line


def test_what_was_not_measured_is_said_everywhere(written):
    assert "not measured: ort-int8 on cpu: not here & not now" in _printed(made_results())
    assert "**not measured: ort-int8 on cpu**: not here & not now" in written["markdown"].read_text()
    assert "not here &amp; not now" in written["page"].read_text()


def test_a_group_is_named_once(written):
    column = [line.split("|")[1].strip() for line in written["markdown"].read_text().splitlines() if line.startswith("|")]
    assert column.count("onnx · cpu") == 3  # speed, decoding, footprint


def test_the_page_fetches_nothing_and_runs_nothing(written, parsed):
    text = written["page"].read_text()
    assert not {"script", "link", "iframe", "object"} & set(parsed.tags)
    assert not re.search(r"https?://|@import|url\(", text)
    sources = [value for name, value in parsed.attributes if name in ("src", "srcset", "href")]
    assert len(sources) == 6  # two throughputs and the errors, light and dark
    assert all(value.startswith("data:image/png;base64,") for value in sources)


def test_names_and_texts_are_escaped(written, parsed):
    text = written["page"].read_text()
    assert HOSTILE not in text
    assert any(HOSTILE in part for part in parsed.texts["td"])
    assert "Once <b>upon</b>" in "".join(parsed.texts["p"])
    assert "b" not in parsed.tags
    assert "\\|" in written["markdown"].read_text()
    assert HOSTILE in _printed(made_results())


def test_the_page_marks_where_a_text_leaves_the_baselines(parsed):
    assert parsed.texts["mark"] == ["de <i>rose"]


def test_every_column_of_the_page_is_explained(parsed):
    headers = {column.header for table in tables(made_results()) for column in table.columns}
    assert headers == set(parsed.texts["th"])
    assert headers <= set(parsed.texts["dt"])
    assert all(len(table.columns) == len({column.header for column in table.columns}) for table in tables(made_results()))


def test_pictures_are_linked_from_markdown_and_are_there(written):
    links = re.findall(r"\]\((plots/[^)]+)\)", written["markdown"].read_text())
    assert len(links) == 3
    for link in links:
        with Image.open(written["markdown"].parent / link) as image:
            assert image.format == "PNG"


def test_a_benchmark_without_cold_starts_or_compressed_models_is_reported(tmp_path):
    results = made_results()
    results["models"] = results["models"][:1]
    results["rows"] = [row for row in results["rows"] if row["kind"] == "baseline"]
    for row in results["rows"]:
        del row["cold"]
    results["generation"] = {}
    done = report(results, tmp_path)
    assert "Benchmark of base" in done["page"].read_text()
    assert "none of them is compressed" in done["markdown"].read_text()


@pytest.mark.parametrize("prefix", ["", "my-small-model "], ids=["one checkpoint", "several"])
def test_the_console_fits_eighty_columns_and_breaks_no_number(prefix):
    results = made_results()
    for entry in (*results["models"], *results["rows"]):
        entry["label"] = entry["kind"] if entry["kind"] == "baseline" else prefix + entry["kind"]
    lines = _printed(results, width=80).splitlines()
    assert max(map(len, lines)) <= 80
    assert sum("[1.30–1.50]" in line for line in lines) == 2
    assert sum(line.count("[0.97–1.04]") for line in lines) == 4


@pytest.mark.parametrize(
    ("content", "message"),
    [("{", "not JSON"), (json.dumps({"format": 2}), "has format 2; this compress reads 1"), ("[]", "has format None")],
)
def test_results_of_another_kind_are_refused(tmp_path, content, message):
    (tmp_path / "results.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        read_results(tmp_path / "results.json")
    with pytest.raises(FileNotFoundError, match="compress bench DIR"):
        read_results(tmp_path / "other.json")


def _screenshot(page, out, *options):
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no Chromium here: install the Debian package chromium to look at the page in a browser")
    quiet = ["--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"]
    profile = f"--user-data-dir={out.with_suffix('')}"
    window = ["--window-size=1300,3000", "--hide-scrollbars", f"--screenshot={out}"]
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", *quiet, profile, *window, *options, page.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert out.is_file(), done.stderr
    return Image.open(out).convert("RGB")


def test_a_browser_shows_the_page_in_light_and_dark(written, tmp_path):
    light = _screenshot(written["page"], tmp_path / "light.png")
    dark = _screenshot(written["page"], tmp_path / "dark.png", "--blink-settings=preferredColorScheme=0")
    assert light.getpixel((3, 3)) == (255, 255, 255)
    assert dark.getpixel((3, 3)) == (0x16, 0x18, 0x1C)
    for image in (light, dark):
        assert image.size == (1300, 3000)
        assert len(image.getcolors(2**24)) > 100  # text and pictures, not a blank page
    bars = {(0x25, 0x63, 0xA8), (0xC2, 0x57, 0x1A)}  # of the plots: the pictures are shown, not only referred to
    assert bars <= {color for _, color in light.getcolors(2**24)}
