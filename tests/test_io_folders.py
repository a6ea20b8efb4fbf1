"""Folders of frames and of clips, output layout, atomic writing."""

import json
import os

import pytest
import torch

from diffusion_renderer.core.errors import InputError
from diffusion_renderer.core.types import Clip, GBuffer
from diffusion_renderer.io import atomic_path, iter_frames, list_clips, read_clip, write_clip, write_image
from diffusion_renderer.io.layout import natural_key


def grey(value: float, height: int = 4, width: int = 6) -> torch.Tensor:
    return torch.full((3, height, width), value)


def frames_in(folder, values, name="{}.png"):
    for index, value in enumerate(values):
        write_image(folder / name.format(index), grey(value))


def shades(clip: Clip) -> list[float]:
    return [round(float(frame.mean()), 1) for frame in clip.frames]


def test_frames_are_in_natural_order(tmp_path):
    for index in (10, 9, 1):
        write_image(tmp_path / "shot" / f"frame{index}.png", grey(index / 10))
    clip = read_clip(tmp_path / "shot")
    assert shades(clip) == [0.1, 0.9, 1.0] and clip.name == "shot" and clip.fps == 24
    assert shades(read_clip(tmp_path / "shot", frames=2)) == [0.1, 0.9]
    assert len(list(iter_frames(tmp_path / "shot"))) == 3


def test_natural_key_compares_numbers_and_words():
    assert sorted(["b2", "b10", "a", "B1", "7"], key=natural_key) == ["7", "a", "B1", "b2", "b10"]


def test_only_rgb_is_read_where_names_follow_the_convention(tmp_path):
    frames_in(tmp_path, [0.2, 0.4], "000{}.rgb.png")
    frames_in(tmp_path, [0.9, 0.9], "000{}.basecolor.png")
    assert shades(read_clip(tmp_path)) == [0.2, 0.4]


def test_a_folder_of_buffers_alone_is_no_clip(tmp_path):
    frames_in(tmp_path, [0.9, 0.9], "000{}.basecolor.png")
    with pytest.raises(InputError, match=r"G-buffers but no \.rgb\. frames"):
        read_clip(tmp_path)


def test_frames_of_different_sizes_are_refused(tmp_path):
    frames_in(tmp_path, [0.2, 0.4])
    write_image(tmp_path / "2.png", grey(0.5, 4, 7))
    with pytest.raises(InputError, match=r"6x4 in 0\.png and 7x4 in 2\.png"):
        read_clip(tmp_path)


def test_grey_and_colour_frames_may_mix(tmp_path):
    write_image(tmp_path / "0.png", torch.full((1, 4, 6), 0.2))
    write_image(tmp_path / "1.png", grey(0.4))
    assert read_clip(tmp_path).frames.shape == (2, 3, 4, 6)


def test_a_folder_of_clips_lists_them_all(tmp_path):
    frames_in(tmp_path / "shots" / "b10", [0.1])
    frames_in(tmp_path / "shots" / "b9", [0.2])
    frames_in(tmp_path / "shots" / "deeper" / "c", [0.3])
    Clip(grey(0.5)[None]).write(tmp_path / "shots" / "a.mp4")
    (tmp_path / "shots" / "empty").mkdir()
    (tmp_path / "shots" / "notes.txt").write_text("not a clip")
    assert [path.name for path in list_clips(tmp_path / "shots")] == ["a.mp4", "b9", "b10", "c"]
    with pytest.raises(InputError, match=r"4 clips: a\.mp4, b9, b10, c"):
        read_clip(tmp_path / "shots")
    assert list_clips(tmp_path / "shots" / "b9") == [tmp_path / "shots" / "b9"]
    assert shades(read_clip(tmp_path / "shots" / "deeper")) == [0.3]  # the only clip below
    assert list_clips(tmp_path / "shots" / "a.mp4") == [tmp_path / "shots" / "a.mp4"]


def test_hidden_files_are_passed_over(tmp_path):
    frames_in(tmp_path, [0.2])
    (tmp_path / ".0001.part-1-ab.png").write_bytes(b"half a file")
    assert len(read_clip(tmp_path)) == 1


