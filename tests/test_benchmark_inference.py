"""The inference benchmark on tiny random networks: what it counts, and that both orders of work make the same."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))

import inference
import inference_counting as counting
import inference_paper
import inference_rows
from inference_job import write_random_model

from diffusion_renderer.core.devices import has_fast_bfloat16
from diffusion_renderer.core.errors import InputError
from diffusion_renderer.training.presets import SVD

WIDTHS = (32, 32, 32)
SMALL = replace(
    SVD,
    vae_widths=(32, 32),
    inverse_widths=WIDTHS,
    forward_widths=WIDTHS,
    env_widths=WIDTHS,
    head_width=32,
    layers=1,
    env_size=16,
    size=16,
    context_channels=16,
    time_channels=32,
    sigma_max=10.0,
)
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random networks; the first noise is of size 10, for beside one of size 700 float32 loses digits.

    They must not start from zero: norms of one channel, as these have, make anything of an input that is zero everywhere.
    """
    return write_random_model(SMALL, tmp_path_factory.mktemp("random"), torch.float32, CPU)


def run(tmp_path: Path, *options: str) -> dict[str, Any]:
    inference.main([*options, "--device", "cpu", "--repeat", "1", "--json", str(tmp_path / "out.json")])
    return json.loads((tmp_path / "out.json").read_text())


