"""`python -m compress`, the same as `compress`."""

import sys
from pathlib import Path

# -m puts the working folder in front of the standard library; a json.py there would be taken for Python's.
if not sys.flags.safe_path and sys.path and Path(sys.path[0] or ".").resolve() != Path(__file__).resolve().parents[1]:
    del sys.path[0]

from compress.cli.main import main

if __name__ == "__main__":
    main()
