import json

import cv2
import numpy as np
import pytest

from agelib import AgelibError
from agelib.datasets.sample import draw_portrait
from agelib.datasets.tables import person_hash
from agelib.faces import shards
from agelib.files import write_json
from agelib.labels import RACES

SIZE = 64


def face(seed):
    return draw_portrait(20 + seed, seed % 2, np.random.default_rng(seed), SIZE)


def row(path, age=30, gender=1, race=-1, person="1000"):
    labels = {"age": age, "age_high": age, "gender": gender, "race": race}
    return labels | {"path": path, "person": person_hash(person)}


@pytest.fixture
def make(tmp_path):
    """Writes a face set: shard name -> its (image, row) pairs."""

    def make(contents, folder="faces", crop_size=SIZE, version=shards.FORMAT):
        folder = tmp_path / folder
        notes = {}
        for name, faces in contents.items():
            jpegs = [shards.encode_jpeg(image) for image, _ in faces]
            files = shards.write_shard(folder, name, jpegs, [row for _, row in faces])
            notes[name] = {"files": files}
        crop = {"crop_size": crop_size, "margin": 0.3}
        write_json(
            folder / "manifest.json",
            {
                "format": version,
                "dataset": "photos",
                "crop": crop,
                "races": RACES,
                "shards": notes,
            },
        )
        return folder

    return make


@pytest.fixture
def two_shards(make):
    return make(
        {
            "train-00000": [(face(i), row(f"a/{i}.jpg")) for i in range(3)],
            "train-00001": [(face(i), row(f"a/{i}.jpg")) for i in range(3, 5)],
        }
    )


def test_a_fingerprint_tells_faces_apart_and_nothing_else(two_shards):
    before = shards.fingerprint(two_shards)
    path = two_shards / "manifest.json"
    manifest = json.loads(path.read_text())
    path.write_text(json.dumps(manifest | {"versions": {"numpy": "9"}}, indent=4))
    assert shards.fingerprint(two_shards) == before
    manifest["shards"]["train-00001"]["files"]["train-00001.index.npy"]["sha256"] = "other"
    path.write_text(json.dumps(manifest))
    assert shards.fingerprint(two_shards) != before


def test_labels_come_back_in_order(make):
    rows = [
        row("a.jpg", age=1, gender=0, race=4, person="a"),
        row("b.jpg", age=85, gender=1, race=-1, person="b"),
        row("c.jpg", age=24, gender=1, race=0, person="c"),
    ]
    faces = shards.FaceSet([make({"val-00000": [(face(i), r) for i, r in enumerate(rows)]})], "val")
    assert len(faces) == 3
    assert faces.paths == ["a.jpg", "b.jpg", "c.jpg"]
    assert faces.age.tolist() == [1, 85, 24]
    assert faces.age_branch.tolist() == [0, 4, 2]
    assert faces.gender.tolist() == [0, 1, 1]
    assert faces.index["race"].tolist() == [4, -1, 0]
    assert faces.person.tolist() == [person_hash(name) for name in "abc"]
    assert {faces.age.dtype, faces.age_branch.dtype, faces.gender.dtype} == {np.dtype(np.int64)}


def test_a_person_hash_keeps_all_its_64_bits(make):
    largest = row("a.jpg") | {"person": 2**64 - 1}
    faces = shards.FaceSet([make({"val-00000": [(face(0), largest)]})], "val")
    assert int(faces.person[0]) == 2**64 - 1


def test_paths_keep_every_character(make):
    first = ["17/Zoë Kravitz_1988.jpg", "写真/顔.jpg"]
    second = ["a.jpg", "a much longer path than any of the first shard's/" + "é" * 80 + ".jpg"]
    folder = make(
        {
            "train-00000": [(face(0), row(path)) for path in first],
            "train-00001": [(face(0), row(path)) for path in second],
        }
    )
    assert shards.FaceSet([folder], "train").paths == first + second


def test_images_come_back_close_to_what_they_were(two_shards):
    faces = shards.FaceSet([two_shards], "train")
    for i in range(5):
        image = faces.image(i)
        assert (image.shape, image.dtype) == ((SIZE, SIZE, 3), np.uint8)
        errors = [np.abs(image.astype(float) - face(k)).mean() for k in range(5)]
        assert errors[i] < 5
        assert np.argmin(errors) == i


