"""The training loop, its checkpoints and its log, on a network of a few weights whose data are made from seeds."""

from __future__ import annotations

import csv
import errno
import importlib.util
import json
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from diffusion_renderer.core.errors import InputError
from diffusion_renderer.training import checkpoint, loop
from diffusion_renderer.training.checkpoint import TrainState
from diffusion_renderer.training.ema import Ema
from diffusion_renderer.training.logs import append_row, drop_rows, read_rows
from diffusion_renderer.training.options import TrainOptions
from diffusion_renderer.training.steps import Item, Part, derived_seed


class Net(nn.Module):
    """A small network with an adapter that real samples alone use."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 16), nn.Linear(16, 2)
        self.adapter = nn.Linear(4, 16, bias=False)

    def forward(self, x: Tensor, adapted: bool) -> Tensor:
        hidden = self.first(x) + (self.adapter(x) if adapted else 0.0)
        return self.second(torch.tanh(hidden))


@dataclass
class Regression:
    """Fits a linear map: a synthetic part of five items and, at odd steps, a real one of three items that weighs less."""

    seed: int = 0
    batch: int = 5
    real: bool = True
    name: str = "regression"
    learning_rate: float = 0.01
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    def __post_init__(self) -> None:
        torch.manual_seed(self.seed)
        self.network: nn.Module = Net()

    def plan(self, step: int) -> tuple[Part, ...]:
        def items(kind: str, count: int) -> tuple[Item, ...]:
            return tuple(Item((i,), derived_seed(self.seed, step, kind, i), f"{kind}-{step:03d}/{i:02d}") for i in range(count))

        parts = (Part(items("made", self.batch), weight=0.7),)
        return (*parts, Part(items("real", 3), weight=0.3, estimated=True)) if self.real and step % 2 else parts

    def losses(self, network: nn.Module, part: Part) -> tuple[Tensor, dict[str, float]]:
        x = torch.stack([torch.randn(4, generator=item.generator("x")) for item in part.items])
        target = x[:, :2] - 2 * x[:, 2:] + (1.0 if part.estimated else 0.0)
        errors = (network(x, part.estimated) - target).square()
        return errors.mean(1), {"first": errors[:, 0].mean().item()}

    def sheet(self) -> Tensor:
        return self.network(torch.ones(1, 4), True).detach().reshape(1, 1, 2).expand(3, 4, 2)

    def export(self, folder: Path) -> None:
        save_file({name: value.contiguous() for name, value in self.network.state_dict().items()}, folder / "net.safetensors")


@dataclass
class Broken(Regression):
    """Turns bad at one step: stopped by the user, or with one item's loss as given."""

    at: int = 3
    value: float | None = None
    item: int = 2

    def losses(self, network: nn.Module, part: Part) -> tuple[Tensor, dict[str, float]]:
        found, values = super().losses(network, part)
        wanted = f"made-{self.at:03d}/"
        if part.items[0].key.startswith(wanted):
            if self.value is None:
                raise KeyboardInterrupt
            hit = torch.tensor([item.key == f"{wanted}{self.item:02d}" for item in part.items])
            found = torch.where(hit, found * self.value, found)
        return found, values


def options(out: Path, steps: int, **others: object) -> TrainOptions:
    return TrainOptions(out=out, max_steps=steps, **{"sheet_steps": 0, "precision": "fp32", "warmup": 2, **others})


def final(out: Path, steps: int) -> dict[str, Tensor]:
    return load_file(out / f"regression/checkpoint-{steps:08d}/state.safetensors")


