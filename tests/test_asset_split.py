"""Which assets are for training and which for testing, and the record of what a model was trained on."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from synthetic import synthetic_clip

from diffusion_renderer.core.errors import InputError
from diffusion_renderer.datagen.assets import AssetLibrary
from diffusion_renderer.datagen.assets.record import AssetRecord, read_records
from diffusion_renderer.datagen.assets.split import KINDS, TEST_SHARE, by_kind, from_kinds, named_assets, plain_name, split_of
from diffusion_renderer.datagen.generate import asset_library
from diffusion_renderer.datagen.settings import EVALUATION_SEED, EVALUATION_SEEDS, DatasetSettings
from diffusion_renderer.datagen.store.shards import write_samples
from diffusion_renderer.evaluation.leaks import assets_in, check_unseen, training_assets
from diffusion_renderer.training import TrainOptions, train
from diffusion_renderer.training.data import load_frames
from diffusion_renderer.training.export import PARTS, assemble, unpack
from diffusion_renderer.training.record import extend_record, read_record

TEST_PANORAMA, TRAIN_PANORAMA = "dancing_hall_1k", "noon_grass_1k"


def source(kind: str, name: str) -> dict[str, str]:
    return {"name": name, "kind": kind, "licence": "CC0-1.0", "author": ""}


def shards(folder: Path, *assets: tuple[str, str], seed: int = 1) -> Path:
    """A data set of one clip that names these assets and two procedural ones."""
    procedural = [source("procedural", "torus"), source("procedural", "procedural sunset")]
    meta = {"seed": seed, "assets": {"panorama": "procedural sunset", "sources": [*procedural, *(source(*a) for a in assets)]}}
    write_samples(folder, [replace(synthetic_clip(0, frames=2), meta=meta)], progress=False)
    return folder


# --- the split --------------------------------------------------------------------------------------------------------


def test_the_split_never_changes() -> None:
    """Models that were trained by it, and scores that were published with it, depend on these."""
    assert split_of("panorama", "dancing_hall_1k") == "test" and split_of("panorama", "noon_grass_1k") == "train"
    assert split_of("model", "lowpoly_earth") == "test" and split_of("model", "khronos_avocado") == "train"
    assert split_of("material", "ambientcg_Rock053") == "test" and split_of("material", "materialx_brick") == "train"


@pytest.mark.parametrize(
    "same",
    [
        ("studio", "Studio", "a/b/studio", "studio.hdr", "STUDIO_4k.exr", "studio-16k"),
        ("rock020", "Rock020_1K-JPG", "ambientCG/Rock020_2K-PNG"),
        ("chair", "chair/scene", "sketchfab/Chair/scene.gltf", "chair/meshes/model.obj", "chair_1k.gltf"),
    ],
)
def test_only_the_asset_itself_counts(same: tuple[str, ...]) -> None:
    assert {plain_name(name) for name in same} == {same[0]}
    assert all(len({split_of(kind, name) for name in same}) == 1 for kind in KINDS)


def test_files_of_one_name_in_folders_of_their_own_are_told_apart() -> None:
    names = [f"model{index}/scene.gltf" for index in range(60)]
    assert {split_of("model", name) for name in names} == {"train", "test"}
    assert plain_name("scene") == "scene"


@pytest.mark.parametrize("kind", KINDS)
def test_a_fifth_is_for_testing(kind: str) -> None:
    names = [f"asset-{index:x}" for index in range(4000)]
    share = sum(split_of(kind, name) == "test" for name in names) / len(names)
    # Four standard errors of a share of 4,000 draws: 0.025. Seen: 0.197 to 0.204.
    assert share == pytest.approx(TEST_SHARE, abs=0.025)


# --- the library ------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Assets that are listed and never opened."""
    files = ["models/lowpoly_earth.glb", "models/khronos_avocado.glb", "hdri/dancing_hall_1k.hdr", "hdri/noon_grass_1k.hdr"]
    files += ["materials/ambientcg_Rock053/basecolor.png", "materials/materialx_brick/basecolor.png"]
    for name in files:
        path = tmp_path / "assets" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    return tmp_path / "assets"


def test_a_library_lists_its_split_only(folder: Path) -> None:
    test = AssetLibrary.from_folder(folder, split="test")
    listed = (test.model_names, test.material_names, test.panorama_names)
    assert listed == (("lowpoly_earth",), ("ambientcg_Rock053",), ("dancing_hall_1k",))
    train = AssetLibrary.from_folder(folder, split="train")
    listed = (train.model_names, train.material_names, train.panorama_names)
    assert listed == (("khronos_avocado",), ("materialx_brick",), ("noon_grass_1k",))
    both = AssetLibrary.from_folder(folder)
    assert len(both.model_names) == len(both.material_names) == len(both.panorama_names) == 2
    assert len({json.dumps(library.to_json()) for library in (test, train, both)}) == 3
    with pytest.raises(InputError, match="name of a model"):
        test.model("khronos_avocado")