def test_colours_stay_rgb():
    red = np.zeros((SIZE, SIZE, 3), np.uint8)
    red[..., 0] = 200
    decoded = shards.decode_jpeg(shards.encode_jpeg(red)).reshape(-1, 3).mean(axis=0)
    assert decoded == pytest.approx([200, 0, 0], abs=3)


def test_jpegs_come_back_byte_by_byte(two_shards):
    faces = shards.FaceSet([two_shards], "train")
    assert [faces.jpeg(i) for i in range(5)] == [shards.encode_jpeg(face(i)) for i in range(5)]


def test_batches_hold_every_face_once_in_order(two_shards):
    faces = shards.FaceSet([two_shards], "train")
    batches = list(faces.batches(2))
    assert [len(batch) for batch in batches] == [2, 2, 1]
    assert np.array_equal(np.concatenate(batches), np.stack([faces.image(i) for i in range(5)]))


def test_several_sets_are_read_as_one(make, two_shards):
    other = make({"train-00000": [(face(9), row("imdb.jpg", age=60))]}, folder="imdb")
    faces = shards.FaceSet([two_shards, other], "train")
    assert faces.paths[-1] == "imdb.jpg"
    assert faces.jpeg(5) == shards.encode_jpeg(face(9))
    assert len(faces) == 6


def test_a_split_holds_its_own_faces_only(make):
    folder = make({f"{split}-00000": [(face(0), row(split))] for split in ("train", "val")})
    assert shards.FaceSet([folder], "train").paths == ["train"]
    assert shards.FaceSet([folder], "val").paths == ["val"]


def test_files_are_never_pickled(two_shards):
    files = sorted(two_shards.glob("*.npy"))
    assert len(files) == 4
    for path in files:
        array = np.load(path, allow_pickle=False)
        assert not array.dtype.hasobject
        assert array.ndim == 1


def test_some_faces_keep_all_that_is_known_of_them(make):
    folders = []
    for name, races in (("one", [0, 1]), ("two", [2, -1])):
        rows = [row(f"{name}{i}.jpg", age=10 + 30 * i, race=race) for i, race in enumerate(races)]
        folders.append(make({"train-00000": list(zip(map(face, (0, 1)), rows, strict=True))}, name))
    faces = shards.FaceSet(folders, "train")
    assert faces.age_branch.tolist() == [0, 3, 0, 3]
    for chosen in (np.array([False, True, True, False]), np.array([1, 2])):
        some = faces.select(chosen)
        assert len(some) == 2
        assert some.paths == ["one1.jpg", "two0.jpg"]
        assert some.age_branch.tolist() == [3, 0]
        assert some.source.tolist() == [0, 1]
        assert some.race.tolist() == [1, 2]
        assert some.jpeg(1) == faces.jpeg(2)
    assert faces.age_branch.tolist() == [0, 3, 0, 3]


def test_a_pickled_array_is_refused(two_shards):
    path = two_shards / "train-00000.images.npy"
    np.save(path, np.array([{"a": 1}], object))
    with pytest.raises(AgelibError, match=r"train-00000\.images\.npy is missing or damaged"):
        shards.FaceSet([two_shards], "train")


def test_images_stay_on_the_disk_until_they_are_asked_for(two_shards):
    faces = shards.FaceSet([two_shards], "train")
    assert all(isinstance(array, np.memmap) for array in faces._images)


def test_equal_faces_give_equal_files(make):
    content = {"train-00000": [(face(i), row(f"{i}.jpg")) for i in range(3)]}
    one, other = (shards.read_manifest(make(content, folder=name)) for name in "ab")
    assert one == other


def test_faces_of_64_pixels_take_a_quarter_of_their_raw_bytes(rng):
    for age in (1, 10, 30, 50, 85):
        # As cleaning makes them: a larger photo's face, resized.
        portrait = draw_portrait(age, age % 2, rng)
        crop = cv2.resize(portrait, (SIZE, SIZE), interpolation=cv2.INTER_AREA)
        assert len(shards.encode_jpeg(crop)) <= 0.25 * crop.nbytes


def test_whole_shards_are_not_damaged(two_shards):
    assert shards.damaged_shards(two_shards) == []


