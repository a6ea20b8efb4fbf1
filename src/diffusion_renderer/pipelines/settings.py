"""How one model is run: the defaults of the published renderers, overridden by ``renderer.json`` in a model folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal, get_args

from diffusion_renderer.core.errors import InputError
from diffusion_renderer.core.names import check_name
from diffusion_renderer.core.packing import UNPACKED, embedding_index
from diffusion_renderer.core.types import BUFFERS
from diffusion_renderer.diffusion import SOLVERS
from diffusion_renderer.models import CONCATENATED, Kind, LightCondition

#: The buffers that can be calibrated.
CALIBRATED = ("basecolor", "roughness", "metallic")
#: What makes images of latents.
Decoder = Literal["full", "small"]


@dataclass(frozen=True)
class RendererSettings:
    """Settings of one model. The defaults are those of the published inverse renderer.

    Attributes
    ----------
    kind : "inverse" or "forward".
    groups : image groups (see `core.packing`): those that an inverse renderer makes, or that a forward renderer reads, in the
        order in which their latents are concatenated.
    joint : an inverse renderer makes all its groups in one pass, their latents concatenated.
    light : how a forward renderer is told the light: by an environment encoder, or by latents concatenated to the UNet's input
        (see `models.lighting`).
    prior : name of the classical renderer whose picture a forward renderer is given as one more condition image, behind the
        groups (see `render.prior`); None for the published ones, which are given none.
    residual : what a forward renderer with a prior makes is the difference between the latents of the video and of the picture.
        The difference that it makes to the decoded picture is added to the picture itself, at the G-buffers' size.
    residual_noise : differences of a residual model below this are taken for its noise, and larger ones made smaller by as much
        (soft threshold; Donoho 1995), in sRGB values; 0 takes them as they are, and so does relative depth.
    calibration : (gain, centre) of buffers of an inverse renderer, those of `CALIBRATED`: its estimate, as the image that it
        is encoded in (base colour: sRGB), is drawn towards the centre, to ``centre + gain (x - centre)``. A network that has
        been trained on few scenes is surer than it should be; the figures come from clips that are neither trained nor scored
        on.
    guided : an inverse renderer's buffers are sharpened by the frames, which show where things end (see `pipelines.guided`).
        For models that see small images and whose decoder is soft; False as published.
    default_steps, default_guidance, default_lora_scale : of a call that does not say.
    relative_lora_scale : the LoRA scale of a call that does not say and whose depth is relative, as that of estimated
        G-buffers: an adapter that was trained on such (paper, section 4.3, has one for real clips). None: as any other.
    solver : of a call that does not say; one of `diffusion.SOLVERS`.
    working_area : clips are scaled to about this many pixels; None keeps their own size.
    window : frames per window; None takes ``num_frames`` of the UNet.
    overlap : frames that neighbouring windows share; None takes a quarter of the window.
    decode_chunk : frames encoded and decoded at once; the VAE's decoder sees only those together.
    decoder : "full", the VAE's own, or "small", one made for it (see `models.small_decoder`).
    half : run the UNet and the decoder in bfloat16 (autocast) on a CPU that computes with it (AVX-512 BF16, AMX), where they
        are in float32; elsewhere nothing changes.
    condition_scaled : whether condition latents are multiplied by the VAE's factor.
    initial_noise : False starts from zero instead of noise, for models trained to map their conditions straight to the result.
    timestep_spacing : overrides the scheduler file's; None keeps it.
    env_size, env_antialias : side of the environment images, pixels, and how they are read (see `light.environment_images`).
    light_luminance : darkest and brightest mean luminance of the panoramas that the model knows; None when any will do.
    fps, motion_bucket, noise_augmentation : the constants that the UNet's added time embedding is given.
    """

    kind: Kind = "inverse"
    groups: tuple[tuple[str, ...], ...] = tuple((name,) for name in BUFFERS)
    joint: bool = False
    light: LightCondition = "encoder"
    prior: str | None = None
    residual: bool = False
    residual_noise: float = 0.0
    calibration: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    guided: bool = False
    default_steps: int = 20
    default_guidance: float = 1.0
    default_lora_scale: float = 0.0
    relative_lora_scale: float | None = None
    solver: str = "euler"
    working_area: int | None = 512 * 512
    window: int | None = None
    overlap: int | None = None
    decode_chunk: int = 8
    decoder: Decoder = "full"
    half: bool = False
    condition_scaled: bool = False
    initial_noise: bool = True
    timestep_spacing: str | None = None
    env_size: int = 512
    env_antialias: bool = False
    light_luminance: tuple[float, float] | None = None
    fps: int = 7
    motion_bucket: int = 127
    noise_augmentation: float = 0.0

    @property
    def time_ids(self) -> tuple[float, float, float]:
        """What the UNet's added time embedding reads. SVD was trained on fps - 1."""
        return (float(self.fps - 1), float(self.motion_bucket), float(self.noise_augmentation))

    @property
    def buffers(self) -> tuple[str, ...]:
        """The buffers of all groups."""
        return tuple(name for group in self.groups for name in group)


