"""The stage `distill` on tiny networks; the targets that it teaches are tested in test_training_students.py."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import small_preset
import torch
from synthetic import synthetic_clip

from diffusion_renderer.core.errors import InputError
from diffusion_renderer.training import TrainOptions, loop
from diffusion_renderer.training.data import Mixture, store_clips
from diffusion_renderer.training.students import METHODS, fine_levels

#: The smallest networks that the classes allow, on the smallest frames that they take (their norms need more than one cell).
SMALL = replace(small_preset.SMALL, window=2)


@pytest.fixture(scope="module")
def data() -> Mixture:
    return Mixture.of(store_clips([synthetic_clip(index, frames=2, size=32) for index in range(2)]))


@pytest.fixture(scope="module")
def run(data: Mixture, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose teachers are exported as they start: random, which is as good as trained for what is tested here."""
    from diffusion_renderer.training.env import EnvStage
    from diffusion_renderer.training.forward import ForwardStage
    from diffusion_renderer.training.inverse import InverseStage
    from diffusion_renderer.training.vae import VaeStage, load_vae

    out = tmp_path_factory.mktemp("run")
    for kind in (VaeStage, EnvStage):
        (out / kind.name).mkdir()
        kind(SMALL, data, options(out)).export(out / kind.name)
    for kind in (InverseStage, ForwardStage):
        (out / kind.name).mkdir()
        kind(SMALL, load_vae(out), data, options(out)).export(out / kind.name)
    return out


def options(out: Path, **others: object) -> TrainOptions:
    values = {"max_steps": 1, "batch": 2, "sheet_steps": 0, "precision": "fp32", "device": "cpu", "teacher_steps": 4}
    return TrainOptions(out=out, **(values | others))


def distilled(run: Path, data: Mixture, preset=SMALL, **others: object):
    from diffusion_renderer.training.distill import DistillStage
    from diffusion_renderer.training.vae import load_vae

    return DistillStage(preset, load_vae(run), data, options(run, **others))


@pytest.mark.parametrize(
    ("teacher", "method"), [("forward", "regression"), ("forward", "trajectory"), ("inverse", "consistency")]
)
def test_only_the_student_learns(run: Path, data: Mixture, teacher: str, method: str) -> None:
    stage = distilled(run, data, teacher=teacher, method=method, student_steps=2, teacher_guidance=1.5)
    assert stage.name == f"distill-{teacher}-2"
    pairs = zip(stage.network.parameters(), stage.teacher.parameters(), strict=True)
    assert all(torch.equal(ours, theirs) and ours is not theirs for ours, theirs in pairs)
    losses, _ = stage.losses(stage.network, stage.plan(0)[0])
    assert losses.shape == (len(stage.plan(0)[0].items),) and losses.isfinite().all() and (losses > 0).all()
    losses.sum().backward()
    assert stage.network.conv_in.weight.grad.abs().max() > 0
    assert all(p.grad is None and not p.requires_grad for p in stage.teacher.parameters())


@pytest.mark.parametrize("method", METHODS)
def test_losses_do_not_depend_on_the_split(run: Path, data: Mixture, method: str) -> None:
    stage = distilled(run, data, teacher="forward", method=method, student_steps=4, teacher_steps=8)
    torch.manual_seed(5)
    # Not the teacher's weights: a student that knows everything has losses of nothing but rounding.
    stage.network = SMALL.forward_unet()
    part = stage.plan(3)[0]
    whole, _ = stage.losses(stage.network, part)
    single = [stage.losses(stage.network, replace(part, items=(item,)))[0] for item in part.items]
    # Worst relative difference: 1.7e-6.
    torch.testing.assert_close(whole, torch.cat(single), rtol=2e-5, atol=0)
    again, _ = stage.losses(stage.network, part)
    assert torch.equal(whole, again)


def test_conditions_are_never_dropped(run: Path, data: Mixture) -> None:
    """Of the very items of which `forward` would drop one, all see their G-buffers and light, varied as there."""
    stage = distilled(run, data, teacher="forward", batch=40)
    part = stage.plan(0)[0]

    def dropped(training: bool) -> int:
        asked = stage.lessons.conditions(part, training)
        x, level = torch.zeros_like(asked.clean), torch.full((len(part.items), 1, 1, 1, 1), 5.0)
        with torch.no_grad():
            given = stage.base.denoised(stage.teacher, asked, x, level)
            free = stage.base.denoised(stage.teacher, replace(asked, predict=asked.unconditional), x, level)
        return int(((given - free).abs().flatten(1).amax(dim=1) < 1e-4).sum())

    assert dropped(training=True) > 0
    assert dropped(training=False) == 0
    varied, plain = (other.conditions(part, training=False).clean for other in (stage.lessons, stage.base))
    assert not torch.equal(varied, plain)


