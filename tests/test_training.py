"""The stages of training, on presets of a few hundred thousand parameters and frames made by formula."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import diffusers
import pytest
import torch
from safetensors.torch import load_file
from synthetic import synthetic_clip

from diffusion_renderer.core.errors import InputError
from diffusion_renderer.core.packing import JOINT_INDEX, UNPACKED, embedding_index
from diffusion_renderer.core.types import BUFFERS
from diffusion_renderer.models import AutoencoderKLTemporalDecoder
from diffusion_renderer.training import TrainOptions, assemble, export, loop
from diffusion_renderer.training.data import BUFFERS5, FrameStore, Mixture, store_clips
from diffusion_renderer.training.env import EnvStage
from diffusion_renderer.training.forward import ForwardStage
from diffusion_renderer.training.images import BACKGROUND, grouped, network_images, read_frames
from diffusion_renderer.training.inverse import InverseStage
from diffusion_renderer.training.latent import light_range
from diffusion_renderer.training.presets import PRESETS, TINY, Preset
from diffusion_renderer.training.steps import Item, Part, derived_seed
from diffusion_renderer.training.vae import VaeStage, load_vae
from diffusion_renderer.training.variation import Variation

#: Packed buffers in one pass over a linear encoder, as `tiny`, in small.
SMALL = replace(
    TINY,
    name="small",
    latent_channels=4,
    vae_widths=(32, 32),
    inverse_widths=(32, 32),
    forward_widths=(32, 32),
    env_widths=(32, 32),
    inverse_attention=(1,),
    env_size=16,
    size=16,
    inverse_size=None,
    window=4,
    context_channels=8,
    prior=None,
    residual=False,
)
#: One buffer per pass over a convolutional encoder, as `svd`, in small.
SINGLE = replace(
    SMALL, name="single", groups=UNPACKED, joint=False, patch_encoder=False, one_step=False, start_weight=0.0, norm_groups=32
)


def options(out: Path, steps: int, **others: object) -> TrainOptions:
    return TrainOptions(
        **{"out": out, "max_steps": steps, "batch": 4, "sheet_steps": 0, "precision": "fp32", "device": "cpu", **others}
    )


def trained_vae(out: Path, data: Mixture, preset: Preset = SMALL) -> AutoencoderKLTemporalDecoder:
    loop.run(VaeStage(preset, data, options(out, 1)), options(out, 1))
    return load_vae(out)


@pytest.fixture(scope="module")
def store() -> FrameStore:
    return store_clips([synthetic_clip(index, frames=4, size=16) for index in range(3)])


@pytest.fixture(scope="module")
def data(store: FrameStore) -> Mixture:
    return Mixture.of(store)


@pytest.fixture(scope="module")
def joint(data: Mixture, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of `SMALL` with its first two stages."""
    run = tmp_path_factory.mktemp("joint")
    trained_vae(run, data)
    loop.run(EnvStage(SMALL, data, options(run, 1)), options(run, 1))
    return run


