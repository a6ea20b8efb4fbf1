"""Files in and out: clips, G-buffers, panoramas, cameras, contact sheets, result pages.

Every reader raises `InputError` for what it cannot use; every writer makes its output appear only when complete.
"""

from diffusion_renderer.io.atomic import atomic_path
from diffusion_renderer.io.cameras import check_camera_count, read_cameras, write_cameras
from diffusion_renderer.io.clips import ClipFile, ClipWriter, iter_frames, open_clip, read_clip, write_clip
from diffusion_renderer.io.environments import read_environment, write_environment
from diffusion_renderer.io.gbuffer_writing import GBufferWriter, write_gbuffer
from diffusion_renderer.io.gbuffers import GBufferFiles, open_gbuffer, read_gbuffer
from diffusion_renderer.io.images import read_image, write_image
from diffusion_renderer.io.layout import list_clips, list_gbuffers
from diffusion_renderer.io.page import Figure, Section, Table, write_page
from diffusion_renderer.io.sheet import write_sheet
from diffusion_renderer.io.video import VideoWriter, write_video

__all__ = [
    "ClipFile",
    "ClipWriter",
    "Figure",
    "GBufferFiles",
    "GBufferWriter",
    "Section",
    "Table",
    "VideoWriter",
    "atomic_path",
    "check_camera_count",
    "iter_frames",
    "list_clips",
    "list_gbuffers",
    "open_clip",
    "open_gbuffer",
    "read_cameras",
    "read_clip",
    "read_environment",
    "read_gbuffer",
    "read_image",
    "write_cameras",
    "write_clip",
    "write_environment",
    "write_gbuffer",
    "write_image",
    "write_page",
    "write_sheet",
    "write_video",
]
