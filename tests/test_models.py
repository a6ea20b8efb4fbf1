"""Networks: equal to diffusers' where they overlap, and right where they go beyond."""

from __future__ import annotations

import copy

import pytest
import torch
from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from diffusers.models.unets.unet_spatio_temporal_condition import UNetSpatioTemporalConditionModel
from models_random import LATENTS, WIDTHS, random_env_encoder, random_unet, random_vae

from diffusion_renderer.models import EnvEncoder, LatentCodec, UNetCustomSpatioTemporalConditionModel
from diffusion_renderer.models.attention import ContextAttnProcessor
from diffusion_renderer.models.autoencoder import PatchEncoder

TIME_IDS = torch.tensor([[6.0, 127.0, 0.0]])


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def light_features(frames: int, side: int = 8) -> list[torch.Tensor]:
    return random_env_encoder()(noise(1, frames, 3 * LATENTS, side, side))


@pytest.mark.parametrize("context_tokens", [1, 5])
@pytest.mark.parametrize("contexts", [2, 6])
def test_attention_equals_diffusers(context_tokens: int, contexts: int) -> None:
    torch.manual_seed(0)
    attention = Attention(query_dim=32, cross_attention_dim=24, heads=2, dim_head=16)
    queries, context = noise(6, 7, 32), noise(contexts, context_tokens, 24, seed=1)
    expected = AttnProcessor2_0()(attention, queries, context.repeat_interleave(6 // contexts, dim=0))
    found = ContextAttnProcessor()(attention, queries, context)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("size", [(8, 12), (5, 9)])
def test_unet_equals_diffusers(size: tuple[int, int]) -> None:
    """Without what the renderers add it is SVD's UNet, at sizes that its levels divide and at others."""
    ours = random_unet("inverse")
    options = {key: value for key, value in ours.config.items() if not key.startswith("_")}
    for added in (
        "temporal_cross_attention_dim",
        "context_embedding_type",
        "context_vocab_size",
        "multi_res_encoder_hidden_states",
        "norm_num_groups",
    ):
        options.pop(added)
    theirs = UNetSpatioTemporalConditionModel(**options).eval()
    state = ours.state_dict()
    state.pop("context_embedding.weight")
    theirs.load_state_dict(state)
    x, context, ids = noise(2, 3, 2 * LATENTS, *size), noise(2, 1, 16, seed=1), TIME_IDS.expand(2, 3)
    with torch.no_grad():
        expected = theirs(x, torch.tensor([0.3, 1.2]), context, ids).sample
        found = ours(x, torch.tensor([0.3, 1.2]), context, ids)
    # Worst measured: 2.1e-6.
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_domain_embedding_is_added_to_the_context() -> None:
    unet = random_unet("inverse")
    x, zeros = noise(2, 1, 2 * LATENTS, 8, 8), torch.zeros(2, 1, 16)
    ids = torch.tensor([3, 5])
    with torch.no_grad():
        by_id = unet(x, 0.5, zeros, TIME_IDS.expand(2, 3), context_ids=ids)
        by_hand = unet(x, 0.5, unet.context_embedding.weight[ids][:, None], TIME_IDS.expand(2, 3))
        plain = unet(x, 0.5, zeros, TIME_IDS.expand(2, 3))
    assert torch.equal(by_id, by_hand)
    assert (by_id - plain).abs().max() > 1e-3


def test_a_light_at_rest_is_one_frame_or_many() -> None:
    unet, x = random_unet("forward"), noise(2, 3, 6 * LATENTS, 8, 8)
    features = [level.repeat(2, 1, 1, 1, 1) for level in light_features(1)]
    with torch.no_grad():
        shared = unet(x, 1.0, features, TIME_IDS.expand(2, 3))
        expanded = unet(x, 1.0, [level.expand(-1, 3, -1, -1, -1) for level in features], TIME_IDS.expand(2, 3))
    torch.testing.assert_close(shared, expanded, rtol=0, atol=1e-6)


def test_each_frame_reads_its_own_light() -> None:
    """Temporal layers are switched off, so a changed light in frame 2 changes nothing but frame 2."""
    unet, x = random_unet("forward"), noise(1, 3, 6 * LATENTS, 8, 8)
    for name, parameter in unet.named_parameters():
        if name.endswith("mix_factor"):
            # Blending is sigmoid(mix_factor) * spatial + the rest * temporal.
            parameter.data.fill_(100.0)
    features = light_features(3)
    changed = [level.clone() for level in features]
    for level in changed:
        level[:, 2] += 1
    with torch.no_grad():
        difference = (unet(x, 1.0, features, TIME_IDS) - unet(x, 1.0, changed, TIME_IDS)).abs().amax(dim=(0, 2, 3, 4))
    assert difference[2] > 1e-3
    assert difference[:2].max() < 1e-6


def test_zero_features_act_like_one_zero_token() -> None:
    """What the unconditional branch of guidance relies on."""
    unet, x, features = random_unet("forward"), noise(1, 2, 6 * LATENTS, 8, 8), light_features(2)
    with torch.no_grad():
        many = unet(x, 1.0, [torch.zeros_like(level) for level in features], TIME_IDS)
        one = unet(x, 1.0, [torch.zeros(1, 1, width, 1, 1) for width in WIDTHS], TIME_IDS)
    torch.testing.assert_close(many, one, rtol=0, atol=1e-6)


def test_environment_features_halve_from_level_to_level() -> None:
    shapes = [tuple(level.shape) for level in random_env_encoder()(noise(2, 3, 3 * LATENTS, 16, 16))]
    assert shapes == [(2, 3, 32, 16, 16), (2, 3, 64, 8, 8), (2, 3, 64, 4, 4)]


def test_wrong_context_is_refused() -> None:
    forward, inverse = random_unet("forward"), random_unet("inverse", context_embedding_type=None)
    with pytest.raises(ValueError, match="3 levels"):
        forward(noise(1, 1, 6 * LATENTS, 8, 8), 1.0, light_features(1)[:2], TIME_IDS)
    with pytest.raises(ValueError, match="context_embedding_type"):
        inverse(noise(1, 1, 2 * LATENTS, 8, 8), 1.0, torch.zeros(1, 1, 16), TIME_IDS, context_ids=torch.tensor([0]))
    with pytest.raises(ValueError, match="latent_encoder"):
        EnvEncoder(latent_encoder=False)


def trained_parameters(
    unet: UNetCustomSpatioTemporalConditionModel, *inputs: object, **options: object
) -> dict[str, torch.Tensor]:
    unet.train().zero_grad(set_to_none=True)
    unet(*inputs, **options).square().mean().backward()
    return {name: p.grad for name, p in unet.named_parameters() if p.grad is not None}


def test_every_parameter_learns() -> None:
    """All but the queries and keys of attention over a single token, which cannot matter."""
    inverse, forward = random_unet("inverse"), random_unet("forward")
    clip = (noise(2, 3, 2 * LATENTS, 8, 8), torch.zeros(2), torch.zeros(2, 1, 16), TIME_IDS.expand(2, 3))
    learning = trained_parameters(inverse, *clip, context_ids=torch.tensor([0, 1]))
    idle = {name for name, _ in inverse.named_parameters()} - set(learning)
    assert all(".attn2.to_q." in name or ".attn2.to_k." in name or ".norm2." in name for name in idle)
    assert not any("res_block" in name for name in idle)
    features = [level.detach() for level in light_features(3)]
    learning = trained_parameters(forward, noise(1, 3, 6 * LATENTS, 8, 8), 0.3, features, TIME_IDS)
    assert set(learning) == {name for name, _ in forward.named_parameters()}


@pytest.mark.parametrize("kind", ["inverse", "forward"])
def test_gradient_checkpointing_changes_no_gradient(kind: str) -> None:
    unet = random_unet(kind)
    width = 2 if kind == "inverse" else 6
    context = torch.zeros(1, 1, 16) if kind == "inverse" else [level.detach() for level in light_features(1)]
    inputs = (noise(1, 3, width * LATENTS, 8, 8), torch.zeros(1), context, TIME_IDS)
    plain = trained_parameters(unet, *inputs)
    unet.enable_gradient_checkpointing()
    checkpointed = trained_parameters(unet, *inputs)
    assert plain.keys() == checkpointed.keys()
    for name, gradient in plain.items():
        torch.testing.assert_close(checkpointed[name], gradient, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("kind", ["inverse", "forward"])
def test_save_and_load(kind: str, tmp_path) -> None:
    unet = random_unet(kind)
    unet.save_pretrained(tmp_path)
    loaded = UNetCustomSpatioTemporalConditionModel.from_pretrained(tmp_path)
    assert {k: v for k, v in loaded.config.items() if k[0] != "_"}.keys() == {k for k in unet.config if k[0] != "_"}
    for (name, a), (other, b) in zip(unet.state_dict().items(), loaded.state_dict().items(), strict=True):
        assert name == other and torch.equal(a, b)


def test_codec_knows_its_factor_and_scale() -> None:
    codec = LatentCodec(random_vae(), chunk=2)
    assert (codec.factor, codec.channels) == (4, LATENTS)
    images = noise(5, 3, 16, 24).sigmoid()
    latents = codec.encode(images)
    assert latents.shape == (5, LATENTS, 4, 6)
    assert torch.equal(latents, codec.encode(images, scaled=False) * 0.5)
    # Chunks do not matter to the encoder (worst measured 5.0e-7); the decoder sees the frames of a chunk together.
    torch.testing.assert_close(latents, LatentCodec(codec.vae, chunk=8).encode(images), rtol=0, atol=1e-5)
    decoded = codec.decode(latents)
    assert decoded.shape == images.shape and decoded.min() >= 0 and decoded.max() <= 1
    assert torch.equal(decoded[:2], codec.decode(latents[:2]))


def test_networks_can_be_copied_by_memory_alone() -> None:
    """Views of a LoRA rely on it: no hidden state beside parameters and buffers."""
    unet = random_unet("inverse")
    twin = copy.deepcopy(unet)
    x = noise(1, 2, 2 * LATENTS, 8, 8)
    with torch.no_grad():
        assert torch.equal(unet(x, 0.1, torch.zeros(1, 1, 16), TIME_IDS), twin(x, 0.1, torch.zeros(1, 1, 16), TIME_IDS))


def test_local_colour_is_the_mean_of_a_patch() -> None:
    """With as many axes as a patch has numbers nothing is lost, so the mean colour must come back; 1e-5 is float32."""
    generator = torch.Generator().manual_seed(0)
    axes, _ = torch.linalg.qr(torch.randn(12, 12, generator=generator))
    encoder = PatchEncoder(3, 12, 2)
    encoder.set_basis((axes * torch.linspace(0.3, 4.0, 12)[:, None]).reshape(12, 3, 2, 2))
    images = torch.rand(2, 3, 8, 6, generator=generator)
    latents = encoder(images)[:, :12]
    means = torch.einsum("bchw,ck->bkhw", latents, encoder.local_colour)
    assert torch.allclose(means, torch.nn.functional.avg_pool2d(images, 2), atol=1e-5)
