"""Which bundles a repository has."""

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
    assert [place.fault != "" for place in Repository(root).places() if place.name == name] == [True]


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
    with pytest.raises(InvalidInputError) as caught:
        Repository(root).place(path)
    assert [violation.field for violation in caught.value.violations] == ["path"]


def test_where_there_is_no_bundle_those_there_are_are_named(root: Path) -> None:
    with pytest.raises(ModelNotFoundError, match="en-de/1, en-de/10, en-de/2, en-fr"):
        Repository(root).place("en-it")


def test_a_signature_changes_with_every_file(root: Path) -> None:
    place = Repository(root).place("en-fr")
    before = place.signature()
    assert before == place.signature() != ()
    (place.folder / "weights.bin").write_bytes(b"x")
    assert place.signature() != before
    assert Place(root / "gone").signature() == ()
