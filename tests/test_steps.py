import dataclasses
import errno
import json
import shutil
import tarfile
from pathlib import Path

import pandas as pd
import pytest
import requests
from conftest import write_zip

from agelib import AgelibError, disk_errors, steps
from agelib.config import PROFILES, Config, checkpoint_path
from agelib.datasets import download as downloading
from agelib.datasets import tables, transfer
from agelib.drive import sync
from agelib.faces import cleaning, shards
from agelib.faces.shards import damaged_shards, read_manifest
from agelib.files import sha256
from agelib.model.saved import load_model
from agelib.training import loop


@pytest.fixture
def machine(sample_config, tmp_path):
    """Settings of a machine on which nothing but the sample's mirror is there yet."""
    shutil.copytree(sample_config.mirror, tmp_path / "sample" / "mirror")
    return dataclasses.replace(sample_config, data=tmp_path)


@pytest.fixture
def cleaned(own_faces, sample_config):
    """Settings of a machine with faces and images, and an empty Drive."""
    own_faces.raw.symlink_to(sample_config.raw)
    return own_faces


@pytest.fixture
def next_machine(trained, tmp_path):
    """Settings of a machine on which nothing is left: all there is lies on Drive."""
    shutil.copytree(trained.drive, tmp_path / "sample" / "drive")
    return dataclasses.replace(trained, data=tmp_path)


@pytest.fixture
def no_work(monkeypatch):
    """Everything that takes time is forbidden."""
    monkeypatch.setattr(loop, "build_model", refuse)
    monkeypatch.setattr("agelib.evaluation.evaluate.estimate", refuse)
    monkeypatch.setattr("agelib.faces.crop.detector", refuse)


def interrupt(*arguments, **options):
    raise KeyboardInterrupt


def refuse(*arguments, **options):
    raise AssertionError("this was done already")


def silent(history):
    pass


def new_machine_after(config):
    """Wipes everything but Drive."""
    for path in (config.raw, config.faces, config.run_folder.parent):
        if path.is_symlink():
            path.unlink()
        shutil.rmtree(path, ignore_errors=True)
    return config


def listing(folder):
    return {
        path.relative_to(folder).as_posix(): sha256(path)
        for path in folder.rglob("*")
        if path.is_file() and path.name != "SHA256SUMS"
    }


# What each step leaves on Drive


def test_an_archive_is_kept_on_drive(machine):
    folder = steps.download("utkface", machine)
    assert folder == machine.raw / "UTKFace"
    assert any(folder.iterdir())
    kept = machine.drive / "archives" / "UTKFace.tar.gz"
    assert sha256(kept) == sha256(machine.raw / "UTKFace.tar.gz")


def test_the_sample_has_no_other_sets(machine):
    with pytest.raises(AgelibError, match="sample has no imdb: choose another --profile"):
        steps.download("imdb", machine)


def test_the_next_machine_takes_the_archive_from_drive(machine, monkeypatch):
    steps.download("utkface", machine)
    new_machine_after(machine)
    monkeypatch.setattr(transfer, "download", refuse)
    assert any(steps.download("utkface", machine).iterdir())


@pytest.fixture
def uploaded(sample_config, tmp_path, monkeypatch):
    """Settings of a new machine with real data's profile, and a UTKFace uploaded by hand."""
    monkeypatch.setenv("AGELIB_DRIVE", str(tmp_path / "mine"))
    monkeypatch.delenv("AGELIB_MIRROR", raising=False)
    monkeypatch.setattr(requests, "get", refuse)
    config = Config.from_profile("wiki", data=tmp_path)
    (config.drive / "archives").mkdir(parents=True)
    shutil.copy(Path(sample_config.mirror) / "UTKFace.tar.gz", config.drive / "archives")
    return config


