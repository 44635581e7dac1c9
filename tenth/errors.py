"""Every error a user can meet: one tree.

TenthError                  anything `tenth` refuses, in one line: what is wrong, where, what would be right
├── ConfigError             a model configuration that is malformed, or asks for mathematics we do not have
├── WeightsError            a file of weights
│   ├── FileFormatError     its bytes are not what its format says
│   └── TensorError         a tensor in it is missing, extra, duplicate or misshapen
├── ModelNotFoundError      a name that is neither a path, nor in the cache, nor on the hub
├── TextError               text that cannot become tokens, or tokens text
│   ├── TokenizerError      a tokenizer that is malformed, or of a kind we do not have
│   └── TemplateError       a chat template that fails, does not end, or writes too much
├── RequestError            a parameter or prompt that cannot be served
├── TrainingError           a run that cannot go on: a loss that is not finite
└── MachineError            something this machine lacks: a package, disk, memory, network
"""

__all__ = [
    "ConfigError",
    "FileFormatError",
    "MachineError",
    "ModelNotFoundError",
    "RequestError",
    "TemplateError",
    "TensorError",
    "TenthError",
    "TextError",
    "TokenizerError",
    "TrainingError",
    "WeightsError",
]


class TenthError(Exception):
    """The root: every message is one line that says what is wrong, where, and what would be right."""


class ConfigError(TenthError):
    """A model configuration is malformed, or asks for mathematics that is not implemented."""


class WeightsError(TenthError):
    """A file of weights cannot be used."""


class FileFormatError(WeightsError):
    """A file's bytes are not what its format says: a bad header, an offset beyond the end, a truncated shard."""


class TensorError(WeightsError):
    """A tensor is missing, extra, duplicate or misshapen."""


class ModelNotFoundError(TenthError):
    """A model's name is neither a path, nor in the cache, nor on the hub."""


class TextError(TenthError):
    """Text cannot become tokens, or tokens text."""


class TokenizerError(TextError):
    """A tokenizer is malformed, or of a kind that is not supported."""


class TemplateError(TextError):
    """A chat template fails, does not end in time, or writes too much."""


class RequestError(TenthError):
    """A parameter or a prompt cannot be served."""


class TrainingError(TenthError):
    """A training run cannot go on: a loss or a gradient that is not finite."""


class MachineError(TenthError):
    """This machine lacks something: a package, disk, memory, a network."""


class EngineError(MachineError):
    """The engine met what nobody foresaw. The text is for the log: it may hold what is another's."""
