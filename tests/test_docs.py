"""Pages say what the JSON and the rooms say, and name only files that are there."""

import importlib
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
TABLE = {
    "source": {"command": "python measure.py", "machine": "two-core machine"},
    "caption": "Perplexity, dense {dense:.2f}:",
    "figures": {"dense": 46.4},
    "label": "what",
    "columns": [
        {"key": "loss", "head": "loss", "format": ["{perplexity:.2f} ({share:+.2f})", "{perplexity:.2f}"]},
        {"key": "bytes", "head": "bytes", "format": "{value:,} B"},
    ],
    "rows": [
        {"key": "a", "label": "a|b", "bold": ["loss"]},
        {"label": "*heading*"},
        {"key": "b", "label": "b", "format": {"bytes": "{value:.0%}"}},
    ],
    "values": {
        "a": {"loss": {"perplexity": 47, "share": -0.5}, "bytes": 3072},
        "b": {"loss": {"perplexity": 48.125}, "bytes": 0.16},
        "c": {"loss": "none", "bytes": 1.5e-5},
    },
}


@pytest.fixture(scope="module")
def docs():
    """docs/inject.py and what it imports; they are a program beside the pages, not a package."""
    names = ("inject", "rooms", "table")
    sys.path.insert(0, str(ROOT / "docs"))
    yield {name: importlib.import_module(name) for name in names}
    sys.path.remove(str(ROOT / "docs"))
    for name in names:
        del sys.modules[name]


@pytest.fixture
def numbers(docs):
    return {"loss": docs["table"].Numbers.model_validate(TABLE)}


def test_every_page_is_what_the_numbers_and_the_rooms_give(docs):
    assert docs["inject"].run(ROOT, check=True) == [], "run make numbers"


def test_check_fails_where_somebody_typed_a_number(docs, tmp_path):
    for folder in ("docs", "compress", "exporters"):
        (tmp_path / folder).mkdir()
    (tmp_path / "docs" / "numbers").symlink_to(ROOT / "docs" / "numbers")
    page = tmp_path / "README.md"
    page.write_text("# x\n\n<!-- numbers: low_rank -->\n<!-- end -->\n")
    assert docs["inject"].run(tmp_path) == [page]
    assert docs["inject"].run(tmp_path, check=True) == []
    page.write_text(page.read_text().replace("46.44", "46.43"))
    assert docs["inject"].run(tmp_path, check=True) == [page]
    assert "46.43" in page.read_text()


def test_a_table_reads_as_a_person_would_write_it(numbers):
    assert numbers["loss"].table().splitlines() == [
        "Perplexity, dense 46.40:",
        "",
        "| what | loss | bytes |",
        "|---|---|---|",
        r"| a\|b | **47.00 (−0.50)** | 3,072 B |",
        "| *heading* | | |",
        "| b | 48.12 | 16 % |",
    ]


def test_markers_are_filled_and_stay(docs, numbers):
    figures = "it has <!-- n: loss.c.bytes:.1e -->9<!-- /n --> of <!-- n: loss.dense --><!-- /n -->"
    old = f"x\n\n<!-- source: loss -->\nold\n<!-- end -->\n\n{figures}"
    new = docs["inject"].inject(old, numbers, [])
    assert "\n\nMeasured by `python measure.py`: two-core machine.\n\n<!-- end -->" in new
    assert "it has <!-- n: loss.c.bytes:.1e -->1.5e-5<!-- /n --> of <!-- n: loss.dense -->46.4<!-- /n -->" in new
    assert docs["inject"].inject(new, numbers, []) == new


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<!-- numbers: gain -->\n<!-- end -->", "gain.json is not there; there are loss"),
        ("<!-- numbers: loss -->\n", "without its <!-- end -->"),
        ("<!-- numbers: loss -->\n<!-- numbers: loss -->\n<!-- end -->", "without its <!-- end -->"),
        ("<!-- rooms: tree -->\n<!-- end -->", "tree is no layout; there are map, table"),
        ("a <!-- n: loss.d.loss -->1<!-- /n -->", "has no 'd'"),
        ("a <!-- n: loss.dense -->1", "not of the form"),
        ("<!-- n: loss.dense -->1<!-- /n -->", "starts a line"),
    ],
)
def test_a_wrong_marker_is_an_error_that_says_which(docs, numbers, text, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        docs["inject"].inject(text, numbers, [])


def test_a_misspelt_key_of_the_json_is_refused(docs, tmp_path):
    (tmp_path / "x.json").write_text('{"source": {"command": "c"}, "columns": [], "rows": [], "values": {}, "captoin": ""}')
    with pytest.raises(ValueError, match=r"x\.json: captoin"):
        docs["table"].read(tmp_path / "x.json")


def test_every_room_says_what_goes_in_and_what_comes_out(docs):
    house = docs["rooms"].rooms(ROOT)  # raises for a room that does not
    tops = [ROOT / "compress", ROOT / "exporters"]
    assert [room.path for room in house] == [
        f"{top.name}/{folder.parent.name}" for top in tops for folder in sorted(top.glob("*/__init__.py"))
    ]
    assert all(room.what and room.takes and room.gives for room in house)


def test_a_room_without_in_and_out_is_refused(docs, tmp_path):
    (tmp_path / "__init__.py").write_text('"""A room."""')
    with pytest.raises(ValueError, match="must be a line, an empty one, and `In: … Out: …`"):
        docs["rooms"].described("compress/cellar", tmp_path / "__init__.py")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_that_a_page_names_are_there(page):
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    named = re.findall(r"(?<![\w/.-])((?:compress|exporters|recipes|tests|docs)/[\w./*-]*\w(?:/|\*)?)", text)
    missing = [name for name in named if "NAME" not in name and not list(ROOT.glob(name.rstrip("/")))]
    assert not missing


def test_ci_runs_every_python_that_the_package_allows():
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())
    pythons = workflow["jobs"]["pinned"]["strategy"]["matrix"]["python"]
    least, below = re.search(r'requires-python = ">=3\.(\d+),<3\.(\d+)"', (ROOT / "pyproject.toml").read_text()).groups()
    assert pythons == [f"3.{minor}" for minor in range(int(least), int(below))]
    uses = [step["uses"] for job in workflow["jobs"].values() for step in job["steps"] if "uses" in step]
    assert uses
    assert all(re.fullmatch(r"[\w/-]+@v\d+", action) for action in uses)


@pytest.mark.skipif(find_spec("material") is None, reason="mkdocs-material is not installed; make docs installs it")
def test_the_pages_build_with_every_link_resolved_and_fetch_nothing(tmp_path):
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert {page.stem for page in (ROOT / "docs").glob("*.md")} <= {page.stem for page in tmp_path.glob("*.html")}
    for page in tmp_path.rglob("*.html"):
        assert not re.findall(r'<(?:script|img|link)[^>]*(?:src|href)="?(?:https?:)?//[^">]*', page.read_text()), page.name