@pytest.mark.parametrize("read", [read_clip, list_clips])
def test_nothing_there_is_said_plainly(tmp_path, read):
    with pytest.raises(InputError, match="zero frames"):
        read(tmp_path)
    with pytest.raises(InputError, match="nothing there"):
        read(tmp_path / "absent")


def test_a_clip_is_written_in_all_formats_and_read_back(tmp_path):
    clip = Clip(torch.stack([grey(0.2), grey(0.6), grey(1.0)]), fps=12.5, name="shot")
    folder = write_clip(clip, tmp_path, formats=("png", "exr", "mp4"))
    assert folder == tmp_path / "shot"
    written = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()}
    expected = {f"shot/{index:04d}.rgb.{suffix}" for index in range(3) for suffix in ("png", "exr")}
    assert written == expected | {"shot.rgb.mp4", "shot/clip.json"}
    for path in (tmp_path / "shot" / "0002.rgb.exr", tmp_path / "shot.rgb.mp4"):
        assert read_clip(path).frames[0].mean() > 0.1
    for path in (tmp_path / "shot").glob("*.exr"):
        path.unlink()
    back = read_clip(tmp_path / "shot")
    assert torch.allclose(back.frames, clip.frames, atol=0.002)  # 8 bits round by 1/510
    assert (back.fps, back.name) == (12.5, "shot")
    assert read_clip(tmp_path / "shot.rgb.mp4").name == "shot"


def test_notes_beside_frames_are_kept_and_nonsense_in_them_is_survived(tmp_path):
    (tmp_path / "clip").mkdir()
    notes = tmp_path / "clip" / "clip.json"
    notes.write_text('{"seed": 3, "fps": "fast"}')
    frames_in(tmp_path / "clip", [0.5])
    assert read_clip(tmp_path / "clip").fps == 24
    write_clip(Clip(grey(0.5)[None], fps=10), tmp_path)
    assert json.loads(notes.read_text()) == {"seed": 3, "fps": 10}


def test_one_frame_to_an_image_and_several_not(tmp_path):
    clip = Clip(torch.stack([grey(0.2), grey(0.6)]))
    assert clip[:1].write(tmp_path / "still.png").is_file()
    with pytest.raises(InputError, match="one frame"):
        clip.write(tmp_path / "still.jpg")
    with pytest.raises(InputError, match=r"did you mean png\?"):
        write_clip(clip, tmp_path, formats=("pgn",))


@pytest.mark.parametrize("target", ["out", "out/a.mp4", "out/a.png", "out/a.exr"])
def test_an_output_that_cannot_be_written_is_an_input_error(tmp_path, target):
    (tmp_path / "file").write_text("in the way")
    clip = Clip(grey(0.5)[None])
    with pytest.raises(InputError, match="a writable place"):
        clip.write(tmp_path / "file" / target)
    with pytest.raises(InputError, match="a writable place"):
        GBuffer(roughness=torch.zeros(1, 1, 2, 2)).write(tmp_path / "file" / target)


def test_nothing_appears_under_its_name_before_it_is_complete(tmp_path):
    target = tmp_path / "new" / "a.bin"
    with pytest.raises(KeyboardInterrupt), atomic_path(target) as temporary:
        temporary.write_bytes(b"half")
        assert temporary.parent == target.parent and temporary.suffix == ".bin"
        raise KeyboardInterrupt
    assert list(target.parent.iterdir()) == []
    with atomic_path(target) as temporary:
        temporary.write_bytes(b"whole")
        assert not target.exists()
    assert target.read_bytes() == b"whole" and os.listdir(target.parent) == ["a.bin"]


def test_a_failed_write_leaves_the_old_file(tmp_path):
    target = tmp_path / "a.bin"
    target.write_bytes(b"old")
    with pytest.raises(ZeroDivisionError), atomic_path(target) as temporary:
        temporary.write_bytes(b"new")
        raise ZeroDivisionError
    assert target.read_bytes() == b"old"


def test_a_video_interrupted_while_writing_leaves_nothing(tmp_path):
    from diffusion_renderer.io import write_video

    def frames():
        yield grey(0.5)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_video(tmp_path / "a.mp4", frames(), 24)
    assert list(tmp_path.iterdir()) == []