def test_an_archive_that_the_user_uploaded_is_used_and_noted(uploaded, monkeypatch):
    remote = uploaded.drive / "archives" / "UTKFace.tar.gz"
    copyfile = shutil.copyfile

    def from_drive(source, target):
        assert uploaded.raw in target.parents
        return copyfile(source, target)

    monkeypatch.setattr(shutil, "copyfile", from_drive)
    assert any(steps.download("utkface", uploaded).iterdir())
    assert sync.holds(remote)
    assert sha256(remote) == sha256(uploaded.raw / "UTKFace.tar.gz")


def test_a_zip_file_that_the_user_uploaded_is_the_archive_on_drive(uploaded, monkeypatch):
    remote = uploaded.drive / "archives" / "UTKFace.tar.gz"
    with tarfile.open(remote) as tar:
        images = {e.name: tar.extractfile(e).read() for e in tar if e.isreg()}
    remote.unlink()
    remote = write_zip(remote.with_name("archive.zip"), images)
    folder = steps.download("utkface", uploaded)
    assert {f"UTKFace/{path.name}" for path in folder.glob("[!.]*")} == set(images)
    assert sync.holds(remote)
    assert sorted(path.name for path in remote.parent.iterdir()) == ["SHA256SUMS", "archive.zip"]
    shutil.rmtree(uploaded.raw)  # as on another machine
    monkeypatch.setattr(downloading, "fetch", refuse)
    steps.clean("utkface", uploaded)
    assert sha256(remote) == sha256(uploaded.raw / "archive.zip")


def test_an_archive_that_was_deleted_on_drive_is_fetched_again(machine):
    steps.download("utkface", machine)
    new_machine_after(machine)
    kept = machine.drive / "archives" / "UTKFace.tar.gz"
    kept.unlink()
    assert any(steps.download("utkface", machine).iterdir())
    assert kept.exists()


def test_upload_copies_each_file_once(cleaned):
    copied = steps.upload("utkface", cleaned)
    assert set(copied) == {
        "manifest.json",
        "rejected.csv",
        "test-00000.images.npy",
        "test-00000.index.npy",
    }
    assert listing(cleaned.drive / "faces" / "utkface") == listing(cleaned.faces / "utkface")
    assert steps.upload("utkface", cleaned) == []


def test_cleaning_uploads_its_faces(machine):
    steps.download("utkface", machine)
    manifest = steps.clean("utkface", machine)
    remote = machine.drive / "faces" / "utkface"
    assert listing(remote) == listing(machine.faces / "utkface")
    assert read_manifest(remote) == manifest
    assert damaged_shards(remote) == []


def test_a_run_and_its_evaluation_are_on_drive(trained):
    files = listing(trained.drive / "runs" / "trained")
    assert set(files) == {
        "checkpoints/best.npz",
        "checkpoints/last.keras",
        "config.json",
        "estimates.csv",
        "evaluation.json",
        "figures/age_errors.png",
        "figures/confusion.png",
        "figures/groups.png",
        "figures/learning_curves.png",
        "figures/reliability.png",
        "history.csv",
        "model.keras",
    }
    assert files == listing(trained.run_folder)


# The next machine


def test_faces_come_back_from_drive(next_machine, no_work):
    manifests = steps.pull_faces(next_machine)
    assert set(manifests) == {"wiki", "utkface"}
    for name in manifests:
        assert damaged_shards(next_machine.faces / name) == []


def test_a_trained_run_comes_back_from_drive(next_machine, no_work):
    assert len(steps.train(next_machine, refuse)) == 2
    assert (next_machine.run_folder / "model.keras").exists()


def test_a_model_comes_back_from_drive(next_machine, trained, no_work):
    path = steps.pull_model(next_machine)
    assert sha256(path) == sha256(trained.run_folder / "model.keras")


def test_a_finished_run_needs_no_checkpoints_on_drive(next_machine, trained, no_work):
    shutil.rmtree(next_machine.drive / "runs" / next_machine.run / "checkpoints")
    path = steps.pull_model(next_machine)
    assert sha256(path) == sha256(trained.run_folder / "model.keras")


