"""Means over clips, their intervals, and paired comparisons."""

import math
from itertools import product

import numpy as np
import pytest

from diffusion_renderer.evaluation.metrics import PSNR, RMSE
from diffusion_renderer.evaluation.results import Figure
from diffusion_renderer.evaluation.statistics import (
    ClipValues,
    compare,
    interval,
    overlap,
    sign_flip_test,
    summarise,
)


def figure(system, clip, value, light="", **more):
    return Figure(system, clip, light, "rgb", "PSNR", value, **more)


def test_a_clip_counts_once_however_many_lights_it_has():
    figures = [figure("a", "one", value, f"light {i}") for i, value in enumerate((10.0, 20.0, 30.0))]
    figures.append(figure("a", "two", 40.0, "light 0"))
    values = ClipValues(figures)
    assert values.of("a", "rgb", "PSNR") == {"one": 20.0, "two": 40.0}
    assert values.summary("a", "rgb", "PSNR").mean == 30.0
    assert values.of("a", "rgb", "PSNR", light="light 0") == {"one": 10.0, "two": 40.0}
    assert values.lights == ("light 0", "light 1", "light 2") and values.clips == ("one", "two")


@pytest.mark.parametrize("bad", [{"value": math.nan}, {"value": math.inf}, {"value": 20.0, "failure": "no frame 3"}])
def test_a_failed_light_fails_its_clip_and_is_counted(bad):
    figures = [figure("a", "one", 10.0, "x"), figure("a", "one", light="y", **bad), figure("a", "two", 30.0, "x")]
    summary = ClipValues(figures).summary("a", "rgb", "PSNR")
    assert (summary.mean, summary.clips, summary.failed) == (30.0, 1, 1)


def test_leaving_a_clip_or_a_light_out_is_a_failure_but_an_unasked_column_is_not():
    figures = [figure("a", clip, 10.0, light) for clip in ("one", "two") for light in ("x", "y")]
    figures += [figure("b", "two", 30.0, "x"), figure("c", "one", 1.0, "x"), figure("c", "one", 3.0, "y")]
    values = ClipValues(figures)
    b, c = values.summary("b", "rgb", "PSNR"), values.summary("c", "rgb", "PSNR")
    assert (b.clips, b.failed) == (0, 2) and math.isnan(b.mean) and b.asked
    assert (c.clips, c.failed, c.mean) == (1, 1, 2.0)
    assert not values.summary("d", "rgb", "PSNR").asked
    assert not values.summary("a", "normal", "PSNR").asked


def test_parts_are_kept_apart():
    figures = [figure("a", "one", 10.0), figure("a", "one", 20.0, part="metal"), figure("a", "two", 30.0)]
    values = ClipValues(figures)
    assert values.parts == ("all", "metal")
    assert values.summary("a", "rgb", "PSNR").mean == 20.0
    metal = values.summary("a", "rgb", "PSNR", "metal")
    assert (metal.mean, metal.clips, metal.failed) == (20.0, 1, 0)  # no metal in clip two: nobody has a figure there


def test_the_interval_holds_the_true_mean_about_as_often_as_it_says():
    generator = np.random.default_rng(0)
    hits = 0
    for _ in range(400):
        low, high = interval(generator.exponential(size=30))  # skewed, as errors of clips are
        hits += low <= 1.0 <= high
    # 0.92 over 2,000 trials; a 95 % interval of 400 trials around that is 0.89 to 0.95.
    assert 0.88 < hits / 400 < 0.98


def test_the_interval_is_that_of_the_normal_distribution_for_many_clips():
    values = np.random.default_rng(1).normal(5.0, 2.0, size=400)
    low, high = interval(values)
    half = 1.96 * values.std(ddof=1) / 20
    # Bootstrap noise of 2,000 resamples: 4 % of the half width measured here.
    assert abs(low - (values.mean() - half)) < 0.1 * half and abs(high - (values.mean() + half)) < 0.1 * half


def test_the_interval_follows_a_skewed_sample():
    values = np.random.default_rng(2).exponential(size=25) ** 2
    low, high = interval(values)
    assert high - values.mean() > 1.3 * (values.mean() - low)  # 1.9 here; a symmetric interval has 1
    low, high = interval(-values)
    assert values.mean() - (-high) > 0 and (-values.mean()) - low > 1.3 * (high + values.mean())


