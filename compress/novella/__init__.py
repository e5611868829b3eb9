"""novella, the packaged demo model (a HuggingFace folder), and two texts sampled from it.

In: nothing. Out: a folder that from_pretrained loads; text to calibrate on and text to judge by.

README.md beside this file tells how they were made.
"""

from pathlib import Path

FOLDER = Path(__file__).parent