@pytest.mark.parametrize("kind", ["images", "index"])
def test_a_flipped_byte_is_found_by_its_hash(two_shards, kind):
    path = two_shards / f"train-00001.{kind}.npy"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert shards.damaged_shards(two_shards) == ["train-00001"]
    shard = shards.read_manifest(two_shards)["shards"]["train-00001"]
    assert shards.is_intact(two_shards, shard, hashes=False)


@pytest.mark.parametrize("hashes", [True, False])
@pytest.mark.parametrize("kind", ["images", "index"])
def test_a_truncated_shard_is_found_by_its_size(two_shards, kind, hashes):
    path = two_shards / f"train-00000.{kind}.npy"
    path.write_bytes(path.read_bytes()[:-1])
    assert shards.damaged_shards(two_shards) == ["train-00000"]
    shard = shards.read_manifest(two_shards)["shards"]["train-00000"]
    assert not shards.is_intact(two_shards, shard, hashes=hashes)


def test_a_missing_file_is_damage(two_shards):
    (two_shards / "train-00000.index.npy").unlink()
    assert shards.damaged_shards(two_shards) == ["train-00000"]


@pytest.mark.parametrize("kind", ["images", "index"])
@pytest.mark.parametrize("kept", [0, 50, -1])
def test_reading_a_truncated_shard_names_the_file(two_shards, kind, kept):
    path = two_shards / f"train-00001.{kind}.npy"
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(AgelibError, match=rf"train-00001\.{kind}\.npy is missing or damaged"):
        shards.FaceSet([two_shards], "train")


def test_reading_a_missing_shard_names_the_file(two_shards):
    (two_shards / "train-00001.index.npy").unlink()
    with pytest.raises(AgelibError, match=r"train-00001\.index\.npy is missing or damaged"):
        shards.FaceSet([two_shards], "train")


def test_a_missing_split_names_the_folder_and_the_notebook(two_shards):
    with pytest.raises(AgelibError, match=r"faces holds no test faces: .*notebook 02"):
        shards.FaceSet([two_shards], "test")


def test_crops_of_different_sizes_do_not_mix(make, two_shards):
    other = make({"train-00000": [(face(0), row("a.jpg"))]}, folder="imdb", crop_size=160)
    with pytest.raises(
        AgelibError, match=r"holds crops of crop_size 160.* needs crop_size 64"
    ) as caught:
        shards.FaceSet([two_shards, other], "train")
    assert "Path(" not in str(caught.value)


def test_a_shard_without_faces_does_no_harm(make):
    folder = make({"train-00000": [], "train-00001": [(face(3), row("a.jpg"))]})
    assert shards.damaged_shards(folder) == []
    faces = shards.FaceSet([folder], "train")
    assert faces.paths == ["a.jpg"]
    assert faces.jpeg(0) == shards.encode_jpeg(face(3))


def test_a_split_of_empty_shards_holds_no_faces(make):
    folder = make({"train-00000": []})
    with pytest.raises(AgelibError, match="holds no train faces"):
        shards.FaceSet([folder], "train")


def test_a_folder_without_manifest_names_the_notebook(tmp_path):
    with pytest.raises(AgelibError, match=r"manifest\.json is missing: .*notebook 02"):
        shards.FaceSet([tmp_path], "train")


def test_a_later_format_is_refused(make):
    folder = make({"train-00000": [(face(0), row("a.jpg"))]}, version=shards.FORMAT + 1)
    with pytest.raises(
        AgelibError, match=r"has format 3, but this version .* reads format 2: delete"
    ):
        shards.FaceSet([folder], "train")


def test_a_shard_that_cannot_be_written_leaves_nothing(tmp_path, monkeypatch):
    def cut_off(file, *_, **__):
        file.write(b"half")
        raise OSError("the disk is full")

    monkeypatch.setattr(shards.np, "save", cut_off)
    with pytest.raises(OSError, match="the disk is full"):
        shards.write_shard(tmp_path, "train-00000", [b"jpeg"], [row("a.jpg")])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", ["{}", "[]", "null"])
def test_json_that_is_no_manifest_is_refused_with_its_path(tmp_path, content):
    (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(AgelibError, match=r"manifest\.json is no manifest: delete .*clean again"):
        shards.read_manifest(tmp_path)
