"""The long form: broad matrices and long campaigns, which CI runs beside the quick form that every commit gets."""

import os

import pytest

LONG = os.environ.get("COMPRESS_LONG") == "1"
long = pytest.mark.skipif(not LONG, reason="the long form; set COMPRESS_LONG=1")
