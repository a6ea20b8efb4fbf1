"""The diffusion renderers as users call them, on tiny random models (8 latent channels, VAE factor 4, windows of 4 frames)."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from models_random import GROUPS, save_model

from diffusion_renderer.core.errors import InputError
from diffusion_renderer.core.geometry import rotation_y
from diffusion_renderer.core.types import BUFFERS, DEFAULT_BUFFERS, Clip, EnvironmentMap, GBuffer
from diffusion_renderer.pipelines import (
    DiffusionForwardRenderer,
    DiffusionInverseRenderer,
    load_forward,
    load_inverse,
    local_folder,
    locate_model,
    names,
    read_settings,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    save_model(folder / "inverse", "inverse")
    save_model(folder / "forward", "forward", lora=True)
    save_model(folder / "packed" / "inverse", "inverse", groups=GROUPS)
    save_model(folder / "packed" / "forward", "forward", groups=GROUPS, conditions=len(GROUPS))
    return folder


@pytest.fixture(scope="module")
def inverse(folder: Path) -> DiffusionInverseRenderer:
    return load_inverse(folder / "inverse", device="cpu")


@pytest.fixture(scope="module")
def forward(folder: Path) -> DiffusionForwardRenderer:
    return load_forward(folder / "forward", device="cpu")


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def clip_of(frames: int, width: int = 24, height: int = 20) -> Clip:
    return Clip(random(frames, 3, height, width), fps=12.0, name="shot")


def gbuffer_of(frames: int, width: int = 24, height: int = 20) -> GBuffer:
    normal = torch.nn.functional.normalize(random(frames, 3, height, width, seed=1) - 0.5, dim=1)
    ones = [random(frames, 1, height, width, seed=seed) for seed in (2, 3, 4)]
    depth = torch.where(ones[0] < 0.1, torch.inf, 1 + 5 * ones[0])
    return GBuffer(random(frames, 3, height, width), normal, depth, ones[1], ones[2], fps=12.0, name="shot")


LIGHT = EnvironmentMap(random(3, 16, 32, seed=5) * 3)


def test_inverse_returns_buffers_at_the_input_size(inverse: DiffusionInverseRenderer) -> None:
    clip = clip_of(3, 37, 21)
    before = clip.frames.clone()
    gbuffer = inverse(clip)
    assert gbuffer.present == tuple(name for name in BUFFERS if name in DEFAULT_BUFFERS)
    assert (len(gbuffer), gbuffer.size, gbuffer.fps, gbuffer.name) == (3, (37, 21), 12.0, "shot")
    assert torch.equal(clip.frames, before)
    for name, tensor in gbuffer.tensors():
        assert tensor.dtype == torch.float32 and tensor.isfinite().all()
        assert name == "normal" or (tensor.min() >= 0 and tensor.max() <= 1)
    length = gbuffer.normal.norm(dim=1)
    assert (((length - 1).abs() < 1e-5) | (length == 0)).all()


def test_forward_returns_a_clip_at_the_input_size(forward: DiffusionForwardRenderer) -> None:
    gbuffer = gbuffer_of(3, 37, 21)
    before = {name: tensor.clone() for name, tensor in gbuffer.tensors()}
    clip = forward(gbuffer, LIGHT)
    assert (len(clip), clip.size, clip.fps, clip.name) == (3, (37, 21), 12.0, "shot")
    assert clip.frames.dtype == torch.float32 and clip.frames.isfinite().all()
    assert clip.frames.min() >= 0 and clip.frames.max() <= 1
    assert all(torch.equal(before[name], tensor) for name, tensor in gbuffer.tensors())


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (90, 1)])
def test_images_of_one_pixel_or_one_column(
    inverse: DiffusionInverseRenderer, forward: DiffusionForwardRenderer, size: tuple[int, int]
) -> None:
    gbuffer = inverse(clip_of(1, *size))
    assert gbuffer.size == size
    assert forward(gbuffer, LIGHT).size == size


@pytest.mark.parametrize("frames", [1, 3, 4, 5, 11])
def test_any_number_of_frames(inverse: DiffusionInverseRenderer, forward: DiffusionForwardRenderer, frames: int) -> None:
    """Shorter than the window of 4, equal, and longer."""
    assert len(inverse(clip_of(frames, 16, 16), buffers=("normal",), steps=2)) == frames
    rotations = torch.stack([rotation_y(0.3 * frame) for frame in range(frames)])
    assert len(forward(gbuffer_of(frames, 16, 16), LIGHT, rotations=rotations, steps=2)) == frames


def test_a_long_clip_begins_as_its_first_window(inverse: DiffusionInverseRenderer) -> None:
    """In one step, frames before the first overlap (of one frame, here) are those of the short clip."""
    condition = inverse.encode(clip_of(9, 16, 16).frames)
    noise = torch.randn(9, 8, 4, 4, generator=torch.Generator().manual_seed(0))
    whole = inverse.denoise(condition, ("roughness",), noise, 1)
    part = inverse.denoise(condition[:4], ("roughness",), noise[:4], 1)
    assert (inverse.window, inverse.overlap) == (4, 1)
    assert torch.equal(whole[:3], part[:3])
    assert (whole[3] - part[3]).abs().max() > 1e-4


def test_the_seed_decides(inverse: DiffusionInverseRenderer, forward: DiffusionForwardRenderer) -> None:
    clip, gbuffer = clip_of(2), gbuffer_of(2)
    for call in (
        lambda seed: inverse(clip, buffers=("depth",), seed=seed).depth,
        lambda seed: forward(gbuffer, LIGHT, seed=seed).frames,
    ):
        assert torch.equal(call(3), call(3))
        assert not torch.equal(call(3), call(4))


def test_without_initial_noise_the_seed_does_not_matter(folder: Path, tmp_path: Path) -> None:
    model = load_inverse(save_model(tmp_path / "still", "inverse", initial_noise=False), device="cpu")
    a, b = (model(clip_of(2), buffers=("depth",), seed=seed).depth for seed in (3, 4))
    assert torch.equal(a, b)


def test_each_buffer_is_its_own(inverse: DiffusionInverseRenderer) -> None:
    """The domain embedding reaches the network: with the same noise, two buffers differ."""
    condition = inverse.encode(clip_of(2, 16, 16).frames)
    noise = torch.randn(2, 8, 4, 4, generator=torch.Generator().manual_seed(0))
    made = [inverse.denoise(condition, (name,), noise, 1) for name in BUFFERS]
    assert all((a - b).abs().max() > 1e-4 for i, a in enumerate(made) for b in made[:i])


def test_asked_for_alone_a_buffer_is_the_same(inverse: DiffusionInverseRenderer) -> None:
    clip = clip_of(2)
    assert torch.equal(inverse(clip).roughness, inverse(clip, buffers=("roughness",)).roughness)
    assert inverse(clip, buffers=("diffuse_albedo",)).present == ("diffuse_albedo",)


def test_packed_buffers(folder: Path) -> None:
    """Three images for five buffers; diffuse albedo follows from base colour and metallic."""
    model = load_inverse(folder / "packed", device="cpu")
    clip = clip_of(2)
    everything = model(clip, buffers=BUFFERS)
    assert everything.present == BUFFERS
    torch.testing.assert_close(everything.diffuse_albedo, everything.basecolor * (1 - everything.metallic))
    assert torch.equal(model(clip, buffers=("diffuse_albedo",)).diffuse_albedo, everything.diffuse_albedo)
    assert model(clip, buffers=("metallic", "normal")).present == ("metallic", "normal")
    assert len(load_forward(folder / "packed", device="cpu")(everything, LIGHT)) == 2


def test_all_groups_in_one_pass(folder: Path, tmp_path: Path) -> None:
    """A joint model runs its network once per window and step, whatever was asked for, and every buffer is its own."""
    model = load_inverse(save_model(tmp_path / "joint", "inverse", groups=GROUPS, joint=True), device="cpu")
    clip, calls = clip_of(2), []
    everything = model(clip, buffers=BUFFERS, steps=3, progress=lambda done, total, what: calls.append((done, total, what)))
    assert [call for call in calls if call[2] == "buffers"] == [(1, 3, "buffers"), (2, 3, "buffers"), (3, 3, "buffers")]
    assert not torch.equal(everything.basecolor, everything.normal)
    assert torch.equal(model(clip, buffers=("metallic",), steps=3).metallic, everything.metallic)


def test_a_joint_network_needs_joint_settings(tmp_path: Path) -> None:
    save_model(tmp_path, "inverse", groups=GROUPS, joint=True)
    (tmp_path / "renderer.json").write_text(json.dumps({"groups": GROUPS}))
    with pytest.raises(InputError, match="one for 3"):
        load_inverse(tmp_path, device="cpu")


def test_guidance(forward: DiffusionForwardRenderer) -> None:
    """One step: results are linear in the guidance, off at 1 and below, and start from the branch without conditions."""
    gbuffer = gbuffer_of(2, 16, 16)
    condition = torch.cat([forward.encode(random(2, 3, 16, 16, seed=s)) for s in range(5)], dim=1)
    light = random(1, 24, 4, 4)
    noise = torch.randn(2, 8, 4, 4, generator=torch.Generator().manual_seed(0))
    one, half, two = (forward.denoise(condition, light, noise, 1, guidance=g) for g in (1.0, 0.5, 2.0))
    free = forward.denoise(torch.zeros_like(condition), light, noise, 1)
    assert torch.equal(one, half)
    torch.testing.assert_close(
        forward.denoise(condition, light, noise, 1, guidance=3.0) - one, 2 * (two - one), rtol=1e-3, atol=1e-4
    )
    # Zeroed conditions alone are not the unconditional branch: the light is taken away as well.
    assert (2 * one - two - free).abs().max() > 1e-4
    # The model's own default is the published 1.2, not 1.
    assert torch.equal(forward(gbuffer, LIGHT).frames, forward(gbuffer, LIGHT, guidance=1.2).frames)
    assert not torch.equal(forward(gbuffer, LIGHT).frames, forward(gbuffer, LIGHT, guidance=1.0).frames)


def test_light_and_its_rotation_matter(forward: DiffusionForwardRenderer) -> None:
    gbuffer = gbuffer_of(3, 16, 16)
    still = forward(gbuffer, LIGHT).frames
    assert torch.equal(still, forward(gbuffer, LIGHT, rotations=torch.eye(3).repeat(3, 1, 1)).frames)
    turned = forward(gbuffer, LIGHT, rotations=rotation_y(1.0).repeat(3, 1, 1)).frames
    moving = forward(gbuffer, LIGHT, rotations=torch.stack([rotation_y(a) for a in (0.0, 1.0, 2.0)])).frames
    assert not torch.equal(still, turned) and not torch.equal(still, moving) and not torch.equal(turned, moving)
    darker = EnvironmentMap(LIGHT.radiance * 0.1)
    assert not torch.equal(still, forward(gbuffer, darker).frames)


def test_lora_scale(forward: DiffusionForwardRenderer, folder: Path) -> None:
    gbuffer = gbuffer_of(1, 16, 16)
    plain = forward(gbuffer, LIGHT).frames
    assert torch.equal(plain, forward(gbuffer, LIGHT, lora_scale=0.0).frames)
    assert not torch.equal(plain, forward(gbuffer, LIGHT, lora_scale=1.0).frames)
    assert torch.equal(plain, forward(gbuffer, LIGHT).frames)
    with pytest.raises(InputError, match="LoRA"):
        load_forward(folder / "packed", device="cpu")(gbuffer, LIGHT, lora_scale=0.5)


def test_an_adapter_for_relative_depth(tmp_path: Path) -> None:
    """Estimated buffers, whose depth lies in [0, 1], get it without being asked; others do not; who asks is obeyed."""
    forward = load_forward(save_model(tmp_path, "forward", lora=True, relative_lora_scale=0.5), device="cpu")
    estimated = gbuffer_of(1, 16, 16)
    estimated = replace(estimated, depth=torch.rand(1, 1, 16, 16, generator=torch.Generator().manual_seed(1)))
    metric = replace(estimated, depth=2 + 3 * estimated.depth)
    assert torch.equal(forward(estimated, LIGHT).frames, forward(estimated, LIGHT, lora_scale=0.5).frames)
    assert torch.equal(forward(metric, LIGHT).frames, forward(metric, LIGHT, lora_scale=0.0).frames)
    assert not torch.equal(forward(estimated, LIGHT).frames, forward(estimated, LIGHT, lora_scale=0.0).frames)
    # A table top a metre away, in metres: what lies behind it is infinitely far, so these are scene units.
    behind = torch.zeros(1, 1, 16, 16, dtype=torch.bool)
    behind[..., :4, :] = True
    close = replace(estimated, depth=torch.where(behind, torch.inf, 0.4 + 0.5 * estimated.depth))
    assert torch.equal(forward(close, LIGHT).frames, forward(close, LIGHT, lora_scale=0.0).frames)
    with pytest.raises(InputError, match="relative_lora_scale -1, below 0"):
        load_forward(save_model(tmp_path / "bad", "forward", lora=True, relative_lora_scale=-1), device="cpu")


def test_threads_share_one_object(inverse: DiffusionInverseRenderer, forward: DiffusionForwardRenderer) -> None:
    clips, gbuffer = [clip_of(3, 16, 16), clip_of(6, 24, 16)], gbuffer_of(3, 16, 16)
    calls = [lambda i=i: inverse(clips[i % 2], buffers=("normal", "depth"), seed=i, steps=1 + i % 3).normal for i in range(4)]
    calls += [
        lambda i=i: forward(gbuffer, LIGHT, lora_scale=0.3 * i, guidance=1 + i % 2, seed=i, steps=1 + i % 3).frames
        for i in range(6)
    ]
    alone = [call() for call in calls]
    with ThreadPoolExecutor(5) as pool:
        together = [future.result() for future in [pool.submit(call) for call in calls]]
    for one, other in zip(alone, together, strict=True):
        assert torch.equal(one, other)


def test_progress_counts_every_stage_to_its_end(inverse: DiffusionInverseRenderer, forward: DiffusionForwardRenderer) -> None:
    seen: list[tuple[int, int, str]] = []
    inverse(clip_of(6, 16, 16), buffers=("normal", "depth"), steps=3, progress=lambda *event: seen.append(event))
    assert [event for event in seen if event[2] == "buffers"] == [(i, 6, "buffers") for i in range(1, 7)]
    stages = {what: (done, total) for done, total, what in seen}
    assert stages.keys() == {"encoding", "buffers"} and all(done == total for done, total in stages.values())
    seen.clear()
    forward(gbuffer_of(2, 16, 16), LIGHT, steps=2, progress=lambda *event: seen.append(event))
    assert seen[-1] == (2, 2, "rendering") and seen[0][2] == "encoding"


def test_working_size(folder: Path, tmp_path: Path) -> None:
    model = load_inverse(save_model(tmp_path / "area", "inverse", working_area=32 * 32), device="cpu")
    assert model.multiple == 16
    assert model.fit((200, 100)).padded == (48, 32)
    assert model.fit((200, 100), (64, 64)).padded == (64, 32)
    assert model(clip_of(1, 50, 30), size=(16, 16)).size == (50, 30)


def test_bad_calls(inverse: DiffusionInverseRenderer, forward: DiffusionForwardRenderer) -> None:
    clip, gbuffer = clip_of(2, 16, 16), gbuffer_of(2, 16, 16)
    for call, words in (
        (lambda: inverse(clip, buffers=("normals",)), "did you mean normal"),
        (lambda: inverse(clip, steps=0), "at least 1 step"),
        (lambda: inverse(clip[:0]), "at least one frame"),
        (lambda: inverse(clip, size=(0, 10)), "0x10"),
        (lambda: forward(GBuffer(basecolor=gbuffer.basecolor), LIGHT), "missing: normal"),
        (lambda: forward(gbuffer, LIGHT, rotations=torch.eye(3)[None]), "2 rotations"),
        (lambda: forward(gbuffer, LIGHT, steps=-1), "at least 1 step"),
        (lambda: forward(gbuffer[:0], LIGHT), "at least one frame"),
    ):
        with pytest.raises(InputError, match=words) as caught:
            call()
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"kind": "forward"}, "kind inverse"),
        ({"groups": [["colour"]]}, "renderer.json"),
        ({"groups": 5}, "renderer.json"),
        ({"default_steps": 0}, "default_steps 0"),
        ({"window": "long"}, "window 'long'"),
        ({"light": "lamp"}, "neither encoder nor concat"),
        ({"light": []}, "renderer.json"),
    ],
)
def test_bad_settings_files(settings: dict, words: str) -> None:
    with pytest.raises(InputError, match=words):
        read_settings("inverse", settings, "renderer.json")


def test_settings_that_do_not_fit_the_network(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(InputError, match="3 condition images"):
        load_forward(save_model(tmp_path, "forward", groups=GROUPS), device="cpu")
    values = {"default_steps": 7, "someone_elses": 1}
    (tmp_path / "renderer.json").write_text(json.dumps(values))
    assert load_forward(tmp_path, device="cpu").settings.default_steps == 7


def test_names(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert locate_model(folder, "inverse") == folder / "inverse"
    assert locate_model(folder / "forward", "forward") == folder / "forward"
    for name, words in (
        ("tinny", "did you mean tiny"),
        ("svd_objaverse", "did you mean svd-objaverse"),
        ("/nowhere/at/all", "a folder"),
    ):
        with pytest.raises(InputError, match=words):
            locate_model(name, "inverse")
    monkeypatch.setattr(names, "WEIGHTS", tmp_path)
    assert local_folder("tiny") is None
    with pytest.raises(InputError, match="no weights"):
        locate_model("tiny", "forward")
    (tmp_path / "tiny" / "forward" / "unet").mkdir(parents=True)
    assert locate_model("tiny", "forward") == local_folder("tiny", "forward") == tmp_path / "tiny" / "forward"
    assert local_folder("tiny") == tmp_path / "tiny"


def test_published_names_stand_for_repositories(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked = []
    monkeypatch.setattr(names, "download_checkpoint", lambda repository: asked.append(repository) or tmp_path)
    monkeypatch.setattr(names, "local_folder", lambda name, kind: None)
    locate_model("svd", "inverse")
    locate_model("svd", "forward")
    locate_model("svd-objaverse", "forward")
    locate_model("someone/their-model", "forward")
    assert asked == [
        "nexuslrf/diffusion_renderer-inverse-svd",
        "nexuslrf/diffusion_renderer-forward-svd",
        "nexuslrf/diffusion_renderer-forward-svd-objaverse",
        "someone/their-model",
    ]


def test_a_repository_out_of_reach(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Offline, as huggingface_hub reports it: one line, no traceback of a network library."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(InputError, match="check the name and the network") as caught:
        load_inverse("nobody/has-this-repository")
    assert "\n" not in str(caught.value)


def test_bad_devices(folder: Path) -> None:
    with pytest.raises(InputError, match="device"):
        load_inverse(folder / "inverse", device="abacus")
    if not torch.cuda.is_available():
        with pytest.raises(InputError, match="CUDA"):
            load_inverse(folder / "inverse", device="cuda")


def test_double_precision_is_kept_throughout(folder: Path) -> None:
    model = load_inverse(folder / "inverse", device="cpu", dtype=torch.float64)
    noise = torch.zeros(1, 8, 4, 4)
    assert model.denoise(model.encode(torch.zeros(1, 3, 16, 16)), ("normal",), noise, 1).dtype == torch.float64