def test_both_orders_make_the_same(tmp_path: Path, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two steps with guidance: published 5 x 2 + 2 doubled calls, in the package 5 x 2 + 2 x 2 at most."""
    given = ("--model", str(model), "--frames", "2", "--size", "16", "--steps", "2", "--guidance", "1.5", "--rotate-light")
    reference, package = run(tmp_path, *given, "--only", "package")["rows"]
    assert (reference["row"], package["row"]) == ("reference", "package")
    assert reference["calls"]["denoise"] == 12 and package["calls"]["denoise"] <= 14
    assert reference["calls"]["decode"] == 6
    # Worst case measured: 1.5e-5, of normals, whose length is made 1.
    assert max(largest for largest, _ in package["differences"].values()) < 1e-4
    assert set(package["differences"]) == {"basecolor", "normal", "depth", "roughness", "metallic", "relit"}
    for row in (reference, package):
        assert row["seconds"] >= sum(row["stages"].values()) > 0
        assert row["peak"] > 1e7
    # The clip is encoded once, not five times; a light that turns is encoded for every frame in both.
    encodes = [row["work"]["encode"]["flops"] for row in (reference, package)]
    assert encodes[0] / encodes[1] == pytest.approx((5 + 5 + 3) / (1 + 5 + 3))
    # The reference decodes in diffusers' blocks; doubling and convolving in one step saves a part of one layer here.
    decodes = [row["work"]["decode"]["flops"] for row in (reference, package)]
    assert 0.8 < decodes[1] / decodes[0] < 1
    table = capsys.readouterr().out.splitlines()
    assert len({line.count("|") for line in table if line.startswith("|")}) == 1


def test_a_light_at_rest_is_encoded_once(tmp_path: Path, model: Path) -> None:
    given = ("--model", str(model), "--frames", "2", "--size", "16", "--steps", "1", "--guidance", "1", "--only", "package")
    reference, package = run(tmp_path, *given)["rows"]
    assert reference["work"]["light"]["flops"] == 2 * package["work"]["light"]["flops"] > 0


def test_the_differences_tell_another_result(tmp_path: Path, model: Path) -> None:
    """Windows of two frames are unrelated chunks as published, and blended in the package."""
    given = ("--model", str(model), "--frames", "3", "--size", "16", "--steps", "1", "--window", "2", "--only", "package")
    package = run(tmp_path, *given)["rows"][1]
    assert max(largest for largest, _ in package["differences"].values()) > 1e-3


def test_the_real_tiny_weights(tmp_path: Path) -> None:
    """A joint model with a classical picture; a pass for each buffer makes what one pass for all makes."""
    given = ("--preset", "tiny", "--frames", "1", "--size", "64", "--steps", "1", "--only", "reference")
    reference, joint, package, full = run(tmp_path, *given, "package", "decoder=full")["rows"]
    assert [row["calls"]["denoise"] for row in (reference, joint, package, full)] == [6, 2, 2, 2]
    assert max(largest for largest, _ in joint["differences"].values()) < 1e-3
    # Its small decoder makes pictures of its own, with a twelfth of the work.
    assert 10 * package["work"]["decode"]["flops"] < full["work"]["decode"]["flops"]
    # On a CPU with bfloat16 the package's networks run in it: 0.0013 on average measured, 0.0011 with 24 frames of 128 pixels.
    half = has_fast_bfloat16(torch.device("cpu"))
    assert max(mean for _, mean in full["differences"].values()) < (0.005 if half else 1e-4)


def test_no_time_no_rows(tmp_path: Path, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ("--model", str(model), "--frames", "1", "--size", "16", "--minutes", "0", "--only", "package")
    assert run(tmp_path, *given)["rows"] == []
    assert capsys.readouterr().out.count("not run: the 0 minutes are over") == 2


def test_a_row_that_fails_leaves_the_others(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [inference_rows.Row("reference"), inference_rows.Row("bad", steps=-1), inference_rows.Row("package")]
    monkeypatch.setattr(inference, "all_rows", lambda *_: rows)
    found = run(tmp_path, "--model", str(model), "--frames", "1", "--size", "16", "--steps", "1")["rows"]
    assert [row["row"] for row in found] == ["reference", "bad", "package"]
    assert "step" in found[1]["failed"]
    assert "| bad | failed: InputError" in capsys.readouterr().out


def test_options_are_found_by_inspection(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(
        name_or_path: str, *, device: str | None = None, fast: bool = False, level: Literal["a", "b"] | None = "a"
    ) -> None:
        """What a loader with two options looks like."""

    monkeypatch.setattr(inference_rows, "entry_points", lambda: (load,))
    assert inference_rows.find_options() == {"fast": (True,), "level": ("b",)}
    names = [row.name for row in inference_rows.all_rows("float32", CPU, joint=False)]
    assert {"reference", "package", "bfloat16", "fast=True", "level=b", "student of 1 steps"} <= set(names)
    assert inference_rows.JOINT not in names
    assert inference_rows.accepted(load, {"fast": True, "other": 1}) == {"fast": True}


def test_work_by_formula() -> None:
    def call() -> None:
        image = F.conv2d(torch.empty(2, 3, 8, 8), torch.empty(4, 3, 3, 3), padding=1)
        query, key = torch.empty(2, 1, 5, 8), torch.empty(2, 1, 7, 8)
        F.scaled_dot_product_attention(query, key, key)
        image.view(-1)
        torch.empty(6, 5) @ torch.empty(5, 4)

    work = counting.count_on_paper(call)
    convolution, attention, product = 2 * 2 * 4 * 64 * 27, 2 * 2 * 2 * 5 * 7 * 8, 2 * 6 * 5 * 4
    assert work.flops == convolution + attention + product
    with counting.Meter() as meter:
        F.scaled_dot_product_attention(*(torch.ones(2, 1, length, 8) for length in (5, 7, 7)))
    assert meter.work["all"].flops == attention


def test_published_sizes_cost_what_is_known() -> None:
    """The two networks that are quick to build: 26.8 TFLOP to encode 24 frames, 7.0 for 24 maps (2 digits are known)."""
    with torch.device("meta"):
        vae, encoder = SVD.vae().to("meta"), SVD.env_encoder().to("meta")
    encode = counting.count_on_paper(lambda: vae.encode(torch.empty(24, 3, 512, 512)))
    light = counting.count_on_paper(lambda: encoder(torch.empty(1, 24, 12, 64, 64)))
    assert encode.flops / 1e12 == pytest.approx(inference_paper.EXPECTED["encode"], abs=0.05)
    assert light.flops / 1e12 == pytest.approx(inference_paper.EXPECTED["light encoder"], abs=0.05)


def test_the_paper_table_knows_both_orders() -> None:
    text, rows = inference_paper.report(SMALL, 2, 16, 3, 1.2)
    by_name = {row["name"]: row for row in rows}
    assert by_name["light encoder"]["published"]["flops"] == 2 * by_name["light encoder"]["package"]["flops"]
    step = by_name["inverse step"]
    assert step["published"]["flops"] > step["package"]["flops"] > 0
    assert "3 steps, guidance 1.2" in text


def test_stages_add_up() -> None:
    class Vae:
        def encode(self, value: torch.Tensor) -> torch.Tensor:
            return value + 1

        decode = encode

    network, vae, stages = torch.nn.Linear(2, 2), Vae(), counting.Stages(CPU)
    expected = network(torch.ones(2))
    stages.watch(network, vae, None)
    seen: list[str] = []
    network.register_forward_hook(lambda *_: seen.append(stages.current))
    assert torch.equal(network(vae.encode(torch.zeros(2))), expected)
    seconds, calls = stages.take()
    assert calls == {"encode": 1, "denoise": 1, "decode": 0, "light": 0}
    assert seen == ["denoise"] and stages.current == "other" and seconds["denoise"] > 0
    assert sum(stages.take()[1].values()) == 0


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux can forget a process's largest memory")
def test_peak_memory_is_forgotten() -> None:
    memory = counting.PeakMemory(CPU)
    memory.reset()
    block = torch.ones(40_000_000)
    with_block = memory.read()
    del block
    memory.reset()
    assert with_block - memory.read() > 100e6


def test_the_rate_of_matrix_products() -> None:
    """No processor does less than a thousandth of, or more than a thousand times, 10 GFLOP/s."""
    assert 1e7 < counting.matrix_rate(CPU, torch.float32, seconds=0.01) < 1e13


def test_mistakes(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        inference.parse(["--frames", "0"])
    assert "expected --frames of at least 1, found 0" in capsys.readouterr().err
    if torch.cuda.is_available():
        with pytest.raises(InputError, match="clock"):
            inference.main(["--device", "cuda", "--clock", "cpu"])
