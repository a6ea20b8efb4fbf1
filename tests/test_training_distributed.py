"""Two processes against one: the same global batch gives the same weights, by DDP and by FSDP2, on CPUs over gloo.

This file is also the program that the processes run: ``torchrun ... test_training_distributed.py CASE... FOLDER``.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from diffusers.models.attention_processor import Attention
from safetensors.torch import load_file
from test_training_loop import Broken, Regression, options
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from diffusion_renderer.core.errors import InputError
from diffusion_renderer.training import checkpoint, loop
from diffusion_renderer.training.adapters import AdaptedUNet, attention_layers
from diffusion_renderer.training.logs import read_rows

STEPS = 20


class Attentive(nn.Module):
    """A network with what an adapter adapts."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.attention, self.last = nn.Linear(4, 8), Attention(8, heads=2, dim_head=4), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.first(x)[:, None] * torch.tensor([0.3, 1.0, 2.0])[:, None]
        return self.last(self.attention(tokens).mean(dim=1))


class AdaptedRegression(Regression):
    """The synthetic samples train the network, the real ones its adapter."""

    def __post_init__(self) -> None:
        torch.manual_seed(self.seed)
        network = Attentive()
        adapted = AdaptedUNet(network, dict.fromkeys(attention_layers(network), 2))
        self.network = Calling(adapted)


class Calling(nn.Module):
    """As `Regression` calls its network."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor, adapted: bool) -> Tensor:
        return self.inner(x, adapted=adapted)


def launch(folder: Path, *cases: str) -> None:
    """Run cases in two processes, started by torchrun as users start them; fails when one fails, or hangs."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", __file__]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*command, *cases, str(folder)], capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr[-4000:]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Everything below, by two processes, and the same by one."""
    folder = tmp_path_factory.mktemp("runs")
    launch(folder, "ddp", "pieces", "resumed", "minutes", "nan", "full", "fsdp", "adapted", "fsdp1")
    loop.run(Regression(), options(folder / "one", STEPS))
    loop.run(AdaptedRegression(), options(folder / "adapted-one", STEPS))
    return folder


def weights(folder: Path, steps: int = STEPS) -> dict[str, torch.Tensor]:
    return load_file(folder / f"regression/checkpoint-{steps:08d}/state.safetensors")


def difference(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    assert a.keys() == b.keys()
    return max((a[name] - b[name]).abs().max().item() for name in a)


@pytest.mark.parametrize("case", ["ddp", "pieces", "fsdp"])
def test_two_processes_give_what_one_gives(runs: Path, case: str) -> None:
    """Five synthetic samples, which two does not divide, and at every second step three real ones of less weight.

    Weights, averages and moments of AdamW are compared. ``pieces`` accumulates over two pieces as well; ``fsdp`` shards.
    """
    found = difference(weights(runs / "one"), weights(runs / case))
    # float32 sums in another order, 20 steps: measured 6e-8 in all three; weights move by more than 0.1.
    assert found < 1e-6
    start = Regression().network.second.weight
    assert (weights(runs / "one")["network.second.weight"] - start).abs().max() > 0.1


@pytest.mark.parametrize("case", ["ddp", "pieces", "fsdp"])
def test_the_log_is_that_of_the_whole_batch(runs: Path, case: str) -> None:
    one, two = (read_rows(runs / name / "regression/log.csv")[1] for name in ("one", case))
    assert [row["step"] for row in one] == [row["step"] for row in two] == ["20"]
    for name in ("loss", "grad"):
        # Six digits of the loss are logged and four of the gradient.
        assert float(one[0][name]) == pytest.approx(float(two[0][name]), abs={"loss": 3e-6, "grad": 2e-4}[name])


def test_the_exported_network_is_whole(runs: Path) -> None:
    for case in ("ddp", "fsdp"):
        saved, exported = weights(runs / case), load_file(runs / case / "regression/net.safetensors")
        assert exported.keys() == Regression().network.state_dict().keys()
        assert all(torch.equal(value, saved[f"ema.{name}"]) for name, value in exported.items())
        assert (runs / case / "regression/sheet-final.png").exists()


def test_an_adapter_is_trained_on_real_samples_only_when_sharded(runs: Path) -> None:
    """The attention is a unit of its own, gathered when it is called. One process keeps both apart: test_training_lora.py."""
    one, two = weights(runs / "adapted-one"), weights(runs / "adapted")
    assert json.loads((runs / "told-1.json").read_text())["adapted"] == 2
    # As above: measured 6e-8.
    assert difference(one, two) < 1e-6
    start = dict(AdaptedRegression().network.named_parameters())
    moved = {name: (two[f"network.{name}"] - value).abs().max().item() for name, value in start.items()}
    for part in (".lora_A.", ".lora_B.", ".base_layer.", "first."):
        assert max(value for name, value in moved.items() if part in name) > 1e-2


def test_two_processes_continue_bit_for_bit(runs: Path) -> None:
    assert difference(weights(runs / "ddp"), weights(runs / "resumed")) == 0
    assert difference(weights(runs / "fsdp"), weights(runs / "fsdp-resumed")) == 0


def test_a_run_goes_on_with_another_number_of_processes(runs: Path) -> None:
    """From step 8 of the sharded run with one process."""
    folder = runs / "alone"
    shutil.copytree(runs / "fsdp-begun", folder)
    assert loop.run(Regression(), options(folder, STEPS)).step == STEPS
    # As above: measured 6e-8.
    assert difference(weights(runs / "one"), weights(folder)) < 1e-6


def test_all_processes_stop_together(runs: Path) -> None:
    """At the limit of minutes, at a loss that is not finite in one process, and when the main one's disk is full."""
    told = [json.loads((runs / f"told-{rank}.json").read_text()) for rank in range(2)]
    assert told[0]["minutes"] == told[1]["minutes"] >= 1
    for said in told:
        assert "found nan at step 5, samples made-005/04" in said["nan"]
    assert "No space left on device" in told[0]["full"]
    assert "a checkpoint by the main process" in told[1]["full"]