def assert_same(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_killed_run_continues_bit_for_bit(tmp_path: Path, accumulate: int, precision: str) -> None:
    """Killed at step 7, one step after its last checkpoint; steps 6 and later are done again."""
    others = {"accumulate": accumulate, "precision": precision}
    whole = loop.run(Regression(), options(tmp_path / "a", 12, **others))
    with pytest.raises(KeyboardInterrupt):
        loop.run(Broken(at=7), options(tmp_path / "b", 12, save_steps=3, **others))
    assert checkpoint.newest(tmp_path / "b/regression").name == "checkpoint-00000006"
    again = loop.run(Regression(), options(tmp_path / "b", 12, **others))
    assert again.step == whole.step == 12 and again.losses == whole.losses and len(whole.losses) == 12
    assert_same(final(tmp_path / "a", 12), final(tmp_path / "b", 12))
    assert_same(*(load_file(tmp_path / run / "regression/net.safetensors") for run in "ab"))


def test_a_finished_run_is_left_as_it_is(tmp_path: Path) -> None:
    loop.run(Regression(), options(tmp_path, 3))
    before = (tmp_path / "regression/checkpoint-00000003/state.json").stat().st_mtime_ns
    assert loop.run(Regression(seed=1), options(tmp_path, 3)).step == 3
    assert (tmp_path / "regression/checkpoint-00000003/state.json").stat().st_mtime_ns == before


def test_accumulation_changes_nothing_but_rounding(tmp_path: Path) -> None:
    for pieces in (1, 2, 9):
        loop.run(Regression(), options(tmp_path / str(pieces), 30, accumulate=pieces))
    one = final(tmp_path / "1", 30)
    for pieces in (2, 9):
        other = final(tmp_path / str(pieces), 30)
        # Measured after 30 steps of float32: 6e-8, in weights that moved by up to 0.2.
        assert max((one[name] - other[name]).abs().max().item() for name in one) < 1e-6
    moved = (one["network.second.weight"] - Regression().network.second.weight).abs().max().item()
    assert moved > 0.1


def test_a_step_is_the_weighted_mean_of_its_parts(tmp_path: Path) -> None:
    """The logged loss and gradient are those of 0.7 x mean of five + 0.3 x mean of three items, computed by hand."""
    stage = Regression()
    made, real = stage.plan(1)
    loss = 0.7 * stage.losses(stage.network, made)[0].mean() + 0.3 * stage.losses(stage.network, real)[0].mean()
    loss.backward()
    norm = torch.stack([p.grad.norm() for p in stage.network.parameters()]).norm()
    again = Regression()
    plan = again.plan
    again.plan = lambda step: plan(1)
    loop.run(again, options(tmp_path, 1, accumulate=2))
    columns, (row,) = read_rows(tmp_path / "regression/log.csv")
    assert columns == ["step", "seconds", "rate", "loss", "grad", "estimated_first", "first", "samples_per_second"]
    # The log has six digits of the loss and four of the gradient.
    assert float(row["loss"]) == pytest.approx(loss.item(), abs=2e-6)
    assert float(row["grad"]) == pytest.approx(norm.item(), abs=1e-4)
    assert float(row["rate"]) == 0.005 and float(row["samples_per_second"]) > 0


def test_values_are_means_over_items_whatever_the_pieces(tmp_path: Path) -> None:
    rows = []
    for pieces in (1, 3):
        loop.run(Regression(batch=6), options(tmp_path / str(pieces), 2, accumulate=pieces))
        rows.append(read_rows(tmp_path / str(pieces) / "regression/log.csv")[1][0])
    assert float(rows[0]["first"]) == pytest.approx(float(rows[1]["first"]), abs=2e-6)
    assert float(rows[0]["estimated_first"]) == pytest.approx(float(rows[1]["estimated_first"]), abs=2e-6)


def test_the_average_follows_its_formula() -> None:
    layer = nn.Linear(1, 1, bias=False)
    layer.weight.data.fill_(0.0)
    ema = Ema(layer, decay=0.9)
    expected = 0.0
    for step in range(200):
        layer.weight.data.fill_(float(step))
        ema.update(layer, step)
        decay = min(0.9, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * step
    # float32 against float64 over 200 steps; measured: 4e-7 relative.
    assert ema.shadow["weight"].item() == pytest.approx(expected, rel=4e-6)
    ema.copy_to(layer)
    assert layer.weight.item() == ema.shadow["weight"].item()


def test_the_average_is_what_is_exported(tmp_path: Path) -> None:
    loop.run(Regression(), options(tmp_path, 8, ema=0.5))
    saved, exported = final(tmp_path, 8), load_file(tmp_path / "regression/net.safetensors")
    assert all(torch.equal(value, saved[f"ema.{name}"]) for name, value in exported.items())
    assert not torch.equal(saved["ema.first.weight"], saved["network.first.weight"])


def test_frozen_parameters_stay_out_of_it(tmp_path: Path) -> None:
    stage = Regression()
    stage.network.first.requires_grad_(False)
    before = stage.network.first.weight.clone()
    loop.run(stage, options(tmp_path, 4))
    assert torch.equal(stage.network.first.weight, before)
    assert not any("first" in name for name in final(tmp_path, 4))


def test_the_newest_checkpoints_are_kept(tmp_path: Path) -> None:
    loop.run(Regression(), options(tmp_path, 11, save_steps=2, keep=3))
    names = [path.name for path in checkpoint.checkpoints(tmp_path / "regression")]
    assert names == [f"checkpoint-{step:08d}" for step in (8, 10, 11)]
    assert {path.name for path in (tmp_path / "regression").iterdir() if path.is_dir()} == set(names)


def test_checkpoints_of_earlier_versions_are_read(tmp_path: Path) -> None:
    """A folder `checkpoint` without losses; the run goes on from it to the same bits, and it counts as one of those kept."""
    loop.run(Regression(), options(tmp_path / "a", 8))
    with pytest.raises(KeyboardInterrupt):
        loop.run(Broken(at=5), options(tmp_path / "b", 8, save_steps=5))
    folder = tmp_path / "b/regression"
    old = (folder / "checkpoint-00000005").rename(folder / "checkpoint")
    (old / "state.json").write_text(json.dumps({"step": 5, "seconds": 1.5}))
    state = loop.run(Regression(), options(tmp_path / "b", 8, keep=1))
    assert state.step == 8 and state.seconds > 1.5
    assert_same(final(tmp_path / "a", 8), final(tmp_path / "b", 8))
    assert not old.exists()


def test_a_full_disk_keeps_the_previous_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loop.run(Regression(), options(tmp_path, 4))
    kept = final(tmp_path, 4)

    def full(tensors: dict[str, Tensor], path: Path) -> None:
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(InputError) as caught:
        loop.run(Regression(), options(tmp_path, 8))
    assert "found No space left on device; checkpoint-00000004 is intact; make room" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert_same(final(tmp_path, 4), kept)
    assert [path.name for path in (tmp_path / "regression").glob("checkpoint*")] == ["checkpoint-00000004"]


def test_what_safetensors_says_of_a_disk_that_takes_no_more(tmp_path: Path) -> None:
    """The real thing: files may not grow beyond a kilobyte, and safetensors fails with an error of its own."""
    resource = pytest.importorskip("resource", reason="limits on files are Unix's")
    stage = Regression()
    optimizer = torch.optim.AdamW(stage.network.parameters())
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1024, limits[1]))
    try:
        with pytest.raises(InputError, match=r"room to write .*checkpoint-00000001; .*; nothing was saved before"):
            checkpoint.save(tmp_path, stage.network, optimizer, Ema(stage.network), TrainState(1))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list(tmp_path.iterdir()) == []


