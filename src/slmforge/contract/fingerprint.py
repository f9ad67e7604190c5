"""What a model directory holds, as one digest: the control plane records it, the trainer checks it."""

import hashlib
from pathlib import Path

MODEL_FILES = ("*.safetensors", "*.json", "*.jinja", "*.model", "merges.txt", "vocab.txt")


def directory_fingerprint(folder: Path) -> str:
    """The sha256 over the sorted (name, sha256) of the config, tokenizer and safetensors files right in `folder`.

    Nothing else in the folder counts: a README may change, weights may not. Raises `FileNotFoundError` when there is
    no `config.json`.
    """
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"{folder} holds no config.json; name a folder made by save_pretrained")
    total = hashlib.sha256()
    for path in sorted({path for pattern in MODEL_FILES for path in folder.glob(pattern) if path.is_file()}):
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        total.update(f"{path.name}\0{digest}\n".encode())
    return total.hexdigest()
