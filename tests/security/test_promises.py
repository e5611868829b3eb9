"""docs/security.md names a test for each promise; the tests exist."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_every_promise_names_a_test_that_exists():
    text = (ROOT / "docs" / "security.md").read_text()
    promises = [line for line in text.splitlines() if line.startswith("| ") and "`tests/" in line]
    assert len(promises) >= 12
    for line in promises:
        for file, _, name in re.findall(r"`(tests/[\w/]+\.py)(::(test_\w+))?`", line):
            assert (ROOT / file).is_file(), line
            assert not name or re.search(rf"^def {name}\(", (ROOT / file).read_text(), re.MULTILINE), line
    table = text.partition("| promise | held by |")[2].partition("\n## ")[0]
    assert all("`tests/" in line for line in table.splitlines() if line.startswith("| "))