def test_a_loss_that_is_not_finite_names_step_samples_and_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        loop.run(Broken(at=5, value=float("nan")), options(tmp_path, 8, save_steps=4))
    message = str(caught.value)
    assert "a finite loss in stage regression; found nan at step 5, samples made-005/02;" in message
    assert f"the last good checkpoint is {tmp_path / 'regression/checkpoint-00000004'}" in message
    assert all(torch.isfinite(value).all() for value in final(tmp_path, 4).values())
    assert [path.name for path in checkpoint.checkpoints(tmp_path / "regression")] == ["checkpoint-00000004"]


def test_an_exploding_loss_stops_the_run(tmp_path: Path) -> None:
    """One of five items at 5000 times its loss: the step's is about 1000 times the usual one."""
    stage = Broken(at=25, value=5000.0, item=4)
    with pytest.raises(InputError, match=r"20 times the usual one.*at step 25, samples made-025/04; start again"):
        loop.run(stage, options(tmp_path / "a", 30))
    assert loop.run(stage.__class__(at=25, value=5000.0), options(tmp_path / "b", 30, explode=1e9)).step == 30
    # Too early for a median: nothing to compare with.
    assert loop.run(stage.__class__(at=3, value=5000.0), options(tmp_path / "c", 5)).step == 5


def test_a_gradient_that_is_not_finite_stops_the_run(tmp_path: Path) -> None:
    """The square root of 0 is finite; its slope is not."""
    stage = Regression(real=False)
    stage.losses = lambda network, part: ((network(torch.zeros(len(part.items), 4), False) * 0).sum(1).sqrt(), {})
    with pytest.raises(InputError, match="a finite gradient in stage regression; found nan at step 0, samples made-000/00, "):
        loop.run(stage, options(tmp_path, 4))
    assert checkpoint.newest(tmp_path / "regression") is None


def test_checkpoints_of_another_network_are_refused(tmp_path: Path) -> None:
    loop.run(Regression(), options(tmp_path, 1))
    wider = Regression()
    wider.network.second = nn.Linear(16, 3)
    with pytest.raises(InputError, match=r"second.weight of shape \(3, 16\).*found \(2, 16\); .*another preset"):
        loop.run(wider, options(tmp_path, 2))
    smaller = Regression()
    smaller.network.adapter.requires_grad_(False)
    with pytest.raises(InputError, match=r"adapter.weight of shape nothing.*another preset"):
        loop.run(smaller, options(tmp_path, 2))


