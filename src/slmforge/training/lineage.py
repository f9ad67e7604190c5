"""What software a run used: for its `started` event and for the model card. Reads metadata, imports nothing heavy."""

import platform
from importlib.metadata import PackageNotFoundError, version

import slmforge

PACKAGES = ("torch", "transformers", "tokenizers", "peft", "safetensors", "numpy")


def installed_versions() -> dict[str, str]:
    """Version by name, of Python and of every package here that makes a difference to the result."""
    found = {"slmforge": slmforge.__version__, "python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:  # a profile needs none of them
            continue
    return found
