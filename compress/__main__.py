"""`python -m compress`, the same as `compress`."""

import os
import sys

# -m puts the working folder in front of the standard library; a json.py there would be taken for Python's.
_OURS = os.path.dirname(os.path.dirname(os.path.realpath(__file__)))  # noqa: PTH120 - pathlib would be imported from there
if not sys.flags.safe_path and sys.path and os.path.realpath(sys.path[0]) != _OURS:
    del sys.path[0]

from compress.cli.main import main  # noqa: E402

if __name__ == "__main__":
    main()