def test_damaged_checkpoints_say_what_to_delete(tmp_path: Path) -> None:
    loop.run(Regression(), options(tmp_path, 4, save_steps=2))
    last = tmp_path / "regression/checkpoint-00000004"
    path = last / "state.safetensors"
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(InputError, match=r"checkpoint-00000004; .*delete that folder to go on from the one before"):
        loop.run(Regression(), options(tmp_path, 6))
    (last / "state.json").write_text("{")
    with pytest.raises(InputError, match=r"checkpoint-00000004; .*delete that folder"):
        loop.run(Regression(), options(tmp_path, 6))
    for file in last.iterdir():
        file.unlink()
    last.rmdir()
    assert loop.run(Regression(), options(tmp_path, 6)).step == 6


def test_the_log_has_no_line_twice(tmp_path: Path) -> None:
    """Killed after line 40 with the last checkpoint at 30: line 40 is dropped and written again."""
    with pytest.raises(KeyboardInterrupt):
        loop.run(Broken(at=45), options(tmp_path, 60, save_steps=30))
    assert [row["step"] for row in read_rows(tmp_path / "regression/log.csv")[1]] == ["20", "40"]
    loop.run(Regression(), options(tmp_path, 60))
    assert [row["step"] for row in read_rows(tmp_path / "regression/log.csv")[1]] == ["20", "40", "60"]


def test_new_columns_join_a_log(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    append_row(path, {"step": 1, "loss": 2.0})
    append_row(path, {"step": 2, "loss": 1.5, "real": 3.0})
    append_row(path, {"step": 3, "loss": 1.0})
    with path.open("a") as file:
        file.write("4,0")
    drop_rows(path, 9)
    with path.open(newline="") as file:
        assert list(csv.reader(file)) == [["step", "loss", "real"], ["1", "2.0", ""], ["2", "1.5", "3.0"], ["3", "1.0", ""]]


def test_a_run_stops_after_its_minutes_and_goes_on(tmp_path: Path) -> None:
    stage = Regression()
    slow = stage.plan
    stage.plan = lambda step: (time.sleep(0.05), slow(step))[1]
    state = loop.run(stage, options(tmp_path, 1000, max_minutes=0.2 / 60))
    assert 1 <= state.step <= 10 and state.seconds >= 0.2
    assert checkpoint.read_state(checkpoint.newest(tmp_path / "regression")).step == state.step
    assert (tmp_path / "regression/net.safetensors").exists()
    assert loop.run(Regression(), options(tmp_path, state.step + 2)).step == state.step + 2


def test_minutes_between_checkpoints(tmp_path: Path) -> None:
    loop.run(Regression(), options(tmp_path, 4, save_minutes=1e-9, keep=9))
    assert len(checkpoint.checkpoints(tmp_path / "regression")) == 4


def test_sheets(tmp_path: Path) -> None:
    loop.run(Regression(), options(tmp_path, 4, sheet_steps=2))
    names = sorted(path.name for path in (tmp_path / "regression").glob("*.png"))
    assert names == ["sheet-000002.png", "sheet-000004.png", "sheet-final.png"]


def test_gradient_checkpointing_is_switched_on(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    calls = []
    able = Regression()
    able.network.enable_gradient_checkpointing = lambda: calls.append(1)
    loop.run(able, options(tmp_path / "a", 1, checkpointing=True))
    assert calls == [1]
    loop.run(Regression(), options(tmp_path / "b", 1, checkpointing=True))
    assert "Net cannot keep fewer activations" in caplog.text


def test_the_same_stage_trains_on(tmp_path: Path) -> None:
    """A second call with the same object, and with another precision: nothing of the first is in the way."""
    stage = Regression()
    loop.run(stage, options(tmp_path, 2, precision="bf16"))
    fresh = Net()
    fresh.load_state_dict(stage.network.state_dict())
    x = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    assert torch.equal(stage.network(x, True), fresh(x, True))
    assert loop.run(stage, options(tmp_path, 4)).step == 4


def test_tensorboard(tmp_path: Path) -> None:
    if importlib.util.find_spec("tensorboard") is None:
        with pytest.raises(InputError, match="pip install tensorboard, or leave --tensorboard out"):
            loop.run(Regression(), options(tmp_path, 2, tensorboard=True))
        pytest.skip("the package tensorboard is not installed: only the refusal was tested")
    loop.run(Regression(), options(tmp_path, 20, tensorboard=True))
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "regression/tensorboard")).Reload()
    assert [event.step for event in events.Scalars("loss")] == [20]


def test_the_device_of_a_process(tmp_path: Path) -> None:
    assert loop.join_processes("cpu") == torch.device("cpu")
    loop.leave_processes()
