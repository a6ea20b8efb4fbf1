"""Meshes, materials and panoramas from files: every asset loads in one common form, or is skipped with a reason.

``library`` lists folders and hands out assets; ``gltf`` and ``obj`` read files into triangles with a `Surface`; ``cutout``
turns transparency into geometry; ``bake`` turns constant and per-vertex colours into small textures; ``assemble`` makes the
`Asset`; ``maps`` reads material folders; ``manifest`` knows the licences.
"""

from __future__ import annotations

from diffusion_renderer.datagen.assets.library import AssetLibrary, asset_folders
from diffusion_renderer.datagen.assets.limits import AssetLimits, SkippedAsset

__all__ = ["AssetLibrary", "AssetLimits", "SkippedAsset", "asset_folders"]
