"""The small decoder: what it starts as, its training, where it is found, and how it is asked for."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from models_random import LATENTS, random_vae, save_model, save_shared_model
from synthetic import synthetic_clip
from test_training import SMALL, options

from diffusion_renderer import training
from diffusion_renderer.cli import main
from diffusion_renderer.core.errors import InputError
from diffusion_renderer.core.types import Clip, EnvironmentMap
from diffusion_renderer.models import LatentCodec, SmallDecoder
from diffusion_renderer.models.small_decoder import best_linear
from diffusion_renderer.pipelines import load_forward, load_inverse, weights_fingerprint
from diffusion_renderer.training import assemble, export, loop
from diffusion_renderer.training.data import Mixture, store_clips
from diffusion_renderer.training.decoder import DecoderStage
from diffusion_renderer.training.presets import SVD, TINY
from diffusion_renderer.training.vae import VaeStage, load_vae


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def small_decoder(latents: int = LATENTS, factor: int = 4, seed: int = 5) -> SmallDecoder:
    """With random weights everywhere, so that every layer shows."""
    torch.manual_seed(seed)
    decoder = SmallDecoder(latents, factor, scales=(1, 2), widths=(16, 8), layers=(1, 1)).eval()
    torch.nn.init.normal_(decoder.conv_out.weight, std=0.1)
    return decoder


def test_a_new_one_is_the_best_linear_map() -> None:
    """Images that are a linear map of their latents come back; worst case measured: 1.2e-3, by the ridge."""
    weight, bias, latents = random(6, 3, 4, 4), random(3, seed=1), random(9, 6, 5, 7, seed=2)
    images = torch.nn.functional.conv_transpose2d(latents, weight, bias, stride=4)
    decoder = SmallDecoder(6, 4, scales=(1, 2), widths=(16, 8), layers=(1, 1))
    decoder.set_linear(*best_linear([(latents[:4], images[:4]), (latents[4:], images[4:])]))
    assert (decoder(latents) - images).abs().max() < 5e-3


def test_every_layer_counts() -> None:
    decoder = small_decoder()
    decoder(random(2, LATENTS, 4, 4)).square().sum().backward()
    assert all(value.grad is not None and value.grad.abs().max() > 0 for value in decoder.parameters())


def test_chunks_of_any_size_give_the_same() -> None:
    """Frame by frame, unlike the VAE's own; worst case measured: 1.2e-7, and 0.46 for the VAE's own."""
    codec = LatentCodec(random_vae(), chunk=8, small=small_decoder())
    latents = 0.3 * random(5, LATENTS, 4, 6)
    whole, pieces = codec.decode(latents), replace(codec, chunk=2).decode(latents)
    assert whole.shape == (5, 3, 16, 24) and 0 <= whole.min() and whole.max() <= 1
    assert (whole - pieces).abs().max() < 1e-5
    full = replace(codec, small=None)
    assert (full.decode(latents) - replace(full, chunk=2).decode(latents)).abs().max() > 1e-3


@pytest.mark.parametrize("preset", [TINY, SVD])
def test_it_takes_less_than_a_tenth_of_the_work(preset: training.presets.Preset) -> None:
    from diffusion_renderer.training.cost import measure

    latents = torch.zeros(1, preset.latent_channels, 16, 16)
    full = measure(preset.vae, lambda vae: vae.decode(latents, num_frames=1).sample, backward=False)
    small = measure(preset.small_decoder, lambda decoder: decoder(latents), backward=False)
    # Measured: 12.5 times less for tiny, 125 times for svd.
    assert 10 * small.forward < full.forward


def test_sizes_that_do_not_fit_are_refused() -> None:
    for sizes in ({"scales": (1, 3)}, {"scales": (1, 16)}, {"widths": (8,)}, {"layers": (1, 1, 1)}):
        with pytest.raises(ValueError, match="do not lead to a factor of 8"):
            SmallDecoder(**sizes)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both renderers around one autoencoder, with a small decoder beside them."""
    folder = save_shared_model(tmp_path_factory.mktemp("model"))
    small_decoder().save_pretrained(folder / "decoder_small")
    return folder


CLIP = Clip(random(3, 3, 16, 24, seed=3).sigmoid(), fps=12.0, name="shot")