def test_the_first_version_of_fsdp_is_refused(runs: Path) -> None:
    assert "FSDP of version 2" in json.loads((runs / "told-0.json").read_text())["fsdp1"]


# What follows is the program that the processes run.


def case_ddp(folder: Path) -> None:
    loop.run(Regression(), options(folder / "ddp", STEPS))


def case_pieces(folder: Path) -> None:
    loop.run(Regression(), options(folder / "pieces", STEPS, accumulate=2))


def case_resumed(folder: Path) -> None:
    try:
        loop.run(Broken(at=9), options(folder / "resumed", STEPS, save_steps=8))
    except KeyboardInterrupt:
        loop.run(Regression(), options(folder / "resumed", STEPS))


def case_minutes(folder: Path) -> int:
    return loop.run(Regression(), options(folder / "minutes", 10**6, max_minutes=0.5 / 60)).step


def case_nan(folder: Path) -> str:
    """The bad sample is the last of five: in the second process alone."""
    return refusal(Broken(at=5, value=float("nan"), item=4), folder / "nan")


def case_full(folder: Path) -> str:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    whole, checkpoint.save_file = checkpoint.save_file, full
    try:
        return refusal(Regression(), folder / "full")
    finally:
        checkpoint.save_file = whole


def case_fsdp(folder: Path) -> None:
    """Accelerate shards on GPUs only, so its plugin is put in by hand; everything else is as on GPUs."""
    shard_on_cpus(version=2)
    loop.run(Regression(), options(folder / "fsdp", STEPS))
    for name in ("fsdp-begun", "fsdp-resumed"):
        try:
            loop.run(Broken(at=9), options(folder / name, STEPS, save_steps=8))
        except KeyboardInterrupt:
            pass
    loop.run(Regression(), options(folder / "fsdp-resumed", STEPS))


def case_adapted(folder: Path) -> int:
    """Units that are gathered one at a time; the first process ends with a whole network, and none."""
    shard_on_cpus(version=2, units=["Attention"])
    stage = AdaptedRegression()
    loop.run(stage, options(folder / "adapted", STEPS))
    return sum(isinstance(module, FSDPModule) for module in stage.network.modules())


def case_fsdp1(folder: Path) -> str:
    shard_on_cpus(version=1)
    return refusal(Regression(), folder / "fsdp1")


def shard_on_cpus(version: int, units: list[str] | None = None) -> None:
    import accelerate
    from accelerate.state import PartialState
    from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin

    plain = accelerate.Accelerator

    def sharding(**options: object) -> accelerate.Accelerator:
        made = plain(**options)
        split = {"auto_wrap_policy": "transformer_based_wrap", "transformer_cls_names_to_wrap": units} if units else {}
        made.state.fsdp_plugin = FullyShardedDataParallelPlugin(fsdp_version=version, cpu_ram_efficient_loading=False, **split)
        made.state.distributed_type = DistributedType.FSDP
        PartialState._shared_state["distributed_type"] = DistributedType.FSDP
        return made

    accelerate.Accelerator = sharding


def refusal(stage: Regression, folder: Path) -> str:
    try:
        loop.run(stage, options(folder, STEPS))
    except InputError as error:
        return str(error)
    return "nothing"


if __name__ == "__main__":
    *names, where = sys.argv[1:]
    loop.join_processes("cpu")
    results = {name: globals()[f"case_{name}"](Path(where)) for name in names}
    (Path(where) / f"told-{os.environ['RANK']}.json").write_text(json.dumps(results))
    loop.leave_processes()
