"""A repository is followed: bundles come, change and go."""

import shutil
from pathlib import Path

import pytest

from dragoman_server.registry.entry import State
from dragoman_server.registry.registry import Registry
from dragoman_server.registry.repository import Place, Repository
from dragoman_server.registry.watcher import Watcher
from support.fake_opener import FakeOpener, write_bundle


class Followed:
    """A repository, what follows it, and the registry behind."""

    def __init__(self, root: Path, max_bytes: int = 0) -> None:
        root.mkdir(exist_ok=True)
        self.root, self.opener = root, FakeOpener()
        self.registry = Registry(self.opener, max_bytes)
        self.watcher = Watcher(self.registry, Repository(root))

    async def look(self, times: int = 2) -> list[str]:
        """Looks, by default until what has changed was seen twice; the models that serve, and the faults of others."""
        for _ in range(times):
            await self.watcher.catch_up()
        names = {State.READY: "{}", State.LISTED: "{}", State.FAILED: "{}: failed"}
        return [names[entry.state].format(entry.name) for entry in self.registry.entries if entry.state in names]


@pytest.fixture
def followed(tmp_path: Path) -> Followed:
    return Followed(tmp_path / "models")


async def test_all_are_served_at_the_start_but_those_that_cannot_be(followed: Followed) -> None:
    write_bundle(followed.root / "a")
    write_bundle(followed.root / "b" / "1")
    write_bundle(followed.root / "b" / "2")
    write_bundle(followed.root / "c")
    (followed.root / "c" / "manifest.json").write_text("{")
    followed.opener.faults["d"] = "broken"
    write_bundle(followed.root / "d")
    await followed.watcher.serve_all()
    assert await followed.look(0) == ["a", "b", "b", "c: failed", "d: failed"]
    assert followed.registry.find("b").version == "2"


async def test_a_bundle_is_served_once_it_has_stopped_changing(followed: Followed) -> None:
    write_bundle(followed.root / "a")
    assert await followed.look(1) == []
    (followed.root / "a" / "weights.bin").write_bytes(b"half")
    assert await followed.look(1) == []
    assert await followed.look(1) == ["a"]


async def test_a_folder_without_a_manifest_is_not_there_yet(followed: Followed) -> None:
    (followed.root / "a").mkdir()
    assert await followed.look(3) == []


async def test_a_bundle_that_changes_is_replaced(followed: Followed) -> None:
    write_bundle(followed.root / "a")
    await followed.watcher.serve_all()
    version = followed.registry.find("a").version
    shutil.rmtree(followed.root / "a")
    write_bundle(followed.root / "a", "changed")
    assert await followed.look() == ["a"]
    assert followed.registry.find("a").version != version


async def test_what_has_not_changed_is_left_alone(followed: Followed) -> None:
    write_bundle(followed.root / "a")
    followed.opener.faults["b"] = "broken"
    write_bundle(followed.root / "b")
    await followed.watcher.serve_all()
    await followed.look(5)
    assert followed.opener.opened == [followed.registry.find("a").resource_name]


async def test_a_failed_bundle_is_tried_again_when_it_has_changed(followed: Followed) -> None:
    write_bundle(followed.root / "a")
    text = (followed.root / "a" / "manifest.json").read_text()
    (followed.root / "a" / "manifest.json").write_text(text[: len(text) // 2])
    assert await followed.look() == ["a: failed"]
    (followed.root / "a" / "manifest.json").write_text(text)
    assert await followed.look() == ["a"]
    assert followed.registry.find("a").error == ""


async def test_a_broken_change_leaves_the_served_version(followed: Followed) -> None:
    write_bundle(followed.root / "a")
    await followed.watcher.serve_all()
    before = followed.registry.find("a")
    (followed.root / "a" / "manifest.json").write_text("{")
    assert await followed.look() == ["a"]
    assert followed.registry.find("a") is before
    assert "manifest.json" in before.error


async def test_a_bundle_that_is_gone_is_not_served_any_more(followed: Followed) -> None:
    write_bundle(followed.root / "a" / "1")
    write_bundle(followed.root / "a" / "2")
    await followed.watcher.serve_all()
    await followed.look(1)
    shutil.rmtree(followed.root / "a" / "2")
    assert await followed.look(1) == ["a", "a"]  # it may be gone for a moment
    await followed.look(1)
    assert followed.registry.find("a").version == "1"


async def test_a_look_that_failed_changes_nothing(followed: Followed) -> None:
    write_bundle(followed.root / "a")
    await followed.watcher.serve_all()
    followed.root.rename(followed.root.with_name("away"))
    for _ in range(3):
        with pytest.raises(OSError, match="No such file"):
            await followed.watcher.catch_up()
    assert await followed.look(0) == ["a"]
    followed.root.with_name("away").rename(followed.root)
    assert await followed.look(3) == ["a"]
    assert len(followed.opener.opened) == 1


async def test_what_cannot_be_seen_at_present_is_not_gone(followed: Followed, monkeypatch: pytest.MonkeyPatch) -> None:
    write_bundle(followed.root / "a" / "1")
    await followed.watcher.serve_all()
    monkeypatch.setattr(Place, "is_gone", lambda _: False)
    (followed.root / "a").rename(followed.root / ".a")
    assert await followed.look(4) == ["a"]
    monkeypatch.undo()
    assert await followed.look(1) == []


async def test_an_unload_before_the_next_look_holds(followed: Followed) -> None:
    write_bundle(followed.root / "a")
    await followed.watcher.serve_all()
    shutil.rmtree(followed.root / "a")
    write_bundle(followed.root / "a", "changed")
    await followed.registry.add(Repository(followed.root).place("a"))
    await followed.registry.remove("a", drain=True)
    assert await followed.look(4) == []


async def test_what_was_unloaded_comes_back_only_when_it_has_changed(followed: Followed) -> None:
    write_bundle(followed.root / "a")
    await followed.watcher.serve_all()
    await followed.registry.remove("a")
    assert await followed.look(3) == []
    (followed.root / "a" / "new").touch()
    assert await followed.look() == ["a"]


async def test_what_is_too_large_is_not_tried_for_ever(tmp_path: Path) -> None:
    followed = Followed(tmp_path / "models", max_bytes=1)
    followed.opener.sizes["a"] = 2
    write_bundle(followed.root / "a")
    write_bundle(followed.root / "b")
    assert await followed.look() == ["a: failed", "b"]
