"""Which bundles a repository has."""

import os
import shutil
from pathlib import Path

import pytest

from dragoman_server.errors import InvalidInputError, ModelNotFoundError, StartError
from dragoman_server.registry.repository import Place, Repository


def bundle(folder: Path) -> None:
    folder.mkdir(parents=True)
    (folder / "manifest.json").touch()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "models"
    bundle(root / "en-fr")
    for version in ("2", "10", "1"):
        bundle(root / "en-de" / version)
    return root


def test_a_folder_is_a_bundle_or_has_one_for_each_version_in_their_order(root: Path) -> None:
    (root / "README").touch()
    (root / "empty").mkdir()
    (root / "en-de" / "11").mkdir()  # without a manifest as yet
    bundle(root / ".tmp" / "en-it")
    bundle(root / "en-de" / ".12")
    assert list(Repository(root).places()) == [
        *(Place(root / "en-de" / version, "en-de", version) for version in ("1", "2", "10")),
        Place(root / "en-fr", "en-fr"),
    ]


@pytest.mark.parametrize("name", ["en fr", "en@1", "-en", "a,b", "en\n"])
def test_a_folder_with_another_name_is_no_model(root: Path, name: str) -> None:
    bundle(root / name)
    (fault,) = [place for place in Repository(root).places() if place.fault]
    assert "letters, digits" in fault.fault
    assert fault.name.isprintable()


def test_a_name_of_any_bytes_can_be_shown(root: Path) -> None:
    bundle(Path(os.fsdecode(bytes(root) + b"/bad\xff\x1b[31m")))
    (fault,) = [place for place in Repository(root).places() if place.fault]
    assert fault.name == r"bad\udcff\x1b[31m"
    fault.name.encode()


def test_what_cannot_be_looked_into_concerns_itself_alone(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (root / "loop").symlink_to(root / "loop")
    (root / "nowhere").symlink_to(root / "missing")
    scandir = os.scandir

    def refuse(folder: Path) -> object:
        if folder == root / "en-de":
            raise PermissionError(13, "Permission denied")
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", refuse)
    places = {place.name: place.fault for place in Repository(root).places()}
    assert places == {"en-de": "cannot be read: Permission denied", "en-fr": ""}


def test_a_repository_that_cannot_be_read_is_not_an_empty_one(root: Path) -> None:
    repository = Repository(root)
    shutil.rmtree(root)
    with pytest.raises(OSError, match="No such file"):
        repository.places()


def test_a_bundle_is_no_repository(root: Path) -> None:
    with pytest.raises(StartError, match="is a bundle itself"):
        Repository(root / "en-fr")


def test_a_place_is_gone_only_where_that_is_certain(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = Repository(root).place("en-fr")
    assert not place.is_gone()
    assert Place(root / "other").is_gone()

    def refuse(_: Path) -> object:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "lstat", refuse)
    assert not Place(root / "other").is_gone()


def test_a_link_must_not_lead_out_of_the_repository(root: Path, tmp_path: Path) -> None:
    bundle(tmp_path / "secret")
    (root / "stolen").symlink_to(tmp_path / "secret")
    (root / "latest").symlink_to(root / "en-fr")
    faults = {place.name: place.fault for place in Repository(root).places()}
    assert "out of the repository" in faults["stolen"]
    assert faults["latest"] == ""


def test_a_repository_may_itself_be_behind_a_link(root: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(root)
    assert [place.fault for place in Repository(tmp_path / "link").places()] == [""] * 4


@pytest.mark.parametrize("path", ["missing", "file"])
def test_a_repository_is_a_folder(tmp_path: Path, path: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StartError, match="is not a directory"):
        Repository(tmp_path / path)


@pytest.mark.parametrize(("path", "version"), [("en-fr", ""), ("en-de/10", "10"), ("./en-fr/", "")])
def test_a_path_is_of_a_bundle(root: Path, path: str, version: str) -> None:
    place = Repository(root).place(path)
    assert place == Place(root / path, Path(path).parts[0], version)


@pytest.mark.parametrize(
    "path",
    [
        "",
        ".",
        "..",
        "loop",
        "../secret",
        "en-fr/..",
        "en-fr/../../secret",
        "/etc",
        "a/b/c",
        "stolen",
        "en-de/stolen",
        "a\0b",
        "a b",
    ],
)
def test_a_path_must_be_one_of_the_repository(root: Path, tmp_path: Path, path: str) -> None:
    bundle(tmp_path / "secret")
    (root / "stolen").symlink_to(tmp_path / "secret")
    (root / "en-de" / "stolen").symlink_to(tmp_path / "secret")
    (root / "loop").symlink_to(root / "loop")
    with pytest.raises(InvalidInputError) as caught:
        Repository(root).place(path)
    assert [violation.field for violation in caught.value.violations] == ["path"]


def test_where_there_is_no_bundle_those_there_are_are_named(root: Path) -> None:
    with pytest.raises(ModelNotFoundError, match="en-de/1, en-de/2, en-de/10, en-fr"):
        Repository(root).place("en-it")


def test_a_signature_changes_with_every_file(root: Path) -> None:
    place = Repository(root).place("en-fr")
    before = place.signature()
    assert before == place.signature() != ()
    (place.folder / "weights.bin").write_bytes(b"x")
    assert place.signature() != before
    (place.folder / ".lock").symlink_to("/nowhere")
    before = place.signature()
    assert before
    (place.folder / "weights.bin").chmod(0o600)
    assert place.signature() != before
    assert Place(root / "gone").signature() == ()
