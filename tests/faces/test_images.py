import errno
import gc
import io
import os
from pathlib import Path

import numpy as np
import pytest
from conftest import reason_of
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile
from skimage import data

from agelib import AgelibError
from agelib.faces.images import Rejected, read_image

RED, BLUE = (255, 0, 0), (0, 0, 255)


def encoded(image, form, **options):
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def plain(mode, colour, size=(24, 16)):
    return Image.new(mode, size, colour)


# Reading


def test_a_path_and_its_bytes_give_the_same(tmp_path, rng):
    pixels = rng.integers(0, 255, (20, 30, 3), np.uint8)
    path = tmp_path / "noise.png"
    Image.fromarray(pixels).save(path)
    assert (read_image(path) == pixels).all()
    assert (read_image(path.read_bytes()) == pixels).all()


@pytest.mark.parametrize(
    ("orientation", "store"),
    [
        (1, lambda image: image),
        (2, lambda image: image[:, ::-1]),
        (3, lambda image: np.rot90(image, 2)),
        (6, lambda image: np.rot90(image, 1)),
        (8, lambda image: np.rot90(image, -1)),
    ],
)
def test_a_photo_taken_on_its_side_is_read_upright(orientation, store):
    upright = np.zeros((32, 64, 3), np.uint8)
    upright[:, :32], upright[:16, 32:] = RED, BLUE
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = Image.fromarray(np.ascontiguousarray(store(upright)))
    image = read_image(encoded(stored, "JPEG", exif=exif, quality=95, subsampling=0))
    assert image.shape == upright.shape
    assert np.abs(image.astype(int) - upright).max() < 40


@pytest.mark.parametrize(
    "content",
    [
        encoded(plain("CMYK", (0, 255, 255, 0)), "JPEG"),
        encoded(plain("CMYK", (0, 255, 255, 0)), "TIFF"),
        encoded(plain("RGBA", (*RED, 128)), "PNG"),
        encoded(plain("RGB", RED).convert("P"), "PNG"),
        encoded(plain("RGB", RED), "BMP"),
        encoded(plain("RGB", RED), "WEBP"),
        encoded(
            plain("RGB", RED).convert("P"),
            "GIF",
            save_all=True,
            append_images=[plain("RGB", BLUE).convert("P")],
        ),
    ],
    ids=["cmyk jpeg", "cmyk tiff", "alpha png", "palette png", "bmp", "webp", "animated gif"],
)
def test_every_common_format_becomes_rgb(content):
    image = read_image(content)
    assert image.dtype == np.uint8
    assert image.shape == (16, 24, 3)
    assert np.abs(image.astype(int) - RED).max() <= 3


@pytest.mark.parametrize("form", ["JPEG", "PNG"])
def test_a_grey_image_gets_three_equal_channels(form):
    image = read_image(encoded(plain("L", 99), form))
    assert image.shape == (16, 24, 3)
    assert (image == 99).all()


def test_grey_with_alpha_keeps_its_grey():
    assert (read_image(encoded(plain("LA", (99, 10)), "PNG")) == 99).all()


def test_sixteen_bits_are_scaled_down_and_not_cut_off():
    values = np.array([[0, 255, 256, 0x8000, 0xFFFF]], np.uint16)
    image = read_image(encoded(Image.fromarray(values), "PNG"))
    assert image.dtype == np.uint8
    assert image[0, :, 0].tolist() == [0, 1, 1, 128, 255]
    assert (image == image[..., :1]).all()


def test_one_pixel_is_an_image():
    assert read_image(encoded(plain("RGB", BLUE, (1, 1)), "PNG")).tolist() == [[list(BLUE)]]


