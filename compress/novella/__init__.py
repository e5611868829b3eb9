"""novella: the packaged demo model (a HuggingFace folder) and two texts sampled from it. See README.md beside this file."""

from pathlib import Path

FOLDER = Path(__file__).parent