@pytest.fixture(scope="module")
def single(data: Mixture, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of `SINGLE` with its first two stages."""
    run = tmp_path_factory.mktemp("single")
    trained_vae(run, data, SINGLE)
    loop.run(EnvStage(SINGLE, data, options(run, 1)), options(run, 1))
    return run


def stills(store: FrameStore, count: int, seed: int = 0) -> Part:
    """The first frames, as stills."""
    return Part(tuple(Item((frame,), derived_seed(seed, frame)) for frame in range(count)), store)


@pytest.mark.parametrize("run", ["joint", "single"])
def test_every_stage_trains_and_the_pipelines_load_the_result(
    run: str, data: Mixture, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    from diffusion_renderer.pipelines import load_forward, load_inverse

    folder, preset = request.getfixturevalue(run), {"joint": SMALL, "single": SINGLE}[run]
    vae = load_vae(folder)
    for stage in (InverseStage, ForwardStage):
        loop.run(stage(preset, vae, data, options(folder, 1)), options(folder, 1))
        assert (folder / stage.name / "sheet-final.png").exists()
    assert 0 < assemble(folder, tmp_path / "model") < 20e6
    export.unpack(tmp_path / "model", tmp_path / "next")
    started = InverseStage(preset, vae, data, options(tmp_path / "next", 2)).network.state_dict()
    trained = load_file(folder / "inverse/unet/diffusion_pytorch_model.safetensors")
    assert all(torch.equal(started[name], value.half().float()) for name, value in trained.items())
    with pytest.raises(InputError, match=f"preset {preset.name}"):
        InverseStage(replace(preset, inverse_widths=(64, 64)), vae, data, options(tmp_path / "next", 2))
    inverse, forward = load_inverse(tmp_path / "model/inverse"), load_forward(tmp_path / "model/forward")
    assert inverse.settings.joint == preset.joint and inverse.settings.initial_noise == (not preset.one_step)
    clip = synthetic_clip(0, frames=2, size=16)
    gbuffer = inverse(clip.clip, steps=1)
    relit = forward(gbuffer, clip.environment, steps=1)
    assert gbuffer.basecolor.shape == relit.frames.shape == (2, 3, 16, 16)
    assert torch.isfinite(relit.frames).all()


def test_exported_networks_load_in_diffusers_own_classes(data: Mixture, single: Path) -> None:
    """The VAE as it is; the inverse UNet, which has a domain embedding more, with that added to the context by hand."""
    ours = load_vae(single)
    theirs = diffusers.AutoencoderKLTemporalDecoder.from_pretrained(single / "vae/vae", use_safetensors=True)
    image = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    latents = ours.encode(image).latent_dist.mode()
    assert torch.equal(latents, theirs.encode(image).latent_dist.mode())
    decoded = [vae.decode(latents, num_frames=2).sample for vae in (ours, theirs)]
    # Ours computes in another order on a CPU (models.temporal_decoder); worst measured, for values of order 1: 1e-6.
    torch.testing.assert_close(*decoded, rtol=0, atol=2e-5)
    # The scale that the stage measured gives latents of the data unit variance: 64 frames of all kinds.
    seen, known = network_images(data.stores[0], torch.arange(12)[:, None], SINGLE.groups)
    spread = ours.encode(2 * seen[known] - 1).latent_dist.mode().std() * ours.config.scaling_factor
    assert spread.item() == pytest.approx(1.0, abs=1e-3)

    stage = InverseStage(SINGLE, ours, data, options(single, 1))
    stage.export(single / "exported")
    unet, info = diffusers.UNetSpatioTemporalConditionModel.from_pretrained(
        single / "exported/unet", use_safetensors=True, output_loading_info=True
    )
    assert not info["missing_keys"] and list(info["unexpected_keys"]) == ["context_embedding.weight"]
    x, level = torch.randn(1, 4, 8, 8, 8, generator=torch.Generator().manual_seed(1)), torch.tensor([0.3])
    context, ids = torch.zeros(1, 1, SINGLE.context_channels), stage.time_ids(1)
    row = embedding_index(("normal",))
    with torch.no_grad():
        made = stage.network.eval()(x, level, context, ids, torch.tensor([row]))
        again = unet.eval()(x, level, context + stage.network.context_embedding.weight[row], ids).sample
    # Attention over one token is computed in a shorter way here; measured: 1.1e-6 at most.
    assert torch.allclose(made, again, atol=1e-5)


def test_a_linear_encoder_is_in_closed_form(data: Mixture, joint: Path) -> None:
    """Its latents are whitened over the data, and training leaves it alone."""
    stage = VaeStage(SMALL, data, options(joint, 1))
    assert {name.split(".")[0] for name, p in stage.network.named_parameters() if p.requires_grad} == {"decoder"}
    images, _ = network_images(data.stores[0], torch.arange(12)[:, None], SMALL.groups)
    latents = stage.vae.encode(2 * images.flatten(0, 2) - 1).latent_dist.mode()
    moments = torch.einsum("nchw, ndhw -> cd", latents, latents) / latents[:, 0].numel()
    # The basis is made from these very images: only float32 is between the moments and the identity. Measured: 8e-6.
    assert torch.allclose(moments, torch.eye(4), atol=1e-3)
    kept = load_vae(joint).encoder.state_dict()
    assert all(torch.equal(value, kept[name]) for name, value in stage.vae.encoder.state_dict().items())


def test_the_ablation_without_an_environment_encoder(data: Mixture, joint: Path, tmp_path: Path) -> None:
    """Trained without stage `env`, exported, assembled, loaded and run; another light makes another picture."""
    from diffusion_renderer.cli.weights import describe
    from diffusion_renderer.pipelines import load_forward

    run, model, vae = tmp_path / "run", tmp_path / "model", load_vae(joint)
    vae.save_pretrained(run / "vae/vae")
    loop.run(ForwardStage(SMALL, vae, data, options(run, 1, light="concat")), options(run, 1, light="concat"))
    assemble(run, model)
    assert sorted(path.name for path in model.iterdir()) == ["forward", "training.json", "vae"]
    assert any("forward renderer" in line for line in describe(model / "forward"))
    forward = load_forward(model / "forward")
    assert forward.settings.light == "concat" and forward.env_encoder is None
    clip = synthetic_clip(0, frames=2, size=16)
    relit = forward(clip.gbuffer, clip.environment)
    darker = forward(clip.gbuffer, replace(clip.environment, radiance=0.1 * clip.environment.radiance))
    assert relit.frames.shape == (2, 3, 16, 16) and torch.isfinite(relit.frames).all()
    # One step hardly changes the seeded weights.
    assert (relit.frames - darker.frames).abs().max() > 0.02

    export.unpack(model, tmp_path / "same", "concat")
    export.unpack(model, tmp_path / "other")
    assert (tmp_path / "same/forward/unet").is_dir() and (tmp_path / "other/vae/vae").is_dir()
    assert not (tmp_path / "other/forward").exists()
    ForwardStage(SMALL, vae, data, options(tmp_path / "same", 1, light="concat"))
    with pytest.raises(InputError, match="the --light that they were trained with"):
        ForwardStage(SMALL, vae, data, options(tmp_path / "same", 1))


def test_the_network_learns_from_a_concatenated_light(data: Mixture, joint: Path, tmp_path: Path) -> None:
    """Every channel of the light gets a gradient, and the published sizes give the published-style 36 channels."""
    stage = ForwardStage(SMALL, load_vae(joint), data, options(tmp_path, 1, light="concat"))
    stage.losses(stage.network, stills(data.stores[0], 2))[0].mean().backward()
    gradient = stage.network.conv_in.weight.grad
    assert gradient.shape[1] == 4 * (1 + 3 + 3)
    assert (gradient[:, -12:].abs().amax(dim=(0, 2, 3)) > 0).all()
    assert replace(SMALL, groups=UNPACKED).forward_unet("concat").config.in_channels == 36
    assert replace(SMALL, groups=UNPACKED).forward_unet().config.in_channels == 24


@pytest.mark.parametrize("run", ["joint", "single"])
def test_a_loss_does_not_depend_on_how_a_part_is_split(
    run: str, data: Mixture, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every item has its own noise, level, variation and buffer, whoever computes it beside it.

    Without dropped conditions: at the start from zero a network that is given nothing sees constant images, whose rounding
    errors 32 norms of one channel each then divide by a deviation of zero (0.1 % of the loss).
    """
    monkeypatch.setattr("diffusion_renderer.training.forward.DROP_SHARE", 0.0)
    folder, preset = request.getfixturevalue(run), {"joint": SMALL, "single": SINGLE}[run]
    vae = load_vae(folder)
    for make in (VaeStage, EnvStage, InverseStage, ForwardStage):
        given = (data,) if make in (VaeStage, EnvStage) else (vae, data)
        stage = make(preset, *given, options(folder, 1))
        for part in {len(p.items[0].frames): p for step in range(6) for p in stage.plan(step)}.values():
            with torch.no_grad():
                whole, _ = stage.losses(stage.network, part)
                again, _ = stage.losses(stage.network, part)
                pieces = [stage.losses(stage.network, replace(part, items=(item,)))[0] for item in part.items]
            assert torch.equal(whole, again)
            # Convolutions add up in another order for another batch. Measured: 3e-7 relative at most.
            assert torch.allclose(whole, torch.cat(pieces), rtol=1e-4)


def test_a_step_is_planned_from_seed_and_step_alone(data: Mixture, joint: Path) -> None:
    vae = load_vae(joint)
    one, other = (InverseStage(SMALL, vae, data, options(joint, 1)) for _ in range(2))
    assert [part.items for part in one.plan(7)] == [part.items for part in other.plan(7)]
    assert one.plan(7)[0].items != one.plan(8)[0].items
    assert {len(one.plan(step)[0].items[0].frames) for step in range(40)} == {1, 4}


def lacking(store: FrameStore, name: str, frames: slice) -> FrameStore:
    """The store as if some frames had no ground truth of a buffer."""
    present = store.present.clone()
    present[frames, BUFFERS5.index(name)] = False
    return replace(store, present=present)


def test_a_buffer_that_is_lacking_is_never_drawn(store: FrameStore, single: Path) -> None:
    bare = lacking(lacking(store, "depth", slice(0, 4)), "normal", slice(4, 8))
    stage = InverseStage(SINGLE, load_vae(single), Mixture.of(bare), options(single, 1))
    drawn = {clip: torch.zeros(5) for clip in range(3)}
    for clip in drawn:
        part = Part(tuple(Item((4 * clip,), seed) for seed in range(1000)), bare)
        drawn[clip] = torch.bincount(stage.chosen(part)[:, 0], minlength=5) / 1000
    names = [group[0] for group in SINGLE.groups]
    assert drawn[0][names.index("depth")] == 0 and drawn[1][names.index("normal")] == 0
    for clip, expected in ((0, 1 / 4), (1, 1 / 4), (2, 1 / 5)):
        shares = drawn[clip][drawn[clip] > 0]
        # Three standard errors of a share of 1000 draws: 0.041; four, for there are 13 shares.
        assert len(shares) == round(1 / expected) and (shares - expected).abs().max() < 0.055


def test_frames_without_any_group_are_left_out(store: FrameStore, single: Path, joint: Path) -> None:
    bare = store
    for name in BUFFERS5:
        bare = lacking(bare, name, slice(0, 4))
    for preset, folder in ((SINGLE, single), (SMALL, joint)):
        stage = InverseStage(preset, load_vae(folder), Mixture.of(bare), options(folder, 1))
        found = {frame for step in range(30) for item in stage.plan(step)[0].items for frame in item.frames}
        assert min(found) >= 4 and len(found) == 8
    real = replace(store, real=torch.tensor([True, False, True]))
    stage = InverseStage(SMALL, load_vae(joint), Mixture.of(real), options(joint, 1))
    found = {frame for step in range(30) for item in stage.plan(step)[0].items for frame in item.frames}
    assert found == {4, 5, 6, 7}


def changed(store: FrameStore, hole: torch.Tensor) -> FrameStore:
    """The store with other numbers in the buffers where ``hole`` is set, video excluded."""
    images = store.images[0].clone()
    noise = torch.randint(256, images.shape, generator=torch.Generator().manual_seed(5), dtype=torch.uint8)
    images[:, 1:] = torch.where(hole, noise, images)[:, 1:]
    return replace(store, images=(images,))


@pytest.mark.parametrize(("run", "augment"), [("joint", True), ("joint", False), ("single", True)])
def test_undefined_pixels_do_not_count(run: str, augment: bool, store: FrameStore, request: pytest.FixtureRequest) -> None:
    """What is stored there changes neither loss nor gradient of either renderer."""
    folder, preset = request.getfixturevalue(run), {"joint": SMALL, "single": SINGLE}[run]
    defined = torch.ones(len(store), 16, 16, dtype=torch.uint8)
    defined[:, 5:10, 2:9] = 0
    holed = replace(store, defined=(defined,))
    other = changed(holed, (defined == 0)[:, None, None])
    vae, part = load_vae(folder), stills(store, 3)
    for make in (InverseStage, ForwardStage):
        found = []
        for kept in (holed, other, store):
            stage = make(preset, vae, Mixture.of(kept), options(folder, 1, augment=augment))
            losses, _ = stage.losses(stage.network, replace(part, store=kept))
            losses.mean().backward()
            found.append((losses, [p.grad for p in stage.network.parameters() if p.grad is not None]))
        (a, one), (b, two), (c, _) = found
        assert torch.equal(a, b) and all(torch.equal(x, y) for x, y in zip(one, two, strict=True))
        assert not torch.equal(a, c), "the same pixels count where they are defined"


def test_an_absent_buffer_does_not_count(store: FrameStore, joint: Path) -> None:
    """A pack without one of its buffers counts for nothing, the other images as before."""
    bare = lacking(store, "roughness", slice(0, 12))
    other = replace(bare, images=(store.images[0].clone(),))
    other.images[0][:, 3] = 77
    vae, part = load_vae(joint), stills(store, 3)
    kept, same = (
        InverseStage(SMALL, vae, Mixture.of(some), options(joint, 1, augment=False)).conditions(replace(part, store=some))
        for some in (bare, other)
    )
    assert kept.counted[:, :, 2].sum() == 0 and kept.counted[:, :, :2].min() == 1
    assert torch.equal(kept.clean[:, :, :8], same.clean[:, :, :8])


def test_images_of_single_buffers_are_taken_out_of_the_packs(store: FrameStore) -> None:
    clip = synthetic_clip(1, frames=4, size=16).gbuffer
    seen = read_frames(store, torch.arange(4, 8)[None], UNPACKED, Variation.none(1), torch.device("cpu"))
    rough = seen.buffers[0, :, UNPACKED.index(("roughness",))]
    assert (rough - clip.roughness).abs().max() < 0.5 / 255 + 1e-6 and seen.prior is None and seen.defined.min() == 1
    packed = network_images(store, torch.arange(4)[None], SMALL.groups)[0][:, :, 1:]
    assert torch.equal(packed, grouped(store.take(torch.arange(4)[None]).float() / 255, SMALL.groups))


def test_absent_and_undefined_pixels_show_background(store: FrameStore) -> None:
    defined = torch.ones(len(store), 16, 16, dtype=torch.uint8)
    defined[:, :4] = 0
    holed = lacking(replace(store, defined=(defined,)), "metallic", slice(0, 12))
    seen = read_frames(holed, torch.tensor([[0]]), UNPACKED, Variation.none(1), torch.device("cpu"))
    for index, (name,) in enumerate(UNPACKED):
        hidden = seen.buffers[0, 0, index] if name == "metallic" else seen.buffers[0, 0, index, :, :4]
        # Read through the identity window: rounding only.
        assert torch.allclose(hidden, torch.tensor(BACKGROUND[name] / 255), atol=1e-4)
        assert seen.defined[0, 0, index, 4:].unique().tolist() == [float(name != "metallic")]
    assert seen.defined[0, 0, :, :4].max() == 0


class Watcher(torch.nn.Module):
    """Remembers what it is asked."""

    def forward(self, x: torch.Tensor, level: torch.Tensor, features: list[torch.Tensor], ids: torch.Tensor) -> torch.Tensor:
        self.seen = (x, features)
        return x[:, :, :4]


def test_conditions_are_dropped_now_and_then(data: Mixture, joint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Buffers and light together, by the item's seed, and never outside training."""
    monkeypatch.setattr("diffusion_renderer.training.forward.DROP_SHARE", 0.5)
    stage, watcher = ForwardStage(SMALL, load_vae(joint), data, options(joint, 1, augment=False)), Watcher()
    part = stills(data.stores[0], 12)
    expected = torch.tensor([torch.rand((), generator=item.generator("drop")).item() < 0.5 for item in part.items])
    assert 0 < expected.sum() < 12
    for training in (True, False):
        asked = stage.conditions(part, training=training)
        asked.predict(watcher, torch.zeros_like(asked.clean), torch.zeros(12))
        x, features = watcher.seen
        for given in (x[:, :, 4:], *features):
            assert torch.equal((given == 0).flatten(1).all(dim=1), expected & training)
    asked.unconditional(watcher, torch.zeros_like(asked.clean), torch.zeros(12))
    assert not any(given.any() for given in (watcher.seen[0], *watcher.seen[1]))


def test_the_light_range_is_that_of_the_data(store: FrameStore) -> None:
    flat = replace(store, light=torch.ones_like(store.light) * torch.tensor([0.5, 1.0, 100.0])[:, None, None, None])
    dark = replace(flat, has_light=torch.tensor([True, True, False]))
    low, high = light_range(Mixture.of(dark))
    assert low == pytest.approx(0.525, rel=1e-3) and high == pytest.approx(0.975, rel=1e-3)
    assert light_range(Mixture.of(replace(store, has_light=torch.zeros(3, dtype=torch.bool)))) is None


@pytest.mark.parametrize(
    ("words", "message"),
    [("inverse --light concat", "found stage inverse"), ("forward --light lamp", "one of encoder, concat")],
)
def test_bad_lights_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture, words: str, message: str) -> None:
    from diffusion_renderer.cli.app import main

    assert main(["train", *words.split(), "--data", str(tmp_path), "-o", str(tmp_path / "run")]) == 2
    assert message in capsys.readouterr().err


def test_mistakes(store: FrameStore, data: Mixture, joint: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="train vae"):
        EnvStage(SMALL, data, options(tmp_path, 1))
    with pytest.raises(InputError, match="keeps that of Stable Video Diffusion"):
        VaeStage(PRESETS["svd"], data, options(tmp_path, 1))
    vae = load_vae(joint)
    with pytest.raises(InputError, match="train env"):
        ForwardStage(SMALL, vae, data, options(tmp_path, 1))
    dark = Mixture.of(replace(store, has_light=torch.zeros(3, dtype=torch.bool)))
    with pytest.raises(InputError, match="clips with a light"):
        ForwardStage(SMALL, vae, dark, options(joint, 1))
    with pytest.raises(InputError, match="pictures of splitsum"):
        ForwardStage(replace(SMALL, prior="splitsum"), vae, data, options(joint, 1))


def test_domains_are_those_of_the_pipelines(data: Mixture, joint: Path, single: Path) -> None:
    part = stills(data.stores[0], 12)
    stage = InverseStage(SINGLE, load_vae(single), data, options(single, 1))
    rows = stage._domains(stage.chosen(part)).tolist()
    assert rows == [BUFFERS.index(SINGLE.groups[i][0]) for i in stage.chosen(part)[:, 0].tolist()] and len(set(rows)) > 2
    stage = InverseStage(SMALL, load_vae(joint), data, options(joint, 1))
    assert set(stage._domains(stage.chosen(part)).tolist()) == {JOINT_INDEX}