@pytest.mark.parametrize(
    "content",
    [
        encoded(plain("RGB", RED, (300, 90)), "JPEG"),
        encoded(plain("L", 99, (300, 90)), "JPEG"),
        encoded(plain("RGB", RED, (300, 90)), "PNG"),
        encoded(plain("RGB", RED, (300, 90)).convert("P"), "PNG"),
        encoded(Image.fromarray(np.full((90, 300), 40_000, np.uint16)), "PNG"),
    ],
    ids=["jpeg", "grey jpeg", "png", "palette png", "16 bits"],
)
def test_a_large_image_is_scaled_down_to_the_side_asked_for(content):
    full = read_image(content)
    assert full.shape == (90, 300, 3)
    assert (read_image(content, 300) == full).all()
    assert (read_image(content, 100) == full[:30, :100]).all()


def test_a_small_image_is_not_scaled_up():
    assert read_image(encoded(plain("RGB", RED), "PNG"), 1000).shape == (16, 24, 3)


def test_scaling_down_keeps_what_an_image_shows():
    photo = Image.fromarray(data.astronaut()).resize((1500, 1500))
    expected = np.asarray(photo.resize((200, 200)))
    for form in ("JPEG", "PNG"):
        assert np.abs(read_image(encoded(photo, form), 200).astype(int) - expected).mean() < 2


def test_a_line_of_pixels_stays_an_image_when_scaled_down():
    assert read_image(encoded(plain("RGB", RED, (20_000, 1)), "PNG"), 100).shape == (1, 100, 3)


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
def test_a_photo_outlives_damage_to_its_exif(form):
    exif = Image.Exif()
    exif[0x0112] = 6
    damaged = exif.tobytes().replace(b"MM\x00*", b"M?\x00*")
    assert damaged != exif.tobytes()
    image = read_image(encoded(plain("RGB", RED), form, exif=damaged))
    assert np.abs(image.astype(int) - RED).max() <= 3


PHOTO = encoded(Image.fromarray(data.astronaut()), "JPEG")


@pytest.mark.parametrize(
    "content",
    [PHOTO[: len(PHOTO) // 2], PHOTO[:-200], PHOTO[:20], b"", b"Not a photo.\n", b"\x00" * 5000],
    ids=["half", "end missing", "header only", "empty", "text", "zeros"],
)
def test_a_damaged_file_is_rejected_as_unreadable(tmp_path, content):
    path = tmp_path / "photo.jpg"
    path.write_bytes(content)
    assert reason_of(read_image, path) == "unreadable"
    assert reason_of(read_image, content) == "unreadable"


def test_the_message_names_the_file(tmp_path):
    path = tmp_path / "photo.jpg"
    path.write_bytes(b"")
    with pytest.raises(Rejected, match=r"photo\.jpg cannot be read as an image"):
        read_image(path)


def test_the_message_is_a_sentence_without_the_decoders_own_words(tmp_path):
    for content in (PHOTO[:-200], b"Not a photo.\n"):
        with pytest.raises(Rejected) as caught:
            read_image(content)
        expected = "the image cannot be read as an image (damaged, or of no common format)."
        assert str(caught.value) == expected


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("missing.jpg", "No such file or directory"),
        ("folder", "Is a directory"),
        ("loop.jpg", "Too many levels of symbolic links"),
    ],
)
def test_what_is_no_file_is_rejected(tmp_path, name, why):
    (tmp_path / "folder").mkdir()
    (tmp_path / "loop.jpg").symlink_to("loop.jpg")
    with pytest.raises(Rejected) as caught:
        read_image(tmp_path / name)
    assert caught.value.reason == "unreadable"
    assert str(caught.value) == f"{tmp_path / name} cannot be read as an image ({why})."


@pytest.mark.parametrize("code", [errno.EIO, errno.ENOTCONN, errno.ESTALE])
def test_a_disk_that_fails_does_not_make_a_photo_unreadable(tmp_path, monkeypatch, code):
    def fail(path):
        raise OSError(code, os.strerror(code))

    (tmp_path / "a.jpg").write_bytes(PHOTO)
    monkeypatch.setattr(Path, "read_bytes", fail)
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    with pytest.raises(AgelibError, match=r"a\.jpg could not be read .* run this again") as caught:
        read_image(tmp_path / "a.jpg")
    assert not isinstance(caught.value, Rejected)


