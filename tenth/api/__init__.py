"""The Python interface: load a model, call it, generate, stream, chat. Everything the commands do is a call away."""

from tenth.api.model import DTYPES, Model, ModelOutput, chosen_dtype, load, resolve
from tenth.api.options import Options, Settings
from tenth.api.stream import Chunk, Generation, Stream

__all__ = [
    "DTYPES",
    "Chunk",
    "Generation",
    "Model",
    "ModelOutput",
    "Options",
    "Settings",
    "Stream",
    "chosen_dtype",
    "load",
    "resolve",
]
