"""The options of `inverse`, `forward` and `relight`. Reading them loads nothing heavy; `run` does the work."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from diffusion_renderer.cli import values
from diffusion_renderer.core.errors import InputError
from diffusion_renderer.core.names import check_name

BufferNames = Annotated[
    tuple[Annotated[tuple[str, ...], values.several("NAME ...", str, "--buffers")], ...], values.UseAppendAction
]
Degrees = Annotated[float, *values.one("DEG", values.number_at_least("--light-rotation", -float("inf"), "degrees"), "0")]
Elevation = Annotated[float, *values.one("DEG", values.number_at_least("--light-elevation", -float("inf"), "degrees"), "0")]
StaticFrame = Annotated[int | None, *values.one("N", values.count_at_least("--static-frame", 0), "none held")]
Guidance = Annotated[
    float | None, *values.one("G", values.number_at_least("--guidance", 0.0, "1 for none, 1.2 as published"), "the model's own")
]
LoraScale = Annotated[
    float | None, *values.one("S", values.number_at_least("--lora-scale", 0.0, "0 to leave the adapter out"), "the model's own")
]
Text = Annotated[str | None, *values.one("NAME|PATH", str, "--model")]
#: As in `diffusion`, which is not imported here: the help must not load torch.
SOLVERS = ("euler", "heun", "dpmpp-2m", "unipc")


def _solver(text: str) -> str:
    try:
        return check_name("--solver", text, SOLVERS)
    except InputError as error:
        raise values.BadOption(error) from None


Solver = Annotated[str | None, *values.one("NAME", _solver, "the model's own")]


@dataclass(frozen=True, kw_only=True)
class Common:
    """What every renderer's command takes."""

    out: Annotated[Path, arg(aliases=["-o"], metavar="OUT")]
    """Folder for the results; made when missing."""
    model: Annotated[str, *values.one("NAME|PATH", str, "tiny")] = "tiny"
    """The networks: tiny (in the package), a name from `weights list`, a local folder, or a Hugging Face id; as a forward
    renderer also splitsum, ssrt (screen-space ray tracing) and pathtrace."""
    steps: values.Steps = None
    """Denoising steps; more is slower and finer."""
    solver: Solver = None
    """How the steps go: euler, heun (two calls of the network per step), dpmpp-2m or unipc."""
    seed: values.Seed = 0
    """Seed of the starting noise; the same seed gives the same result."""
    size: values.Size = None
    """Working size in pixels; results come back at the input's size."""
    frames: values.Frames = None
    """Frames to process, from the first one."""
    format: values.Formats = ()
    """File formats of the results; png without this option, and mp4 too for `forward` and `relight`."""
    device: Annotated[str | None, *values.one("DEVICE", str, "cuda if there is one, else cpu")] = None
    """Where the networks run: cpu, cuda, cuda:1, mps."""
    memory: Annotated[
        Literal["auto", "8GB", "12GB", "24GB", "max"],
        *values.one("auto|8GB|12GB|24GB|max", values.choice("--memory", ("auto", "8GB", "12GB", "24GB", "max")), "auto"),
    ] = "auto"
    """Memory of the device that the networks may use; auto takes what is free. When it runs out the job goes on with less."""
    decoder: Annotated[
        Literal["full", "small"] | None,
        *values.one("full|small", values.choice("--decoder", ("full", "small")), "the model's own"),
    ] = None
    """What makes pictures of the networks' results: the model's full decoder, or a small one that takes a tenth of the time."""
    compile: values.Flag = False
    """Compile the networks: a wait at the start, then faster."""
    overwrite: values.Flag = False
    """Make results again that are complete already."""
    debug: values.Flag = False
    """Show tracebacks."""


@dataclass(frozen=True, kw_only=True)
class Buffers:
    """What an inverse renderer takes beside `Common`."""

    buffers: BufferNames = ()
    """Which to make: basecolor normal depth roughness metallic (the default), diffuse_albedo."""
    unguided: values.Flag = False
    """Do not sharpen the buffers by the frames where the model asks for it (tiny does)."""

    @property
    def buffer_names(self) -> tuple[str, ...]:
        """The buffers asked for; empty for the default."""
        return values.flatten(self.buffers)