def test_a_model_has_one_and_uses_it_when_asked(model: Path) -> None:
    full, small = (load_inverse(model, device="cpu", decoder=name) for name in (None, "small"))
    assert full.codec.small is None
    latents = 0.3 * random(2, LATENTS, 4, 6)
    assert not torch.equal(small(CLIP[:1]).basecolor, full(CLIP[:1]).basecolor)
    expected = (0.5 * small_decoder()(latents / small.codec.vae.config.scaling_factor) + 0.5).clamp(0, 1)
    # Channels-last convolutions may round otherwise; no difference measured here.
    assert (small.decode(latents) - expected).abs().max() < 1e-5
    assert load_forward(model, device="cpu", decoder="small").codec.small is not None


def test_renderer_json_says_the_default(model: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(model, tmp_path / "model"))
    path = folder / "inverse" / "renderer.json"
    settings = json.loads(path.read_text())
    path.write_text(json.dumps({**settings, "decoder": "small"}))
    assert load_inverse(folder, device="cpu").codec.small is not None
    assert load_inverse(folder, device="cpu", decoder="full").codec.small is None
    path.write_text(json.dumps({**settings, "decoder": "medium"}))
    with pytest.raises(InputError, match="decoder 'medium', which is neither full nor small"):
        load_inverse(folder, device="cpu")


def test_one_that_is_missing_or_of_other_sizes_is_refused(model: Path, tmp_path: Path) -> None:
    without = save_model(tmp_path / "without", "inverse")
    load_inverse(without, device="cpu", decoder="full")
    with pytest.raises(InputError, match=r"small decoder in .*without; found none; take the full decoder"):
        load_inverse(without, device="cpu", decoder="small")
    small_decoder(factor=2).save_pretrained(without / "decoder_small")
    with pytest.raises(InputError, match="the one that came with the VAE"):
        load_inverse(without, device="cpu")


def test_another_small_decoder_is_another_model(model: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(model, tmp_path / "model"))
    before = weights_fingerprint(folder), weights_fingerprint(folder / "inverse")
    SmallDecoder(LATENTS, 4, scales=(1,), widths=(8,), layers=(1,)).save_pretrained(folder / "decoder_small")
    assert weights_fingerprint(folder) != before[0] and weights_fingerprint(folder / "inverse") != before[1]