def test_a_shard_lost_on_drive_is_made_anew(cleaned):
    steps.upload("utkface", cleaned)
    [lost, *_] = sorted((cleaned.drive / "faces" / "utkface").glob("*.images.npy"))
    content = lost.read_bytes()
    shutil.rmtree(cleaned.faces / "utkface")
    lost.unlink()
    steps.clean("utkface", cleaned)
    assert lost.read_bytes() == (cleaned.faces / "utkface" / lost.name).read_bytes() == content


def test_an_evaluation_comes_back_from_drive(next_machine, trained, no_work):
    expected = json.loads((trained.run_folder / "evaluation.json").read_text())
    assert steps.evaluate(next_machine) == expected


def test_each_run_is_compared_as_it_was_trained(machine, monkeypatch):
    for run, sources in (("one", ["wiki"]), ("other", ["wiki", "utkface"])):
        folder = dataclasses.replace(machine, run=run).run_folder
        folder.mkdir(parents=True)
        (folder / "config.json").write_text(json.dumps({"train_sources": sources}))
    monkeypatch.setattr(steps, "evaluate", lambda config: config.train_sources)
    monkeypatch.setattr(steps, "compare_table", lambda reports: reports)
    found = steps.compare(machine, ["one", "other"])
    assert found == {"one": ("wiki",), "other": ("wiki", "utkface")}


def test_runs_are_compared_whether_evaluated_or_not(next_machine, trained):
    other = dataclasses.replace(next_machine, run="other")
    other.run_folder.mkdir(parents=True)
    shutil.copy(trained.run_folder / "model.keras", other.run_folder)
    table = steps.compare(next_machine, ["trained", "other"])
    assert table.columns.tolist() == ["trained", "other"]
    assert (table["trained"] == table["other"]).all()
    with pytest.raises(AgelibError, match=r"nosuch.*model\.keras is missing"):
        steps.compare(next_machine, ["trained", "nosuch"])


def test_estimates_before_an_evaluation_are_asked_for(machine):
    with pytest.raises(AgelibError, match="run the evaluate step"):
        steps.read_estimates(machine)


def test_cleaned_faces_come_back_from_drive_and_are_not_cleaned_again(cleaned, no_work):
    expected = tables.read_table("utkface", cleaned)
    steps.upload("utkface", cleaned)
    shutil.rmtree(cleaned.faces)
    assert steps.clean("utkface", cleaned)["rows"] == len(expected)


def test_faces_that_came_back_in_part_are_fetched_and_not_cleaned_again(cleaned, no_work):
    steps.upload("wiki", cleaned)
    whole = listing(cleaned.faces / "wiki")
    (cleaned.faces / "wiki" / "train-00000.images.npy").unlink()
    steps.clean("wiki", cleaned)
    assert listing(cleaned.faces / "wiki") == whole


def test_an_unfinished_set_that_came_back_in_part_is_fetched_whole(cleaned):
    remote = cleaned.drive / "faces" / "wiki"
    folder = cleaned.faces / "wiki"
    shards = sorted(folder.glob("*.npy"))
    sync.push(folder, remote, only=shards)
    shutil.rmtree(folder)
    steps.pull_set("wiki", cleaned)
    shards[0].unlink()
    steps.pull_set("wiki", cleaned)
    assert sorted(folder.glob("*.npy")) == shards


def test_an_archive_lost_on_drive_is_not_missed_where_it_is_here(machine):
    steps.download("utkface", machine)
    shutil.rmtree(machine.raw / "UTKFace")
    (machine.drive / "archives" / "UTKFace.tar.gz").unlink()
    assert steps.clean("utkface", machine)["counts"]["kept"] > 100