def default_settings(kind: Kind) -> RendererSettings:
    """Of the published renderers."""
    if kind == "inverse":
        return RendererSettings()
    return RendererSettings(
        kind="forward", groups=UNPACKED, default_guidance=1.2, condition_scaled=True, timestep_spacing="trailing"
    )


def read_settings(kind: Kind, values: Mapping[str, Any], source: str) -> RendererSettings:
    """Defaults overridden by the contents of a ``renderer.json``; entries of other programs are ignored.

    Raises InputError for values that cannot be used; ``source`` names the file in the message.
    """
    settings = default_settings(kind)
    known = {item.name: values[item.name] for item in fields(settings) if item.name in values}
    if known.get("kind", kind) != kind:
        raise InputError(f"settings of kind {kind} in {source}", str(known["kind"]), "give the folder of the other renderer")
    check_name(f"solver in {source}", str(known.get("solver", "euler")), SOLVERS)
    try:
        if "groups" in known:
            known["groups"] = tuple(tuple(group) for group in known["groups"])
            for group in known["groups"]:
                embedding_index(group)
        if known.get("decoder", "full") not in get_args(Decoder):
            raise ValueError(f"decoder {known['decoder']!r}, which is neither {' nor '.join(get_args(Decoder))}")
        if known.get("light", "encoder") not in CONCATENATED:
            raise ValueError(f"light {known['light']!r}, which is neither {' nor '.join(CONCATENATED)}")
        if "calibration" in known:
            known["calibration"] = _calibration(known["calibration"])
        if not isinstance(known.get("prior"), str | None):
            raise ValueError(f"prior {known['prior']!r}, which is no name")
        if known.get("residual") and known.get("prior") is None:
            raise ValueError("residual without a prior that it is added to")
        if not float(known.get("relative_lora_scale") or 0) >= 0:
            raise ValueError(f"relative_lora_scale {known['relative_lora_scale']}, below 0")
        if not 0 <= float(known.get("residual_noise", 0)) < 1:
            raise ValueError(f"residual_noise {known['residual_noise']}, not a difference in [0, 1)")
        if known.get("light_luminance") is not None:
            low, high = (float(value) for value in known["light_luminance"])
            if not 0 < low <= high:
                raise ValueError(f"light_luminance {known['light_luminance']}, not an ascending pair of positive numbers")
            known["light_luminance"] = (low, high)
        for name, least in (
            ("default_steps", 1),
            ("decode_chunk", 1),
            ("env_size", 2),
            ("window", 1),
            ("working_area", 1),
            ("overlap", 0),
        ):
            value = known.get(name)
            if value is not None and (not isinstance(value, int) or value < least):
                raise ValueError(f"{name} {value!r}, below {least}")
    except (TypeError, ValueError, IndexError) as error:
        raise InputError(f"usable settings in {source}", f"{error}", "correct the file or copy the checkpoint again") from error
    return replace(settings, **known)


def _calibration(values: Mapping[str, Any]) -> dict[str, tuple[float, float]]:
    """(gain, centre) by buffer. ValueError for anything else."""
    found = {}
    for name, pair in values.items():
        if name not in CALIBRATED:
            raise ValueError(f"calibration of {name!r}, which is none of {', '.join(CALIBRATED)}")
        gain, centre = (float(value) for value in pair)
        if not (0 < gain <= 2 and 0 <= centre <= 1):
            raise ValueError(f"calibration {list(pair)} of {name}, not a gain up to 2 and a centre in [0, 1]")
        found[name] = (gain, centre)
    return found