@dataclass(frozen=True, kw_only=True)
class Lighting:
    """What a forward renderer takes beside `Common`."""

    light: values.Paths
    """Panoramas (.hdr, .exr; width twice the height); each gives a relit clip."""
    rotate_light: values.Flag = False
    """Turn the light once around the vertical over the clip."""
    light_rotation: Degrees = 0.0
    """Turn the light about the vertical, degrees."""
    light_elevation: Elevation = 0.0
    """Tilt the light about the horizontal, degrees."""
    light_frame: Annotated[
        Literal["camera", "world"] | None,
        *values.one("camera|world", values.choice("--light-frame", ("camera", "world")), "world with --cameras, else camera"),
    ] = None
    """What the light is fixed to; world needs --cameras."""
    light_scale: values.LightScale = None
    """Multiplies the panorama's radiance; auto sets it to the brightness the model was trained with."""
    cameras: Annotated[Path | None, *values.one("cameras.json", Path, "none")] = None
    """Camera-to-world poses, one per frame."""
    static_frame: StaticFrame = None
    """Hold the G-buffers of this frame (from 0) for the whole clip; of a still, for --frames frames or 24."""
    guidance: Guidance = None
    """Classifier-free guidance of the forward renderer; 1 for none."""
    lora_scale: LoraScale = None
    """Strength of the model's LoRA adapter, if it has one."""
    geometry: Annotated[Path | None, *values.one("FILE", Path, "none")] = None
    """The scene (Mitsuba .xml, .ply, .obj) for the forward renderer pathtrace, which needs --cameras too."""

    @property
    def light_paths(self) -> tuple[Path, ...]:
        """The panoramas in the order given."""
        return values.flatten(self.light)


@dataclass(frozen=True, kw_only=True)
class Inverse(Buffers, Common):
    """From a video or image to its G-buffers.

    Writes OUT/<clip>/<frame>.<buffer>.png, .gbuffer.exr (all buffers, linear, half float) or OUT/<clip>.<buffer>.mp4, as
    --format says (default: png).
    """

    input: Annotated[Positional[Path], arg(metavar="INPUT")]
    """A video, an image, a folder of frames, or a folder of any of these."""

    def run(self) -> None:
        """Make and write the G-buffers."""
        from diffusion_renderer.cli.progress import Progress

        with Progress() as progress:
            from diffusion_renderer.cli import rendering

            rendering.run_inverse(self, progress)


@dataclass(frozen=True, kw_only=True)
class Forward(Lighting, Common):
    """From G-buffers and a light to a video.

    Writes OUT/<clip>_<light>/<frame>.rgb.png, .rgb.exr (linear) or OUT/<clip>_<light>.rgb.mp4, as --format says
    (default: png and mp4).
    """

    gbuffers: Annotated[Positional[Path], arg(metavar="GBUFFERS")]
    """A folder of buffers as `inverse` writes it, or a folder of such folders."""

    def run(self) -> None:
        """Make and write the relit clips."""
        from diffusion_renderer.cli.progress import Progress

        with Progress() as progress:
            from diffusion_renderer.cli import rendering

            rendering.run_forward(self, progress)


@dataclass(frozen=True, kw_only=True)
class Relight(Lighting, Buffers, Common):
    """From a video or image to the same shot under new lights: inverse, then forward.

    Writes what `inverse` and `forward` write (default: png and mp4). A run that was stopped goes on at the frame where it was.
    """

    input: Annotated[Positional[Path], arg(metavar="INPUT")]
    """A video, an image, a folder of frames, or a folder of any of these."""
    inverse_model: Text = None
    """The inverse renderer's networks, if they are not --model's."""
    forward_model: Text = None
    """The forward renderer, if it is not --model: networks, or splitsum, ssrt, pathtrace."""

    def run(self) -> None:
        """Make and write the G-buffers and the relit clips."""
        from diffusion_renderer.cli.progress import Progress

        with Progress() as progress:
            from diffusion_renderer.cli import rendering

            rendering.run_relight(self, progress)