def test_the_settings_decide_the_library(folder: Path) -> None:
    settings = DatasetSettings(panoramas=folder / "hdri", split="test")
    assert settings.to_json()["split"] == "test" and DatasetSettings().to_json()["split"] == "all"
    assert asset_library(settings).panorama_names == ("dancing_hall_1k",)
    assert asset_library(replace(settings, split="train")).panorama_names == ("noon_grass_1k",)
    with pytest.raises(InputError, match="did you mean test"):
        DatasetSettings(split="tests")


def test_a_folder_without_an_asset_of_the_split_is_refused(folder: Path) -> None:
    (folder / "models/lowpoly_earth.glb").unlink()
    with pytest.raises(InputError, match=r"a model of the split test in .*models; found none among 1.*leave the folder out"):
        AssetLibrary.from_folder(folder, split="test")


# --- what a clip names ------------------------------------------------------------------------------------------------


def test_the_assets_of_a_clip() -> None:
    named = [source("model", "fox"), source("procedural", "torus"), source("panorama", "street_1k")]
    assert named_assets({"assets": {"panorama": "street_1k", "sources": named}}) == {
        ("model", "fox"),
        ("panorama", "street_1k"),
    }
    # As clips were described before there were sources; their procedural panoramas are called so.
    assert named_assets({"seed": 1, "assets": {"panorama": "street_1k.hdr"}}) == {("panorama", "street_1k.hdr")}
    assert named_assets({"seed": 1, "assets": {"panorama": "procedural sunset"}}) == frozenset()
    # A clip of a public data set.
    assert named_assets({"dataset": "hypersim"}) == frozenset()


def test_assets_as_json_and_back() -> None:
    assets = frozenset({("model", "b"), ("model", "a"), ("panorama", "c")})
    assert by_kind(assets) == {"model": ["a", "b"], "material": [], "panorama": ["c"]}
    assert from_kinds(json.loads(json.dumps(by_kind(assets)))) == assets


# --- the record of a training -----------------------------------------------------------------------------------------


def test_frames_know_their_assets_also_from_the_cache(tmp_path: Path) -> None:
    data = (shards(tmp_path / "a", ("model", "fox")), shards(tmp_path / "b", ("model", "fox"), ("panorama", "x")))
    wanted = {("model", "fox"), ("panorama", "x")}
    assert load_frames(data, tmp_path / "cache").assets == wanted
    assert load_frames(data, tmp_path / "cache").assets == wanted
    # A cache from before there was such a list.
    for path in (tmp_path / "cache").glob("*.json"):
        path.unlink()
    assert load_frames(data, tmp_path / "cache").assets == wanted


def test_every_evaluation_seed_is_refused_also_from_a_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert EVALUATION_SEED in EVALUATION_SEEDS and len(EVALUATION_SEEDS) == 3
    for seed in EVALUATION_SEEDS:
        with pytest.raises(InputError, match="evaluation seed"):
            load_frames((shards(tmp_path / str(seed), seed=seed),), tmp_path / "cache")
    # Cached when the seed was not yet one of an evaluation.
    data = (shards(tmp_path / "old", seed=5),)
    load_frames(data, tmp_path / "cache")
    monkeypatch.setattr("diffusion_renderer.training.data.loading.EVALUATION_SEEDS", frozenset({5}))
    with pytest.raises(InputError, match="evaluation seed"):
        load_frames(data, tmp_path / "cache")


def test_a_stage_records_its_assets_over_all_its_runs(tmp_path: Path) -> None:
    run = tmp_path / "run"
    for step, asset in enumerate((("model", "fox"), ("panorama", "street")), 1):
        data = (shards(tmp_path / f"data{step}", asset),)
        train("vae", TrainOptions(data=data, out=run, max_steps=step, batch=2, sheet_steps=0, precision="fp32"))
    assert read_record(run / "vae") == AssetRecord(frozenset({("model", "fox"), ("panorama", "street")}))
    assemble(run, tmp_path / "model")
    entry = json.loads((tmp_path / "model/training.json").read_text())["vae"]
    assert entry["step"] == 2 and entry["assets_complete"] is True
    assert entry["assets"] == {"model": ["fox"], "material": [], "panorama": ["street"]}


