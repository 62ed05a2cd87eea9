import itertools
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO

import cv2
import numpy as np
import pytest
from PIL import Image
from skimage import data

from agelib import AgelibError
from agelib.prediction import photos
from agelib.prediction.photos import (
    find_photos,
    name_others,
    name_picture,
    read_photo,
    read_photos,
)


@pytest.fixture
def album(tmp_path):
    for name in ("b.JPG", "a.png", "deep/er/c.webp", "notes.txt", "deep/d.jpeg"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    return tmp_path


def test_photos_are_found_at_any_depth_in_a_steady_order(album):
    found = [path.relative_to(album).as_posix() for path in find_photos([album])]
    assert found == ["a.png", "b.JPG", "deep/d.jpeg", "deep/er/c.webp"]


def test_a_file_named_by_hand_is_taken_whatever_its_name(album):
    places = [album / "notes.txt", album / "deep", str(album / "b.JPG")]
    found = [path.name for path in find_photos(places)]
    assert found == ["notes.txt", "d.jpeg", "c.webp", "b.JPG"]


def test_pictures_that_an_earlier_call_drew_are_no_photos(album):
    photos = find_photos([album])
    drawn = album / "a.estimates.png"
    drawn.touch()
    assert find_photos([album]) == photos
    assert find_photos([drawn]) == [drawn]


@pytest.mark.parametrize(
    ("name", "picture"),
    [
        ("x/a.jpg", "a.estimates.png"),
        ("b.c.png", "b.c.estimates.png"),
        ("clip.mp4 at 12 s", "clip.mp4 at 12 s.estimates.png"),
        ("https://example.org/x/my%20photo.jpg?size=2", "my photo.estimates.png"),
        ("https://example.org/", "photo.estimates.png"),
        ("https://example.org/..%5C..%5Cx%00:y.jpg", ".._.._x__y.estimates.png"),
        ("https://example.org/" + 300 * "a", 120 * "a" + ".estimates.png"),
        (82 * "写" + ".jpg", 40 * "写" + ".estimates.png"),
    ],
)
def test_a_picture_is_named_after_its_photo(name, picture):
    assert name_picture(name, set()) == picture


def test_no_two_photos_share_a_picture():
    names = ("a.jpg", "a.png", "a-2.jpg", "x/a.jpg", "A.jpg", "a-2.png")
    for order in itertools.permutations(names):
        taken = set()
        assert len({name_picture(name, taken).lower() for name in order}) == len(names)


def test_a_folder_named_like_a_photo_is_no_photo(album):
    (album / "album.jpg").mkdir()
    (album / "album.jpg" / "inside.jpg").write_bytes(b"")
    found = [path.relative_to(album).as_posix() for path in find_photos([album])]
    assert "album.jpg" not in found
    assert "album.jpg/inside.jpg" in found


def test_a_place_that_does_not_exist_is_named(tmp_path):
    with pytest.raises(AgelibError, match=r"missing\.jpg does not exist"):
        find_photos([tmp_path / "missing.jpg"])


def test_a_folder_without_a_photo_is_named(tmp_path):
    (tmp_path / "notes.txt").write_bytes(b"")
    with pytest.raises(AgelibError, match=r"holds no photo \(.*\.jpg, "):
        find_photos([tmp_path])


def test_hidden_files_are_no_photos(tmp_path):
    for name in ("a.jpg", "._a.jpg", ".thumbnails/1.jpg", ".Trash-1000/files/b.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert find_photos([tmp_path]) == [tmp_path / "a.jpg"]


def test_a_pattern_stands_for_the_files_it_fits(album):
    found = [path.relative_to(album).as_posix() for path in find_photos([f"{album}/**/*.webp"])]
    assert found == ["deep/er/c.webp"]
    with pytest.raises(AgelibError, match=r"\*\.gif does not exist"):
        find_photos([f"{album}/*.gif"])


def test_a_pattern_stands_for_photos_alone(album):
    (album / "a.estimates.png").write_bytes(b"")
    names = [path.name for path in find_photos([f"{album}/*"])]
    assert names == ["a.png", "b.JPG"]


def test_a_file_with_brackets_in_its_name_is_no_pattern(album):
    (album / "a[1].png").write_bytes(b"")
    assert find_photos([album / "a[1].png"]) == [album / "a[1].png"]


def test_a_folder_with_brackets_in_its_name_is_no_pattern(tmp_path):
    trip = tmp_path / "[2020] trip"
    trip.mkdir()
    (trip / "a.jpg").touch()
    assert find_photos([f"{trip}/*.jpg"]) == [trip / "a.jpg"]


def test_a_pattern_is_understood_in_the_working_folder(album, monkeypatch):
    monkeypatch.chdir(album)
    assert [str(path) for path in find_photos(["*.png", "d*p/*.jpeg"])] == ["a.png", "deep/d.jpeg"]


def test_what_a_folder_holds_besides_photos_is_counted_and_named(album):
    for name in ("b.txt", "README", ".hidden", "a.estimates.png"):
        (album / name).touch()
    sentence = "Neither photo nor video, left out: 2 .txt, 1 without ending."
    assert name_others([album, "https://example.org/a.txt"]) == sentence
    assert name_others([album / "a.png"]) == ""


def test_an_address_is_left_as_it_is():
    assert find_photos(["https://example.org/a.jpg"]) == ["https://example.org/a.jpg"]


# Reading


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "P", "CMYK"])
def test_a_pil_image_of_any_mode_is_read_as_rgb(mode):
    image = Image.fromarray(data.astronaut()).convert(mode)
    assert read_photo(image).shape == (512, 512, 3)