def test_a_file_that_is_larger_than_any_photo_is_not_read(tmp_path):
    with open(tmp_path / "disk.jpg", "wb") as file:
        file.truncate(10**9 + 1)
    with pytest.raises(Rejected, match=r"disk\.jpg cannot be read as an image \(more than 1 GB\)"):
        read_image(tmp_path / "disk.jpg")


def test_a_full_memory_does_not_make_a_photo_unreadable(monkeypatch):
    def fail(*arguments, **options):
        raise MemoryError

    monkeypatch.setattr(Image, "open", fail)
    with pytest.raises(MemoryError):
        read_image(PHOTO)


def test_a_rejection_does_not_keep_the_image_in_memory():
    with pytest.raises(Rejected) as rejection:
        read_image(PHOTO[:-200])
    gc.collect()
    assert [thing for thing in gc.get_objects() if type(thing) is JpegImageFile] == []
    assert rejection.value.reason == "unreadable"


def test_postscript_does_not_start_ghostscript(monkeypatch):
    started = []
    monkeypatch.setattr("PIL.EpsImagePlugin.Ghostscript", lambda *_, **__: started.append(1))
    drawing = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n%%EOF\n"
    assert reason_of(read_image, drawing) == "unreadable"
    assert started == []


# 16,000 squared is beyond what Pillow itself takes, 10,001 squared is not.
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("side", [10_001, 16_000])
def test_a_small_file_of_enormous_pixels_is_rejected(side):
    bomb = encoded(Image.new("1", (side, side)), "PNG")
    with pytest.raises(Rejected, match=r"pixels"):
        read_image(bomb)


@pytest.fixture(scope="module")
def portrait():
    return Image.fromarray(read_image(PHOTO)).resize((200, 180))


def jpeg_of(image, **options):
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", **options)
    return buffer.getvalue()


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0, "quality": 95}])
def test_a_jpeg_that_lacks_its_end_mark_alone_is_read_whole(portrait, tmp_path, options):
    content = jpeg_of(portrait, **options)
    (tmp_path / "a.jpg").write_bytes(content[:-2])
    for source in (content[:-2], content[:-1], tmp_path / "a.jpg"):
        assert (read_image(source) == read_image(content)).all()
    assert (read_image(content[:-2], 64) == read_image(content, 64)).all()


@pytest.mark.parametrize("options", [{}, {"progressive": True}])
@pytest.mark.parametrize("lost", [12, 40, 400, 3000])
def test_a_jpeg_that_lacks_pixels_is_refused(portrait, options, lost):
    with pytest.raises(Rejected, match="damaged"):
        read_image(jpeg_of(portrait, **options)[:-lost])


@pytest.mark.parametrize("kind", [bytearray, memoryview])
def test_bytes_of_any_kind_are_read(portrait, kind):
    content = jpeg_of(portrait)
    assert (read_image(kind(content)) == read_image(content)).all()
    with pytest.raises(Rejected, match=r"^the image cannot be read") as caught:
        read_image(kind(b"no image" * 1000))
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize(
    ("dtype", "white"),
    [(np.uint16, 255), (np.uint16, 4095), (np.uint16, 65535), (np.int32, 65535), (np.int32, 10**6)]
    + [(np.float32, white) for white in (1, 255, 65535)],
)
def test_deep_grey_levels_are_scaled_by_their_range(dtype, white):
    grey = np.linspace(0, white, 256).reshape(16, 16).astype(dtype)
    red = read_image(Image.fromarray(grey))[..., 0].astype(int)
    assert abs(red - np.arange(256).reshape(16, 16)).max() <= 1


@pytest.mark.parametrize("brand", [b"heic", b"mif1", b"avif"])
def test_a_phones_format_that_cannot_be_read_is_to_be_exported(brand, tmp_path):
    (tmp_path / "a.heic").write_bytes(b"\0\0\0\x18ftyp" + brand + bytes(100))
    with pytest.raises(Rejected, match=r"a\.heic cannot be read .*export it as JPEG"):
        read_image(tmp_path / "a.heic")