def test_a_student_of_as_many_steps_as_its_teacher_has_nothing_to_learn(run: Path, data: Mixture) -> None:
    """Every step of the student is one of the teacher's then: the loss is zero before the first step of training."""
    preset = replace(SMALL, one_step=False)
    stage = distilled(run, data, preset, teacher="inverse", method="trajectory", student_steps=4, batch=8, teacher_steps=8)
    losses, _ = stage.losses(stage.network, stage.plan(0)[0])
    stage.fine = fine_levels(stage.levels, 1)
    same, _ = stage.losses(stage.network, stage.plan(0)[0])
    # Measured: at most 3.5e-10, and 0.024 on average with two of the teacher's steps to each of the student's.
    assert same.max() < 1e-8 and losses.mean() > 1e-3


@pytest.mark.parametrize("method", METHODS)
def test_gradients_pass_in_bfloat16(run: Path, data: Mixture, method: str) -> None:
    """Calls of the student without gradient come first: weights that autocast keeps of them must not cut the gradient off."""
    stage = distilled(run, data, teacher="inverse", method=method, student_steps=4, teacher_steps=8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses, _ = stage.losses(stage.network, stage.plan(0)[0])
    losses.sum().backward()
    assert stage.network.conv_in.weight.grad is not None and stage.network.conv_in.weight.grad.abs().max() > 0


@pytest.mark.parametrize(
    ("teacher", "method"), [("inverse", "regression"), ("inverse", "consistency"), ("forward", "trajectory")]
)
def test_the_pipelines_run_an_exported_student(run: Path, data: Mixture, tmp_path: Path, teacher: str, method: str) -> None:
    """Trained by the loop, loaded as it lies there: two calls of the network, no guidance, the result of the stage."""
    from diffusion_renderer.pipelines import load_forward, load_inverse

    shutil.copytree(run, tmp_path / "run")
    chosen = options(tmp_path / "run", teacher=teacher, method=method, student_steps=2, teacher_guidance=1.5)
    stage = distilled(tmp_path / "run", data, teacher=teacher, method=method, student_steps=2, teacher_guidance=1.5)
    loop.run(stage, chosen)
    folder = tmp_path / "run" / stage.name
    assert (folder / "sheet-final.png").exists()
    renderer = {"inverse": load_inverse, "forward": load_forward}[teacher](folder, device="cpu")
    renderer.half = False  # the stage has float32
    assert (renderer.settings.default_steps, renderer.settings.default_guidance) == (2, 1.0)
    assert renderer.settings.initial_noise == (method != "regression")
    assert torch.equal(renderer.schedule.sigmas(2), stage.levels)

    part = stage.base.sheet_part()
    part = replace(part, items=part.items[:1])
    asked = stage.base.conditions(part, training=False)
    expected = stage.sample(stage.network, asked, part)[0]
    noise = stage.base.noise(asked.clean.shape[1:], part)[0]
    calls = []
    renderer.unet.register_forward_hook(lambda *_: calls.append(1))
    clip = synthetic_clip(0, frames=2, size=32)
    if teacher == "inverse":
        # Stores keep 8 bits.
        condition = renderer.encode((255 * clip.clip.frames[:1]).round() / 255)
        made = renderer.denoise(condition, ("basecolor",), noise, 2)
        # Worst seen: 6.8e-6.
        torch.testing.assert_close(made, expected, rtol=0, atol=5e-5)
    else:
        made = renderer(clip.gbuffer, clip.environment).frames
        assert made.shape == (2, 3, 32, 32) and made.isfinite().all()
    assert len(calls) == 2


def test_teachers_that_cannot_teach_are_refused(run: Path, data: Mixture, tmp_path: Path) -> None:
    shutil.copytree(run / "vae", tmp_path / "vae")
    with pytest.raises(InputError, match="train inverse"):
        distilled(tmp_path, data, teacher="inverse")
    with pytest.raises(InputError, match="--teacher-steps of at least 5 for a student of 4"):
        distilled(run, data, teacher="inverse", student_steps=4, teacher_steps=4)
    distilled(run, data, teacher="forward", student_steps=4, teacher_steps=4, teacher_guidance=1.5)