def test_a_red_pil_image_is_red():
    assert read_photo(Image.new("RGB", (4, 4), (255, 0, 0)))[0, 0].tolist() == [255, 0, 0]


@pytest.fixture
def video(tmp_path):
    """Three seconds: red, green, blue."""
    path = tmp_path / "clip.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 10, (64, 48))
    for colour in np.eye(3, dtype=np.uint8) * 250:
        for _ in range(10):
            writer.write(np.full((48, 64, 3), colour[::-1], np.uint8))
    writer.release()
    return path


def test_a_video_is_read_frame_by_frame_each_second(video):
    frames = list(read_photos([video]))
    assert [frame.name for frame in frames] == [f"{video} at {i} s" for i in range(3)]
    assert [int(frame.image[24, 32].argmax()) for frame in frames] == [0, 1, 2]


def test_a_gap_in_a_video_is_no_reason_to_take_every_frame(monkeypatch):
    class Recording:
        """A screen's: nothing is recorded while nothing moves."""

        def __init__(self, _):
            self._stamps = iter([0, 500, 1500, 30_000, 30_040, 30_080, 31_000])

        def grab(self):
            self._now = next(self._stamps, None)
            return self._now is not None

        def get(self, _):
            return self._now

        def retrieve(self):
            return True, np.zeros((48, 64, 3), np.uint8)

        def release(self):
            pass

    monkeypatch.setattr("cv2.VideoCapture", Recording)
    names = [frame.name for frame in read_photos(["screen.mp4"])]
    assert names == [f"screen.mp4 at {second} s" for second in (0, 1, 30, 31)]


def test_a_video_is_read_whose_name_looks_like_a_protocol(video, monkeypatch):
    video.rename(video.with_name("12:30:45.avi"))
    monkeypatch.chdir(video.parent)
    assert [frame.error for frame in read_photos(["12:30:45.avi"])] == ["", "", ""]


def test_a_video_of_which_no_frame_can_be_decoded_is_named(monkeypatch):
    class Undecodable:
        def __init__(self, _):
            self._frames = iter(range(3))

        def grab(self):
            return next(self._frames, None) is not None

        def get(self, _):
            return 0

        def retrieve(self):
            return False, None

        def release(self):
            pass

    monkeypatch.setattr("cv2.VideoCapture", Undecodable)
    [photo] = read_photos(["clip.mp4"])
    assert "clip.mp4 cannot be read as a video" in photo.error


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_bytes_of_any_kind_are_read(kind):
    buffer = BytesIO()
    Image.fromarray(data.astronaut()).save(buffer, "PNG")
    np.testing.assert_array_equal(read_photo(kind(buffer.getvalue())), data.astronaut())


def test_photos_in_a_format_of_phones_are_named_and_not_passed_over(tmp_path):
    (tmp_path / "phone.HEIC").write_bytes(b"\0\0\0\x18ftypheic")
    [photo] = read_photos(find_photos([tmp_path]))
    assert photo.image is None
    assert "phone.HEIC cannot be read" in photo.error


def test_a_broken_video_is_named(tmp_path):
    path = tmp_path / "broken.mp4"
    path.write_bytes(b"no video")
    [photo] = read_photos([path])
    assert photo.image is None
    assert "broken.mp4 cannot be read as a video" in photo.error


def test_a_pil_image_that_cannot_be_decoded_is_one_sentence():
    buffer = BytesIO()
    Image.fromarray(data.astronaut()).save(buffer, "JPEG")
    image = Image.open(BytesIO(buffer.getvalue()[:3000]))
    with pytest.raises(AgelibError, match="the image cannot be read as an image"):
        read_photo(image)


# Addresses


class Server(BaseHTTPRequestHandler):
    def do_GET(self):
        if self.path.startswith("/gone"):
            self.send_error(404)
            return
        self.send_response(200)
        self.end_headers()
        self.server.asked_by = self.headers["User-Agent"]
        self.wfile.write(self.server.content)

    def log_message(self, *arguments):
        pass


@pytest.fixture
def server():
    buffer = BytesIO()
    Image.fromarray(data.astronaut()).save(buffer, "PNG")
    server = ThreadingHTTPServer(("127.0.0.1", 0), Server)
    server.content = buffer.getvalue()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def address(server, path):
    return f"http://127.0.0.1:{server.server_port}/{path}"


def test_a_photo_is_read_from_its_address(server):
    np.testing.assert_array_equal(read_photo(address(server, "a.png")), data.astronaut())
    assert server.asked_by.startswith("agelib/")


def test_an_address_without_a_photo_says_why(server):
    with pytest.raises(AgelibError, match=r"gone\.png cannot be fetched \(status 404\)"):
        read_photo(address(server, "gone.png"))
    server.content = b"<html>sign in first</html>"
    with pytest.raises(AgelibError, match=r"a\.png leads to no image"):
        read_photo(address(server, "a.png"))


def test_a_download_without_end_is_cut_off(server, monkeypatch):
    monkeypatch.setattr(photos, "_LARGEST", 1000)
    with pytest.raises(AgelibError, match="is larger than"):
        read_photo(address(server, "a.png"))


def test_an_impossible_address_is_one_sentence():
    with pytest.raises(AgelibError, match="cannot be fetched"):
        read_photo("http://a..b/x.jpg")


def test_nobody_at_an_address_is_one_sentence(server):
    server.shutdown()
    server.server_close()
    with pytest.raises(AgelibError, match="cannot be fetched: check the address"):
        read_photo(address(server, "a.png"))