def test_intervals_are_deterministic_and_none_is_made_of_few_clips():
    values = np.random.default_rng(3).normal(size=12)
    assert interval(values) == interval(values.copy())
    assert all(math.isnan(bound) for bound in interval(values[:4]))
    assert all(math.isfinite(bound) for bound in interval(values[:5]))
    summary = summarise([1.0, 2.0, math.nan])
    assert (summary.mean, summary.clips, summary.failed) == (1.5, 2, 1) and math.isnan(summary.low)
    assert summarise([]).clips == 0 and math.isnan(summarise([]).mean)


@pytest.mark.parametrize("value", [0.0, 0.1, -37.3])
def test_equal_values_have_an_interval_of_one_point(value):
    low, high = interval(np.full(7, value))
    assert low == pytest.approx(value, abs=1e-12) and high == pytest.approx(value, abs=1e-12)


def test_one_odd_clip_does_not_break_the_interval():
    low, high = interval(np.array([1.0] * 9 + [2.0]))
    assert 1.0 <= low < 1.1 < high <= 1.5


def test_a_comparison_uses_the_clips_on_which_both_have_a_value():
    first = {"a": 21.0, "b": 25.0, "c": math.nan, "d": 30.0, "e": 10.0}
    second = {"a": 20.0, "b": 25.0, "c": 10.0, "d": math.nan, "f": 10.0}
    found = compare(first, second, PSNR)
    assert (found.clips, found.wins, found.difference) == (2, 1, 0.5)  # equal is no win
    assert compare(first, second, RMSE).wins == 0
    nothing = compare({"a": 1.0}, {"b": 1.0}, PSNR)
    assert nothing.clips == 0 and math.isnan(nothing.difference) and math.isnan(nothing.p_value)


def test_pairing_finds_what_the_intervals_hide():
    generator = np.random.default_rng(4)
    hard = generator.normal(25, 5, size=30)  # how hard the clips are, which both systems share
    first = {f"{i}": value for i, value in enumerate(hard + 0.3 + generator.normal(0, 0.2, size=30))}
    second = {f"{i}": value for i, value in enumerate(hard)}
    assert overlap(summarise(list(first.values())), summarise(list(second.values())))
    found = compare(first, second, PSNR)
    assert found.low > 0 and found.p_value < 0.001 and found.wins > 24
    assert not overlap(summarise(list(first.values())), summarise([value + 100 for value in first.values()]))
    assert not overlap(summarise([1.0]), summarise([1.0]))  # no interval, no claim


def test_the_sign_flip_test_is_the_share_of_all_sign_patterns():
    differences = np.array([0.5, -0.2, 1.1, 0.9, 0.3])
    sums = [abs(sum(s * d for s, d in zip(signs, differences, strict=True))) for signs in product((1, -1), repeat=5)]
    expected = sum(total >= abs(differences.sum()) - 1e-12 for total in sums) / 32
    assert sign_flip_test(differences) == pytest.approx(expected)
    assert sign_flip_test(np.ones(6)) == pytest.approx(2 / 64)
    assert sign_flip_test(np.zeros(6)) == 1.0


def test_random_flips_agree_with_all_of_them():
    differences = np.random.default_rng(5).normal(0.4, 1.0, size=14)
    patterns = np.array(list(product((1, -1), repeat=14)))
    exact = (np.abs(patterns @ differences) >= abs(differences.sum()) - 1e-12).mean()
    # 10,000 draws: standard error at most 0.005; 0.002 measured.
    assert sign_flip_test(differences) == pytest.approx(exact, abs=0.02)
    assert sign_flip_test(differences) == sign_flip_test(-differences)
    assert 0 < sign_flip_test(np.ones(40)) < 0.001


def test_the_sign_flip_test_rarely_finds_a_difference_where_there_is_none():
    generator = np.random.default_rng(6)
    p_values = np.array([sign_flip_test(generator.standard_t(3, size=10)) for _ in range(300)])
    # 5 % are expected; 300 trials have a standard error of 1.3 %.
    assert (p_values <= 0.05).mean() < 0.09
