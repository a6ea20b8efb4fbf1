"""From what a user calls a model to the folder that holds it."""

from __future__ import annotations

import re
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

from diffusion_renderer.core.errors import InputError
from diffusion_renderer.core.names import nearest
from diffusion_renderer.io.fingerprint import fingerprint
from diffusion_renderer.models import Kind, download_checkpoint
from diffusion_renderer.models.small_decoder import FOLDER as SMALL_DECODER

#: The models trained by this project, inside the package.
WEIGHTS = Path(__file__).resolve().parents[1] / "weights"
_INVERSE = "nexuslrf/diffusion_renderer-inverse-svd"
#: Short names of the published checkpoints: a Hugging Face repository for each kind.
PUBLISHED: dict[str, dict[Kind, str]] = {
    "svd": {"inverse": _INVERSE, "forward": "nexuslrf/diffusion_renderer-forward-svd"},
    "svd-objaverse": {"inverse": _INVERSE, "forward": "nexuslrf/diffusion_renderer-forward-svd-objaverse"},
}
#: Every short name.
MODEL_NAMES = ("tiny", *PUBLISHED)
_REPOSITORY = re.compile(r"^[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*$")


def locate_model(name_or_path: str | Path, kind: Kind) -> Path:
    """The folder of a model: a short name of `MODEL_NAMES`, a path, or a Hugging Face repository id (downloaded when needed).

    A path may hold both renderers in subfolders ``inverse`` and ``forward``. Raises InputError for anything else.
    """
    folder = local_folder(name_or_path, kind)
    if folder is not None:
        return folder
    name = str(name_or_path)
    if name == "tiny":
        raise InputError(
            f"the tiny {kind} renderer inside the package", "no weights", "train it, or install a release that has them"
        )
    if name in PUBLISHED or _REPOSITORY.match(name):
        return download_checkpoint(repository(name, kind))
    guess = nearest(name, MODEL_NAMES)
    raise InputError(
        f"a model: {', '.join(MODEL_NAMES)}, a folder, or a Hugging Face id owner/name",
        repr(name),
        f"did you mean {guess}?" if guess else "check the spelling of the name or path",
    )


def local_folder(name_or_path: str | Path, kind: Kind | None = None) -> Path | None:
    """The folder of a model that is on this machine already, None otherwise; nothing is downloaded.

    Without a ``kind``, the folder that holds both renderers, where there is one.
    """
    name = str(name_or_path)
    if name == "tiny" or Path(name_or_path).is_dir():
        folder = WEIGHTS / "tiny" if name == "tiny" else Path(name_or_path)
        if kind is not None and (folder / kind / "unet").is_dir():
            folder = folder / kind
        elif kind is not None and name == "tiny":
            return None
        return folder if folder.is_dir() else None
    if name in PUBLISHED and kind is None:
        return None
    if name not in PUBLISHED and not _REPOSITORY.match(name):
        return None
    try:
        return Path(snapshot_download(repository(name, kind or "inverse"), local_files_only=True))
    except (HfHubHTTPError, LocalEntryNotFoundError, HFValidationError, OSError):
        return None


def weights_fingerprint(name_or_path: str | Path) -> str | None:
    """What a model's weights are, with what two renderers share; None for a model that is not on this machine."""
    folder = local_folder(name_or_path)
    if folder is None:
        return None
    beside = ("vae", "env_encoder", SMALL_DECODER) if (folder.parent / SMALL_DECODER).is_dir() else ("vae", "env_encoder")
    shared = [folder.parent / name for name in beside if not any(folder.rglob(name))]
    return " ".join(fingerprint(part) for part in (folder, *shared))


def repository(name: str, kind: Kind) -> str:
    """The Hugging Face repository that a short name stands for; a repository id stands for itself."""
    return PUBLISHED[name][kind] if name in PUBLISHED else name