def test_an_archive_that_cannot_be_extracted_is_not_kept_on_drive(machine, monkeypatch):
    monkeypatch.setattr(steps.downloading, "extract", interrupt)
    with pytest.raises(KeyboardInterrupt):
        steps.download("utkface", machine)
    assert not (machine.drive / "archives" / "UTKFace.tar.gz").exists()


def test_images_come_back_from_the_archive_on_drive(machine):
    steps.download("utkface", machine)
    new_machine_after(machine)
    shutil.rmtree(machine.mirror)
    assert steps.clean("utkface", machine)["counts"]["kept"] > 100


def test_cleaning_goes_on_where_another_machine_was_cut_off(cleaned, monkeypatch):
    monkeypatch.setattr(cleaning, "UNIT_ROWS", 40)
    shutil.rmtree(cleaned.faces)
    push, pushes, write_shard, made = sync.push, [], shards.write_shard, []

    def cut_off_after_two(local, remote, only=None):
        result = push(local, remote, only=only)
        pushes.append(local.name)
        if len(pushes) == 2:
            raise KeyboardInterrupt
        return result

    def counting(folder, name, jpegs, rows):
        made.append(name)
        return write_shard(folder, name, jpegs, rows)

    monkeypatch.setattr(shards, "write_shard", counting)
    with monkeypatch.context() as patch:
        patch.setattr(sync, "push", cut_off_after_two)
        with pytest.raises(KeyboardInterrupt):
            steps.clean("utkface", cleaned)
    shutil.rmtree(cleaned.faces)
    manifest = steps.clean("utkface", cleaned)
    assert sorted(made) == sorted(manifest["shards"])
    assert len(made) == 4
    # Neither here nor there are notes of unfinished work left.
    remote = cleaned.drive / "faces" / "utkface"
    assert listing(remote) == listing(cleaned.faces / "utkface")
    assert not [name for name in listing(remote) if name.startswith(cleaning.PARTS)]


def out_of_order(*arguments, **options):
    raise AgelibError("Drive is out of order.")


def test_shards_that_cannot_reach_drive_are_kept_and_pushed_later(cleaned, monkeypatch, capsys):
    monkeypatch.setattr(cleaning, "UNIT_ROWS", 40)
    faces, remote = cleaned.faces / "utkface", cleaned.drive / "faces" / "utkface"
    shutil.rmtree(faces)
    with monkeypatch.context() as patch:
        patch.setattr(sync, "push", out_of_order)
        with pytest.raises(AgelibError, match="utkface is finished, but lies only on this machine"):
            steps.clean("utkface", cleaned)
    assert capsys.readouterr().err.count("No need to stop") == 1
    assert damaged_shards(faces) == []
    monkeypatch.setattr(shards, "write_shard", refuse)
    steps.clean("utkface", cleaned)
    assert listing(remote) == listing(faces)


def test_a_run_that_could_not_reach_drive_is_pushed_by_the_next_call(short_run, monkeypatch):
    remote = short_run.drive / "runs" / "tiny"
    with monkeypatch.context() as patch:
        patch.setattr(sync, "push", out_of_order)
        for _ in range(2):
            with pytest.raises(AgelibError, match=r"model\.keras is finished, but lies only on"):
                steps.train(short_run)
        assert not remote.exists()
    monkeypatch.setattr(loop, "build_model", refuse)
    assert len(steps.train(short_run, refuse)) == 2
    assert listing(remote) == listing(short_run.run_folder)


def test_a_finished_run_that_is_on_drive_is_not_pushed_again(next_machine, no_work, monkeypatch):
    monkeypatch.setattr(sync, "push", refuse)
    assert len(steps.train(next_machine, refuse)) == next_machine.epochs


