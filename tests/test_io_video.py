"""Videos: colour, rotation, sizes, damage."""

import struct

import av
import numpy as np
import pytest
import torch
from PIL import Image

from diffusion_renderer.core.errors import InputError
from diffusion_renderer.core.types import Clip
from diffusion_renderer.io import iter_frames, read_clip, write_clip
from diffusion_renderer.io.video import VIDEO_SUFFIXES


def ramps(frames: int = 6, height: int = 64, width: int = 96) -> torch.Tensor:
    """A smooth, colourful, moving picture: chroma subsampling costs it little."""
    y, x = torch.meshgrid(torch.linspace(0, 1, height), torch.linspace(0, 1, width), indexing="ij")
    return torch.stack([torch.stack((x, y, (x + i / frames) / 2)) for i in range(frames)])


def noise(frames: int) -> torch.Tensor:
    """Hard to compress, so that damage in the middle of the file hits a frame in the middle."""
    return torch.rand(frames, 3, 64, 64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv"])
def test_a_clip_comes_back_from_a_video(tmp_path, suffix):
    clip = Clip(ramps(), fps=30000 / 1001, name="shot")
    path = clip.write(tmp_path / f"a{suffix}")
    back = read_clip(path)
    assert back.frames.shape == clip.frames.shape and back.name == "a"
    assert abs(back.fps - clip.fps) < 1e-3
    # Measured: mean 0.0025, largest 0.022; 4:2:0 and 8 bits cost most of it.
    assert (back.frames - clip.frames).abs().mean() < 0.006
    assert (back.frames - clip.frames).abs().max() < 0.04


@pytest.mark.parametrize("colour", [(1, 0, 0), (0, 1, 0), (0, 0, 1), (0.5, 0.5, 0.5), (1, 1, 1), (0, 0, 0)])
def test_flat_colours_are_exact_and_really_bt709(tmp_path, colour):
    rgb = torch.tensor(colour, dtype=torch.float32)
    path = Clip(rgb.view(1, 3, 1, 1).expand(2, 3, 32, 32)).write(tmp_path / "a.mp4")
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        frame = next(container.decode(stream))
        assert (frame.format.name, frame.colorspace, frame.color_range) == ("yuv420p", 1, 1)
        assert (stream.codec_context.color_primaries, stream.codec_context.color_trc) == (1, 1)
        luma = frame.to_ndarray()[0, 0]
    # The standard's own formula, limited range.
    assert abs(luma - (16 + 219 * float(rgb @ torch.tensor([0.2126, 0.7152, 0.0722])))) <= 1
    # One step of luma and two of chroma: 0.016 at most.
    assert (read_clip(path).frames[0] - rgb.view(3, 1, 1)).abs().max() < 0.016


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 40), (37, 21), (36, 21)])
def test_odd_sizes_grow_by_a_pixel(tmp_path, height, width):
    path = Clip(ramps(2, height, width)).write(tmp_path / "a.mp4")
    assert read_clip(path).size == (width + width % 2, height + height % 2)


def test_a_limit_of_frames(tmp_path):
    path = Clip(ramps(5)).write(tmp_path / "a.mp4")
    assert len(read_clip(path, frames=3)) == 3
    assert len(read_clip(path, frames=50)) == 5
    with pytest.raises(InputError, match="1 or more"):
        read_clip(path, frames=0)


def test_frames_can_be_streamed(tmp_path):
    path = Clip(ramps(4)).write(tmp_path / "a.mp4")
    assert torch.equal(torch.stack(list(iter_frames(path))), read_clip(path).frames)


def test_gif_with_transparency_lies_over_black(tmp_path):
    frames = []
    for index in range(3):
        image = Image.new("RGBA", (16, 8), (0, 0, 0, 0))
        image.paste((255, 255, 255, 255), (index * 4, 0, index * 4 + 4, 8))
        frames.append(image)
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:], duration=100, disposal=2, loop=0)
    clip = read_clip(tmp_path / "a.gif")
    assert clip.frames.shape == (3, 3, 8, 16) and abs(clip.fps - 10) < 0.1
    for index in range(3):
        assert clip.frames[index, 0, 0].nonzero().flatten().tolist() == list(range(index * 4, index * 4 + 4))


def test_webm_is_read(tmp_path):
    with av.open(str(tmp_path / "a.webm"), "w") as container:
        stream = container.add_stream("libvpx-vp9", rate=25)
        stream.width, stream.height, stream.pix_fmt = 32, 16, "yuv420p"
        for _ in range(3):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.full((16, 32, 3), 128, np.uint8), format="rgb24")))
        container.mux(stream.encode())
    clip = read_clip(tmp_path / "a.webm")
    assert clip.frames.shape == (3, 3, 16, 32) and clip.fps == 25
    assert (clip.frames - 128 / 255).abs().max() < 0.02