def test_the_command_line_takes_it(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    Clip(CLIP.frames[:1], 12.0, "shot").write(tmp_path / "shot")
    asked = ("inverse", str(tmp_path / "shot"), "--buffers", "roughness", "--model", str(model), "-o")
    picture, pictures = tmp_path / "out/shot/0000.roughness.png", []
    for name in ("full", "small"):
        # A result of the other decoder is not taken for complete.
        assert main([*asked, str(tmp_path / "out"), "--decoder", name]) == 0
        pictures.append(picture.read_bytes())
    assert pictures[0] != pictures[1]
    without = save_model(tmp_path / "without", "inverse")
    capsys.readouterr()
    assert main([*asked[:5], str(without), "-o", str(tmp_path / "none"), "--decoder", "small"]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "expected" in line]
    assert "a small decoder" in line


def test_a_missing_one_is_noticed_before_any_work(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """Of a forward renderer that is not the inverse renderer's neighbour, whether the command line asks or its own file."""
    Clip(CLIP.frames[:1], 12.0, "shot").write(tmp_path / "shot")
    EnvironmentMap(torch.ones(3, 4, 8), "sky").write(tmp_path / "sky.exr")
    asked = ["relight", str(tmp_path / "shot"), "--light", str(tmp_path / "sky.exr"), "--model", str(model), "--forward-model"]
    for name, rest in (("asked", ("--decoder", "small")), ("own", ())):
        without = save_model(tmp_path / name, "forward", **({} if rest else {"decoder": "small"}))
        assert main([*asked, str(without), *rest, "-o", str(tmp_path / "out")]) == 2
        (line,) = [line for line in capsys.readouterr().err.splitlines() if "expected" in line]
        assert f"a small decoder in {without}" in line and not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def data() -> Mixture:
    return Mixture.of(store_clips([synthetic_clip(index, frames=4, size=16) for index in range(3)]))


#: Four latent channels of patches of 4 x 4 lose most of a picture: there is something to correct.
COARSE = replace(SMALL, vae_widths=(32, 32, 32), decoder_scales=(1, 2), decoder_widths=(24, 16), decoder_layers=(1, 1))


@pytest.fixture(scope="module")
def run(data: Mixture, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with an autoencoder whose decoder has learnt nothing."""
    out = tmp_path_factory.mktemp("run")
    VaeStage(COARSE, data, options(out, 1)).export(out / "vae")
    return out


def test_training_makes_it_better_than_linear(run: Path, data: Mixture, tmp_path: Path) -> None:
    told = options(run, 60, learning_rate=5e-3, warmup=5, ema=0.5)
    stage = DecoderStage(COARSE, load_vae(run), data, told)
    parts = [stage.plan(step)[0] for step in range(8)]

    def loss() -> float:
        with torch.no_grad():
            return sum(stage.losses(stage.network, part)[0].mean().item() for part in parts) / len(parts)

    linear = loss()
    loop.run(stage, told)
    # Measured: 0.54 and 0.46 of what it starts with, for two seeds.
    assert loss() < 0.75 * linear
    assert (run / "decoder/sheet-final.png").exists()
    assemble(run, tmp_path / "model")
    kept = SmallDecoder.from_pretrained(tmp_path / "model/decoder_small").state_dict()
    ours = {name: value.half().float() for name, value in stage.network.state_dict().items()}
    assert all(torch.equal(value, kept[name]) for name, value in ours.items())
    export.unpack(tmp_path / "model", tmp_path / "next")
    assert (tmp_path / "next/decoder/decoder_small/config.json").exists()


def test_what_was_trained_is_used(data: Mixture, run: Path, tmp_path: Path) -> None:
    """And one of another autoencoder does not stay in the model's folder."""
    out, model = tmp_path / "run", tmp_path / "model"
    shutil.copytree(run / "vae", out / "vae")
    DecoderStage(COARSE, load_vae(out), data, options(out, 1)).export(out / "decoder")
    (out / "inverse/unet").mkdir(parents=True)
    for name in ("renderer.json", "unet/config.json"):
        (out / "inverse" / name).write_text('{"window": 3}')
    assemble(out, model)
    assert json.loads((model / "inverse/renderer.json").read_text()) == {"window": 3, "decoder": "small"}
    shutil.rmtree(out / "decoder")
    assemble(out, model)
    assert json.loads((model / "inverse/renderer.json").read_text()) == {"window": 3}
    assert not (model / "decoder_small").exists()


def test_one_of_an_autoencoder_that_is_gone_is_left_out(
    data: Mixture, run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The mark outlives being stored in half precision; without a mark nobody can tell, and it is taken."""
    out, model = tmp_path / "run", tmp_path / "model"
    shutil.copytree(run / "vae", out / "vae")
    DecoderStage(COARSE, load_vae(out), data, options(out, 1)).export(out / "decoder")
    assemble(out, model)
    again = tmp_path / "again"
    export.unpack(model, again)
    assemble(again, tmp_path / "copy")
    assert (tmp_path / "copy" / "decoder_small").is_dir() and not caplog.records

    vae = load_vae(again)
    with torch.no_grad():
        next(vae.decoder.parameters()).mul_(1.01)
    vae.save_pretrained(again / "vae" / "vae")
    assemble(again, tmp_path / "copy")
    assert not (tmp_path / "copy" / "decoder_small").exists() and "another autoencoder" in caplog.text
    (again / "decoder" / "decoder_small" / "autoencoder.json").unlink()
    assemble(again, tmp_path / "copy")
    assert (tmp_path / "copy" / "decoder_small").is_dir()


def test_the_full_decoder_teaches_as_much_as_the_preset_says(run: Path, data: Mixture) -> None:
    vae = load_vae(run)
    part = DecoderStage(COARSE, vae, data, options(run, 1)).plan(0)[0]
    found = {}
    for share in (0.0, 0.5, 1.0):
        stage = DecoderStage(replace(COARSE, decoder_teacher=share), vae, data, options(run, 1))
        found[share] = stage.losses(stage.network, part)[0].detach()
    assert not torch.allclose(found[0.0], found[1.0], rtol=0.05)
    # No difference measured; the bound is that of float32 sums.
    assert torch.allclose(found[0.5], (found[0.0] + found[1.0]) / 2, atol=1e-5)


def test_it_needs_an_autoencoder(data: Mixture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("diffusion_renderer.training.data.load_mixture", lambda *asked, **others: data)
    with pytest.raises(InputError, match="train vae"):
        training.train("decoder", options(tmp_path, 1, data=("a",)))