@pytest.mark.parametrize("step", ["pull_faces", "train", "evaluate", "pull_model", "clean"])
def test_a_drive_that_cannot_be_read_is_a_sentence(next_machine, no_work, monkeypatch, step):
    arguments = ("utkface", next_machine) if step == "clean" else (next_machine,)
    stat, read = Path.stat, Path.read_bytes

    def failing(function):
        def fail(path, *more, **options):
            if path.name in ("manifest.json", "history.csv") and "drive" in path.parts:
                raise OSError(errno.EIO, "Input/output error")
            return function(path, *more, **options)

        return fail

    monkeypatch.setattr(disk_errors.time, "sleep", lambda _: None)
    monkeypatch.setattr(Path, "stat", failing(stat))
    monkeypatch.setattr(Path, "read_bytes", failing(read))
    with pytest.raises(AgelibError, match=r"could not be .*\(Input/output error\): see whether"):
        getattr(steps, step)(*arguments)


@pytest.fixture
def short_run(cleaned, tiny_networks):
    for name in cleaned.sources:
        steps.upload(name, cleaned)
    return dataclasses.replace(cleaned, run="tiny", epochs=2)


def stop_after_one_epoch(config):
    with pytest.raises(KeyboardInterrupt):
        steps.train(config, interrupt)


def test_every_epoch_is_on_drive_before_the_caller_is_told(short_run, tmp_path):
    epochs_on_drive = []

    def look(history):
        sync.pull(short_run.drive / "runs" / "tiny", tmp_path / "fetched")
        _, note = load_model(checkpoint_path(tmp_path / "fetched"))
        epochs_on_drive.append((len(history), len(note["history"])))

    steps.train(short_run, look)
    assert epochs_on_drive == [(1, 1), (2, 2)]
    assert (tmp_path / "fetched" / "history.csv").exists()


def test_training_goes_on_where_another_machine_was_cut_off(short_run):
    stop_after_one_epoch(short_run)
    new_machine_after(short_run)
    seen = []
    steps.train(short_run, lambda history: seen.append(len(history)))
    assert seen == [2]


def test_a_fetch_that_was_cut_off_does_not_throw_away_the_epochs_on_drive(short_run, monkeypatch):
    stop_after_one_epoch(short_run)
    new_machine_after(short_run)
    steps.pull_faces(short_run)
    with monkeypatch.context() as patch:
        patch.setattr(sync.shutil, "copyfile", interrupt)
        with pytest.raises(KeyboardInterrupt):
            steps.train(short_run)
    seen = []
    steps.train(short_run, lambda history: seen.append(len(history)))
    assert seen == [2]


def test_a_run_begun_here_and_finished_elsewhere_is_found(short_run, tmp_path):
    stop_after_one_epoch(short_run)
    begun = tmp_path / "begun"
    shutil.copytree(short_run.run_folder, begun)
    steps.train(short_run)
    finished = sha256(short_run.run_folder / "model.keras")
    shutil.rmtree(short_run.run_folder)
    shutil.copytree(begun, short_run.run_folder)
    assert sha256(steps.pull_model(short_run)) == finished


def test_epochs_made_here_are_not_replaced_by_older_ones_on_drive(short_run, tmp_path):
    stop_after_one_epoch(short_run)
    older = tmp_path / "older"
    shutil.copytree(short_run.drive / "runs", older)
    steps.train(short_run)
    shutil.rmtree(short_run.drive / "runs")
    shutil.copytree(older, short_run.drive / "runs")
    newest = sha256(checkpoint_path(short_run.run_folder))
    assert len(steps.train(short_run, refuse)) == 2
    remote = short_run.drive / "runs" / "tiny"
    assert sha256(checkpoint_path(short_run.run_folder)) == newest
    assert sha256(checkpoint_path(remote)) == newest


# What stops a step


def test_a_damaged_shard_stops_the_upload_and_names_the_way_out(cleaned):
    steps.upload("wiki", cleaned)
    before = listing(cleaned.drive)
    shard = cleaned.faces / "wiki" / "train-00000.images.npy"
    content = bytearray(shard.read_bytes())
    content[-100] ^= 0xFF
    shard.write_bytes(content)
    with pytest.raises(AgelibError, match=r"damaged shards \(train-00000\): run .* --verify"):
        steps.upload("wiki", cleaned)
    assert listing(cleaned.drive) == before
    assert steps.verify("wiki", cleaned) == ["train-00000"]
    steps.clean("wiki", cleaned)
    assert listing(cleaned.drive) == before
    assert steps.verify("wiki", cleaned) == []


