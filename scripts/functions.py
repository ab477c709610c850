"""The file for `--code`: what it imports registers the functions that the configs name."""

import sys
from pathlib import Path

# spaCy imports this file by its path, so the folder with the library is not on the path yet.
sys.path.insert(0, str(Path(__file__).parent))

from zero_copy import batcher, components, corpus, export, layers

__all__ = ["batcher", "components", "corpus", "export", "layers"]
