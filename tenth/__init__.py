"""Run sparse mixture-of-experts language models, and see what the experts do.

>>> import tenth
>>> m = tenth.load("default", to_run=True)                          # doctest: +SKIP
>>> print(m.chat([{"role": "user", "content": "Hello!"}]).text)     # doctest: +SKIP
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tenth.api import Chunk, Generation, Model, ModelOutput, load
    from tenth.errors import TenthError

__version__ = "0.1.0"
__all__ = ["Chunk", "Generation", "Model", "ModelOutput", "TenthError", "__version__", "load"]


def __getattr__(name: str) -> Any:
    """Import on first use: `import tenth` itself does no work."""
    if name not in __all__:
        raise AttributeError(f"module 'tenth' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module("tenth.errors" if name == "TenthError" else "tenth.api"), name)
