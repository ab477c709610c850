"""The file for `--code`: what it imports registers the functions that the configs name."""

import sys
from pathlib import Path

# spaCy imports this file by its path, so the folder with the library is not on the path yet.
sys.path.insert(0, str(Path(__file__).parent))

import custom_embedding
import torch_head
import transformer_extras
import wide_mlp
from zero_copy import (
    batcher,
    character_embed,
    corpus,
    export,
    layers,
    recording,
    schedules,
    sequence_layers,
    state,
    static_vectors,
    textcat,
    tok2vec,
    torch_layers,
    transformer_layers,
)

__all__ = [
    "batcher",
    "character_embed",
    "corpus",
    "custom_embedding",
    "export",
    "layers",
    "recording",
    "schedules",
    "sequence_layers",
    "state",
    "static_vectors",
    "textcat",
    "tok2vec",
    "torch_head",
    "torch_layers",
    "transformer_extras",
    "transformer_layers",
    "wide_mlp",
]
