"""Which weights these are, whatever precision and file they are kept in."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from diffusion_renderer.core.errors import InputError
from diffusion_renderer.io.atomic import write_bytes

#: In a small decoder's folder: which autoencoder it was trained for.
FILE = "autoencoder.json"


def weights_digest(folder: Path) -> str | None:
    """A digest of all tensors below ``folder`` in float16: a model's copy has that of the network that it was made of.

    None where there are none. InputError for a damaged file.
    """
    digest, found = hashlib.sha256(), False
    for path in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(path, "pt") as file:
                for name in sorted(file.keys()):
                    value = file.get_tensor(name).half().contiguous()
                    digest.update(f"{name}\0{tuple(value.shape)}\0".encode())
                    digest.update(value.view(torch.uint8).numpy() if value.ndim else value.numpy().tobytes())
                    found = True
        except (SafetensorError, OSError) as error:
            raise InputError(f"a whole safetensors file at {path}", str(error), "copy it again, or train it again") from error
    return digest.hexdigest() if found else None


def mark_autoencoder(decoder: Path, digest: str | None) -> None:
    """Note in a small decoder's folder the weights of the autoencoder that it was trained for; None when they are not known."""
    if digest is None:
        (decoder / FILE).unlink(missing_ok=True)
    else:
        write_bytes(decoder / FILE, json.dumps({"weights": digest}).encode())


def belongs(decoder: Path, vae: Path) -> bool:
    """Whether a small decoder was trained for the autoencoder ``vae``. One that has no mark is taken for one that was.

    InputError for a mark that cannot be read.
    """
    path = decoder / FILE
    if not path.exists():
        return True
    try:
        known = json.loads(path.read_text(encoding="utf-8"))["weights"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"a readable mark in {path}", str(error), "train the small decoder again") from error
    return known == weights_digest(vae)