@pytest.mark.parametrize("turn", [90, 180, 270])
def test_a_turned_phone_video_is_righted(tmp_path, turn):
    # The top left corner is white; clockwise quarter turns bring it to the top right, bottom right, bottom left.
    image = torch.zeros(2, 3, 32, 48)
    image[..., :16, :16] = 1
    path = Clip(image).write(tmp_path / "a.mp4")
    path.write_bytes(_with_rotation(path.read_bytes(), turn))
    frame = read_clip(path).frames[0, 0]
    assert torch.allclose(frame, torch.rot90(image[0, 0], k=-turn // 90), atol=0.1)


def _with_rotation(data: bytes, clockwise: int) -> bytes:
    """Patch the matrix of the track header (ISO 14496-12): (a b u, c d v, x y w), 16.16 fixed point."""
    matrix = {90: (0, 1, -1, 0), 180: (-1, 0, 0, -1), 270: (0, -1, 1, 0)}[clockwise]
    a, b, c, d = (value << 16 for value in matrix)
    start = data.index(b"tkhd") + 4 + 4 + 20 + 8 + 8
    return data[:start] + struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30) + data[start + 36 :]


def test_ten_bit_video_keeps_its_bits(tmp_path):
    with av.open(str(tmp_path / "a.mkv"), "w") as container:
        stream = container.add_stream("ffv1", rate=24)
        stream.width, stream.height, stream.pix_fmt = 64, 2, "gray10le"
        pixels = np.repeat(np.arange(64, dtype=np.uint16)[None] + 500, 2, axis=0)
        container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="gray10le")))
        container.mux(stream.encode())
    # 64 neighbouring levels of ten bits would collapse to 16 or 17 in eight.
    assert len(read_clip(tmp_path / "a.mkv").frames.unique()) > 40


@pytest.mark.parametrize("damage", ["zeros", "noise", "cut"])
def test_damage_in_the_middle_names_the_frame(tmp_path, damage):
    path = Clip(noise(24)).write(tmp_path / "a.mp4")
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    if damage == "cut":
        data = data[:middle]
    else:
        data[middle : middle + 4000] = bytes(4000) if damage == "zeros" else np.random.default_rng(0).bytes(4000)
    path.write_bytes(bytes(data))
    with pytest.raises(InputError, match=r"damage at frame \d+") as error:
        read_clip(path)
    good = int(error.value.advice.rpartition("--frames ")[2])
    assert 6 <= good <= 18
    assert len(read_clip(path, frames=good)) == good  # the advice works


def test_a_video_cut_between_two_frames_is_noticed(tmp_path):
    path = Clip(noise(8)).write(tmp_path / "a.mp4")
    with av.open(str(path)) as container:
        last = max(container.streams.video[0].index_entries, key=lambda entry: entry.pos)
        position = last.pos
    path.write_bytes(path.read_bytes()[:position])
    with pytest.raises(InputError, match="damage at frame"):
        read_clip(path)


@pytest.mark.parametrize(
    "content", [b"", b"not a video", b"\x00\x00\x00\x18ftypmp42" + bytes(500)], ids=["empty", "text", "header"]
)
@pytest.mark.parametrize("suffix", VIDEO_SUFFIXES[:4])
def test_no_video_is_refused_in_one_line(tmp_path, content, suffix):
    path = tmp_path / f"a{suffix}"
    path.write_bytes(content)
    with pytest.raises(InputError) as error:
        read_clip(path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_sound_alone_is_no_video(tmp_path):
    with av.open(str(tmp_path / "a.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=44100)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 44100
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    with pytest.raises(InputError, match="no video track"):
        read_clip(tmp_path / "a.mp4")


def test_writing_refuses_what_it_cannot_do(tmp_path):
    clip = Clip(ramps(2))
    for name in ("a.gif", "a.webm"):
        with pytest.raises(InputError, match=r"\.mp4"):
            write_clip(clip, tmp_path / name)
    with pytest.raises(InputError, match="zero frames"):
        write_clip(clip[:0], tmp_path / "a.mp4")
    with pytest.raises(InputError, match="frames per second"):
        write_clip(Clip(ramps(2), fps=0.0), tmp_path / "a.mp4")
    assert list(tmp_path.iterdir()) == []


def test_shared_videos_are_read(shared):
    videos = sorted((shared / "assets" / "videos").glob("*.mp4"))
    assert videos
    for video in videos:
        clip = read_clip(video, frames=2)
        assert len(clip) == 2 and 20 < clip.fps < 40 and clip.frames.std() > 0.05