def test_a_stage_trained_before_there_were_records_is_not_complete(tmp_path: Path) -> None:
    (tmp_path / "inverse" / "checkpoint").mkdir(parents=True)
    more = AssetRecord(frozenset({("model", "fox")}))
    assert extend_record(tmp_path / "inverse", more) == replace(more, complete=False)
    assert extend_record(tmp_path / "forward", more) == more
    (tmp_path / "forward/assets.json").write_text("[")
    with pytest.raises(InputError, match="a list of assets"):
        extend_record(tmp_path / "forward", more)


def a_model(folder: Path, **records: AssetRecord | None) -> Path:
    """A model folder without weights; a stage of None has no record."""
    for part in PARTS:
        (folder / part).mkdir(parents=True)
    entries = {stage: {"step": 3} | ({} if record is None else record.to_json()) for stage, record in records.items()}
    (folder / "training.json").write_text(json.dumps(entries))
    return folder


def test_other_weights_bring_their_record(tmp_path: Path) -> None:
    fox, street = AssetRecord(frozenset({("model", "fox")})), AssetRecord(frozenset({("panorama", "street")}))
    model = a_model(tmp_path / "model", vae=fox, inverse=fox, forward=None)
    unpack(model, tmp_path / "run")
    assert extend_record(tmp_path / "run/inverse", street) == fox | street
    assert extend_record(tmp_path / "run/forward", street) == replace(street, complete=False)
    unpack(model, tmp_path / "run")  # nothing is copied twice, and nothing forgotten
    assert read_record(tmp_path / "run/inverse") == fox | street
    assert read_records(tmp_path / "model")["forward"] == AssetRecord(complete=False)


# --- leaks ------------------------------------------------------------------------------------------------------------


def test_a_model_is_refused_on_what_it_was_trained_on(tmp_path: Path) -> None:
    seen = AssetRecord(frozenset({("model", "fox"), ("panorama", "street_1k"), ("model", "lamp")}))
    model = a_model(tmp_path / "model", vae=AssetRecord(), inverse=AssetRecord(), forward=seen)
    clips = shards(tmp_path / "data", ("panorama", "hdris/Street_4k"), ("model", "fox"), ("model", "car"))
    for folder in (model, model / "forward"):
        folder.joinpath("unet").mkdir(exist_ok=True) if folder.name == "forward" else None
        with pytest.raises(InputError, match="found model fox, panorama hdris/Street_4k; ") as error:
            check_unseen(folder, assets_in(clips))
        assert "car" not in str(error.value) and "--split train" in str(error.value)
    assert check_unseen(model, {("model", "car"), ("material", "fox")}) is None
    many = frozenset(("model", f"m{index}") for index in range(12))
    with pytest.raises(InputError, match="and 2 more"):
        check_unseen(a_model(tmp_path / "many", vae=AssetRecord(many)), many)


def test_what_is_not_known_is_a_note(tmp_path: Path) -> None:
    asset = {("model", "fox")}
    for model in (tmp_path, a_model(tmp_path / "a", vae=None), a_model(tmp_path / "b", vae=AssetRecord(complete=False))):
        assert "may have seen" in (note := check_unseen(model, asset)) or "unknown" in note
    assert "unknown" in check_unseen("svd", asset)
    assert "(forward)" in check_unseen(a_model(tmp_path / "c", vae=AssetRecord(), forward=None), asset)
    # Known assets are refused even where others are not known.
    with pytest.raises(InputError, match="model fox"):
        check_unseen(a_model(tmp_path / "d", vae=None, forward=AssetRecord(frozenset(asset), complete=False)), asset)
    # Procedural clips name no asset, so there is nothing to ask.
    assert check_unseen(tmp_path, assets_in(shards(tmp_path / "data"))) is None
    (tmp_path / "a" / "training.json").write_text("{")
    with pytest.raises(InputError, match="a training record in"):
        check_unseen(tmp_path / "a", asset)


def test_training_assets_among_clips_are_named() -> None:
    assert training_assets({("panorama", TEST_PANORAMA), ("model", "lowpoly_earth")}) is None
    note = training_assets({("panorama", TEST_PANORAMA), ("panorama", TRAIN_PANORAMA)})
    assert TRAIN_PANORAMA in note and TEST_PANORAMA not in note


def test_a_folder_without_shards_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="shard-"):
        assets_in(tmp_path)
    (tmp_path / "shard-000000.tar").write_bytes(b"not a tar file")
    with pytest.raises(InputError, match="a whole shard"):
        assets_in(tmp_path)