def test_verifying_what_was_never_cleaned_finds_no_damage(machine):
    assert steps.verify("wiki", machine) == []


@pytest.mark.parametrize("change", [{"margin": 0.9}, {"val_fraction": 0.4}])
def test_other_settings_can_be_used_after_deleting_what_the_error_names(cleaned, change):
    steps.upload("wiki", cleaned)
    other = dataclasses.replace(cleaned, **change)
    with pytest.raises(AgelibError, match="delete") as caught:
        steps.clean("wiki", other)
    for place in (cleaned.faces / "wiki", cleaned.drive / "faces" / "wiki"):
        if str(place) in str(caught.value):
            shutil.rmtree(place)
    assert steps.clean("wiki", other)["counts"]["kept"] > 300


def test_another_run_of_the_same_name_can_begin_after_deleting_what_the_error_names(short_run):
    steps.train(short_run, silent)
    other = dataclasses.replace(short_run, seed=7)
    with pytest.raises(AgelibError, match="delete") as caught:
        steps.train(other, silent)
    for place in (short_run.run_folder, short_run.drive / "runs" / short_run.run):
        if str(place) in str(caught.value):
            shutil.rmtree(place)
    assert len(steps.train(other, silent)) == 2


def test_a_set_that_was_never_cleaned_is_asked_for(machine):
    with pytest.raises(AgelibError, match=r"manifest\.json is missing: run the clean step"):
        steps.pull_faces(machine)
    with pytest.raises(AgelibError, match="run the clean step"):
        steps.upload("wiki", machine)


def test_a_run_that_was_never_trained_is_asked_for(machine):
    with pytest.raises(AgelibError, match=r"model\.keras is missing: run the train step"):
        steps.pull_model(machine)


def test_images_that_were_never_downloaded_are_asked_for(machine):
    with pytest.raises(AgelibError, match="run the download step"):
        steps.clean("wiki", machine)


def test_own_photos_are_cleaned_again_once_their_labels_change(tmp_path, capsys):
    config = Config.from_profile(
        "sample", **PROFILES["own"] | {"workers": 1}, data=tmp_path, run="own"
    )
    labels = steps.download("own", config) / "labels.csv"
    first = steps.clean("own", config)
    assert steps.clean("own", config) == first
    assert not capsys.readouterr().err.count("cleaned again")
    labels.write_text("".join(labels.read_text().splitlines(keepends=True)[:-10]))
    second = steps.clean("own", config)
    assert "cleaned again" in capsys.readouterr().err
    assert second["counts"]["kept"] < first["counts"]["kept"]
    assert sync.holds(config.drive / "faces" / "own")
    assert read_manifest(config.drive / "faces" / "own") == second


def test_own_photos_are_cleaned_again_once_one_is_replaced(tmp_path, capsys):
    config = Config.from_profile(
        "sample", **PROFILES["own"] | {"workers": 1}, data=tmp_path, run="own"
    )
    folder = steps.download("own", config)
    first = steps.clean("own", config)
    named = pd.read_csv(folder / "labels.csv")["path"]
    one, other = (folder / name for name in named[:2])
    one.write_bytes(other.read_bytes())
    second = steps.clean("own", config)
    assert "cleaned again" in capsys.readouterr().err
    assert second["shards"] != first["shards"]


def test_nothing_is_fetched_while_google_drive_is_not_mounted(machine, colab):
    with pytest.raises(AgelibError, match=r"is not mounted .*drive\.mount\(config\)"):
        steps.download("wiki", machine)
    assert list(machine.raw.glob("*")) == []
