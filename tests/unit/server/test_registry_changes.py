"""Models come, are replaced and go while calls use them."""

import asyncio
import shutil
import threading
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from time import monotonic

import pytest

from dragoman_server.errors import (
    DeadlineError,
    DragomanError,
    DrainingError,
    InvalidInputError,
    ModelExistsError,
    ModelFailedError,
    ModelInUseError,
    ModelNotFoundError,
    ModelTooLargeError,
    NoRoomError,
    UnsupportedLanguageError,
)
from dragoman_server.registry import residence
from dragoman_server.registry.entry import Entry
from dragoman_server.registry.registry import Registry
from dragoman_server.registry.repository import Place
from support.fake_opener import FakeOpener, write_bundle


@pytest.fixture
def opener() -> FakeOpener:
    return FakeOpener()


@asynccontextmanager
async def in_use(registry: Registry, name: str) -> AsyncIterator[str]:
    """Holds the model that answers; yields its name."""
    async with registry.lease(name, "en", "fr") as lease:
        if isinstance(lease.direction, DragomanError):
            raise lease.direction
        yield lease.model.name


async def serving(registry: Registry, name: str = "") -> str:
    async with in_use(registry, name) as found:
        return found


async def settled(opener: FakeOpener, *names: str) -> None:
    """Returns when exactly these are in memory."""
    while opener.open_now != set(names):  # noqa: ASYNC110
        await asyncio.sleep(0.005)


def changed(folder: Path, name: str) -> Place:
    """The same folder, with another bundle, as the model of this name."""
    shutil.rmtree(folder)
    return Place(write_bundle(folder, "changed"), name)


# -- without a limit of memory -----------------------------------------------------------------------------------------


async def test_a_model_is_in_memory_before_it_is_found(opener: FakeOpener, tmp_path: Path) -> None:
    registry = Registry(opener)
    loading, may_go_on = threading.Event(), threading.Event()

    def before(_: Entry) -> None:
        loading.set()
        may_go_on.wait()

    opener.before = before
    adding = asyncio.create_task(registry.add(Place(write_bundle(tmp_path / "a"), "a", "1")))
    await asyncio.to_thread(loading.wait)
    with pytest.raises(ModelNotFoundError):
        await serving(registry, "a")
    may_go_on.set()
    entry = await adding
    assert (entry.resource_name, await serving(registry, "a")) == ("a@1", "a@1")


async def test_what_uses_a_version_keeps_it_while_new_calls_get_the_next(opener: FakeOpener, tmp_path: Path) -> None:
    registry = Registry(opener)
    old = await registry.add(Place(write_bundle(tmp_path / "a"), "tiny"))
    async with in_use(registry, "tiny") as held, in_use(registry, ""):
        new = await registry.add(changed(tmp_path / "a", "tiny"))
        assert held == old.resource_name != new.resource_name == await serving(registry, "tiny")
        assert opener.open_now == {old.resource_name, new.resource_name}
        assert [entry.state.value for entry in registry.entries] == ["ready", "draining"]
        with pytest.raises(ModelNotFoundError):
            await serving(registry, old.resource_name)
    await settled(opener, new.resource_name)
    assert registry.entries == [new]


async def test_a_bundle_that_fails_changes_nothing_and_says_why(opener: FakeOpener, tmp_path: Path) -> None:
    registry = Registry(opener)
    entry = await registry.add(Place(write_bundle(tmp_path / "a"), "a"))
    place = changed(tmp_path / "a", "a")
    opener.faults["a"] = "it does not reproduce its source"
    with pytest.raises(ModelFailedError, match="does not reproduce"):
        await registry.add(place)
    assert await serving(registry, "a") == entry.resource_name
    assert "does not reproduce" in entry.error
    del opener.faults["a"]
    new = await registry.add(place)
    assert (await serving(registry, "a"), new.error) == (new.resource_name, "")


async def test_a_bundle_that_never_was_served_is_listed_with_its_fault(opener: FakeOpener, tmp_path: Path) -> None:
    registry = Registry(opener)
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "manifest.json").write_text("{}")
    with pytest.raises(ModelFailedError, match="format_version"):
        await registry.add(Place(tmp_path / "a", "a"))
    with pytest.raises(ModelFailedError, match="leads out"):
        await registry.add(Place(tmp_path / "b", "b", fault="leads out of it"))
    assert [(entry.name, entry.state.value) for entry in registry.entries] == [("a", "failed"), ("b", "failed")]
    with pytest.raises(ModelFailedError, match="format_version"):
        await serving(registry, "a")
    assert (registry.num_by_state()["failed"], registry.health()["a"]) == (2, False)
    shutil.rmtree(tmp_path / "a")
    await registry.add(Place(write_bundle(tmp_path / "a"), "a"))
    assert await serving(registry, "a")


async def test_the_same_contents_are_not_loaded_again(opener: FakeOpener, tmp_path: Path) -> None:
    registry = Registry(opener)
    place = Place(write_bundle(tmp_path / "a"))
    assert await registry.add(place) is await registry.add(place)
    assert len(opener.opened) == 1


async def test_a_name_and_version_is_of_one_folder(opener: FakeOpener, tmp_path: Path) -> None:
    registry = Registry(opener)
    entry = await registry.add(Place(write_bundle(tmp_path / "a")))
    with pytest.raises(ModelExistsError, match=entry.resource_name):
        await registry.add(Place(write_bundle(tmp_path / "b")))
    assert await serving(registry) == entry.resource_name


async def test_one_folder_may_be_served_under_several_names(opener: FakeOpener, tmp_path: Path) -> None:
    registry = Registry(opener)
    folder = write_bundle(tmp_path / "a")
    await registry.add(Place(folder))
    await registry.add(Place(folder, "other"))
    assert (await serving(registry, "tiny")).startswith("tiny@")
    assert (await serving(registry, "other")).startswith("other@")


async def test_files_that_have_changed_under_the_same_manifest_are_checked(opener: FakeOpener, tmp_path: Path) -> None:
    registry = Registry(opener)
    place = Place(write_bundle(tmp_path / "a"), "a")
    entry = await registry.add(place)
    (tmp_path / "a" / "weights.bin").touch()
    opener.faults["a"] = "weights.bin is damaged"
    with pytest.raises(ModelFailedError, match="damaged"):
        await registry.add(place)
    assert (await serving(registry, "a"), entry.error) == (entry.resource_name, "weights.bin is damaged")
    assert registry.num_by_state()["failed"] == 1
    del opener.faults["a"]
    assert await registry.add(place) is entry
    assert (entry.error, registry.num_by_state()["failed"], len(opener.opened)) == ("", 0, 1)


async def test_the_pair_decides_where_no_name_is_given(opener: FakeOpener, tmp_path: Path) -> None:
    registry = Registry(opener)
    await registry.add(Place(write_bundle(tmp_path / "a", directions=[("de", "en")]), "a", "1"))
    await registry.add(Place(write_bundle(tmp_path / "b", directions=[("en", "es")]), "b", "1"))
    async with registry.lease("", "de", "es", may_pivot=True) as lease:
        assert (lease.model.name, lease.direction) == ("a@1", ("de", "en"))
        assert lease.second is not None
        assert (lease.second.model.name, lease.second.direction) == ("b@1", ("en", "es"))
        assert registry.num_leases == 2
    async with registry.lease("", "de", "es") as lease:
        assert isinstance(lease.direction, UnsupportedLanguageError)
        assert "ExchangeTranslations alone go through en" in str(lease.direction)
    assert registry.num_leases == 0


# -- unloading ---------------------------------------------------------------------------------------------------------


async def test_an_unloaded_model_is_gone_with_its_memory(opener: FakeOpener, tmp_path: Path) -> None:
    registry = Registry(opener)
    await registry.add(Place(write_bundle(tmp_path / "a"), "a", "1"))
    await registry.remove("a")
    assert (registry.entries, opener.open_now) == ([], set())
    with pytest.raises(ModelNotFoundError):
        await registry.remove("a")


async def test_what_is_in_use_is_unloaded_only_by_draining(opener: FakeOpener, tmp_path: Path) -> None:
    registry = Registry(opener)
    await registry.add(Place(write_bundle(tmp_path / "a"), "a", "1"))
    async with in_use(registry, "a"):
        with pytest.raises(ModelInUseError, match="1 calls are using model 'a@1'"):
            await registry.remove("a@1")
        assert await serving(registry, "a") == "a@1"
        removing = asyncio.create_task(registry.remove("a@1", drain=True))
        await asyncio.sleep(0.01)
        with pytest.raises(ModelNotFoundError):
            await serving(registry, "a")
        assert opener.open_now == {"a@1"}
    await removing
    assert opener.open_now == set()


async def test_of_several_versions_one_must_be_named(opener: FakeOpener, tmp_path: Path) -> None:
    registry = Registry(opener)
    for version in "12":
        await registry.add(Place(write_bundle(tmp_path / version), "a", version))
    for name in ("a", ""):
        with pytest.raises(InvalidInputError):
            await registry.remove(name)
    await registry.remove("a@2")
    assert await serving(registry, "a") == "a@1"


# -- defaults ----------------------------------------------------------------------------------------------------------


async def test_a_default_holds_for_a_pair_or_for_all_and_outlives_a_reload(opener: FakeOpener, tmp_path: Path) -> None:
    registry = Registry(opener)
    pairs = [("en", "fr"), ("en", "de")]
    for name in "ab":
        await registry.add(Place(write_bundle(tmp_path / name, directions=pairs), name))
    registry.set_default("b", "en-GB", "fr")
    assert (await serving(registry)).startswith("b@")
    async with registry.lease("", "en", "de") as lease:
        assert lease.model.name.startswith("a@")
    shutil.rmtree(tmp_path / "b")
    new = await registry.add(Place(write_bundle(tmp_path / "b", "changed", pairs), "b"))
    assert await serving(registry) == new.resource_name
    registry.set_default("a")
    assert (await serving(registry)).startswith("a@")


async def test_a_chosen_version_stays_until_the_name_alone_is_chosen(opener: FakeOpener, tmp_path: Path) -> None:
    registry = Registry(opener)
    entries = [await registry.add(Place(write_bundle(tmp_path / version), "a", version)) for version in "12"]
    registry.set_default("a@1")
    await registry.add(Place(write_bundle(tmp_path / "3"), "a", "3"))
    assert await serving(registry, "a") == "a@1"
    assert registry.default_versions() == entries[:1]
    registry.set_default("a")
    assert await serving(registry, "a") == "a@3"


async def test_a_default_must_be_there_and_translate_the_pair(opener: FakeOpener, tmp_path: Path) -> None:
    registry = Registry(opener)
    await registry.add(Place(write_bundle(tmp_path / "a"), "a"))
    opener.faults["b"] = "broken"
    with pytest.raises(ModelFailedError):
        await registry.add(Place(write_bundle(tmp_path / "b"), "b"))
    for arguments, error in (
        (("", "en", "fr"), InvalidInputError),
        (("a", "en", ""), InvalidInputError),
        (("a", "", "fr"), InvalidInputError),
        (("c", "en", "fr"), ModelNotFoundError),
        (("a@0", "en", "fr"), ModelNotFoundError),
        (("b", "en", "fr"), ModelFailedError),
        (("a", "fr", "en"), UnsupportedLanguageError),
    ):
        with pytest.raises(error):
            registry.set_default(*arguments)


# -- within a limit of memory ------------------------------------------------------------------------------------------


async def models(registry: Registry, folder: Path, names: str) -> None:
    for name in names:
        await registry.add(Place(write_bundle(folder / name), name, "1"))


async def test_models_are_loaded_at_their_first_use_and_the_longest_unused_makes_room(
    opener: FakeOpener, tmp_path: Path
) -> None:
    registry = Registry(opener, max_bytes=2)
    await models(registry, tmp_path, "abc")
    assert opener.opened == []
    assert registry.num_by_state()["listed"] == 3
    for name in "abac":
        assert await serving(registry, name) == f"{name}@1"
    assert opener.open_now == {"a@1", "c@1"}
    assert (opener.opened, opener.most_open) == (["a@1", "b@1", "c@1"], 2)


async def test_a_model_in_use_does_not_make_room(opener: FakeOpener, tmp_path: Path) -> None:
    registry = Registry(opener, max_bytes=2)
    await models(registry, tmp_path, "abc")
    async with in_use(registry, "a"):
        assert await serving(registry, "b") == "b@1"
        assert await serving(registry, "c") == "c@1"
        assert opener.open_now == {"a@1", "c@1"}


async def test_who_finds_all_in_use_waits_and_is_not_overtaken_for_ever(opener: FakeOpener, tmp_path: Path) -> None:
    registry = Registry(opener, max_bytes=1)
    await models(registry, tmp_path, "ab")
    num_served = 0

    async def keep_busy() -> None:
        nonlocal num_served
        while True:
            async with in_use(registry, "a"):
                await asyncio.sleep(0.002)
            num_served += 1

    busy = [asyncio.create_task(keep_busy()) for _ in range(8)]
    while not num_served:  # noqa: ASYNC110
        await asyncio.sleep(0.001)
    assert await serving(registry, "b") == "b@1"
    before = num_served
    while num_served < before + 8:  # noqa: ASYNC110
        await asyncio.sleep(0.001)
    for task in busy:
        task.cancel()
    await asyncio.gather(*busy, return_exceptions=True)
    assert opener.most_open == 1


async def test_a_call_that_waited_gets_what_is_served_then(
    opener: FakeOpener, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(residence, "_GATE_SECONDS", 10.0)
    registry = Registry(opener, max_bytes=1)
    await models(registry, tmp_path, "ab")
    old = registry.find("a").resource_name
    async with in_use(registry, "a"):
        wants_b = asyncio.create_task(serving(registry, "b"))
        await asyncio.sleep(0.01)  # now the gate is closed
        wants_a = asyncio.create_task(serving(registry, "a"))
        await asyncio.sleep(0.01)
        removing = asyncio.create_task(registry.remove("a", drain=True))
        await asyncio.sleep(0.01)
        new = await registry.add(Place(write_bundle(tmp_path / "new"), "a", "2"))
    assert await wants_b == "b@1"
    await removing
    assert await wants_a == new.resource_name != old
    await settled(opener, new.resource_name)


async def test_calls_through_two_models_do_not_block_each_other(opener: FakeOpener, tmp_path: Path) -> None:
    registry = Registry(opener, max_bytes=2)
    for name, pair in (("a", ("xx", "en")), ("b", ("yy", "en")), ("c", ("en", "zz"))):
        await registry.add(Place(write_bundle(tmp_path / name, directions=[pair]), name, "1"))

    async def call(source: str) -> None:
        async with registry.lease("", source, "zz", may_pivot=True) as lease:
            assert lease.second is not None
            await asyncio.sleep(0.001)

    await asyncio.wait_for(asyncio.gather(*(call(source) for source in ("xx", "yy") * 10)), 20)
    assert opener.most_open == 2


async def test_a_model_that_failed_at_its_use_is_tried_again(
    opener: FakeOpener, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(residence, "_SECONDS_TO_NEXT_TRY", 0.05)
    registry = Registry(opener, max_bytes=1)
    await models(registry, tmp_path, "a")
    opener.faults["a"] = "too many open files"
    for _ in range(2):
        with pytest.raises(ModelFailedError, match="too many open files"):
            await serving(registry, "a")
    del opener.faults["a"]
    await asyncio.sleep(0.06)
    assert await serving(registry, "a") == "a@1"


async def test_who_finds_no_room_is_told_in_time(
    opener: FakeOpener, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(residence, "_GATE_SECONDS", 0.01)
    monkeypatch.setattr(residence, "_MAX_SECONDS_FOR_ROOM", 0.05)
    registry = Registry(opener, max_bytes=1)
    await models(registry, tmp_path, "ab")
    async with in_use(registry, "a"):
        with pytest.raises(NoRoomError, match="'b' has no room within max_model_bytes"):
            await serving(registry, "b")
        assert await serving(registry, "a") == "a@1"
    assert await serving(registry, "b") == "b@1"


async def test_a_call_waits_for_its_model_no_longer_than_it_may(opener: FakeOpener, tmp_path: Path) -> None:
    registry = Registry(opener, max_bytes=1)
    await models(registry, tmp_path, "ab")
    may_go_on = threading.Event()
    opener.before = lambda _: may_go_on.wait()
    with pytest.raises(DeadlineError):
        async with registry.lease("a", "en", "fr", monotonic() + 0.05):
            pass
    assert registry.num_leases == 0
    may_go_on.set()
    assert await serving(registry, "a") == "a@1"


async def test_a_model_that_turns_out_broken_fails_its_callers_and_nobody_else(
    opener: FakeOpener, tmp_path: Path
) -> None:
    registry = Registry(opener, max_bytes=2)
    await models(registry, tmp_path, "ab")
    opener.faults["a"] = "weights.bin is damaged"
    answers = await asyncio.gather(*(serving(registry, name) for name in "aabb"), return_exceptions=True)
    assert [isinstance(answer, ModelFailedError) for answer in answers] == [True, True, False, False]
    assert (await serving(registry), registry.num_leases) == ("b@1", 0)
    del opener.faults["a"]
    await registry.add(Place(tmp_path / "a", "a", "1"))
    assert await serving(registry, "a") == "a@1"


async def test_a_model_over_the_limit_is_refused(opener: FakeOpener, tmp_path: Path) -> None:
    opener.sizes = {"big": 5, "a": 2, "b": 2}
    registry = Registry(opener, max_bytes=3)
    with pytest.raises(ModelTooLargeError, match="'big' takes 5 bytes; max_model_bytes, for all models, is 3"):
        await registry.add(Place(write_bundle(tmp_path / "big"), "big", "1"))
    await registry.add(Place(write_bundle(tmp_path / "a", directions=[("de", "en")]), "a", "1"))
    await registry.add(Place(write_bundle(tmp_path / "b", directions=[("en", "es")]), "b", "1"))
    with pytest.raises(ModelTooLargeError, match="models 'a' and 'b' take 4 bytes"):
        async with registry.lease("", "de", "es", may_pivot=True):
            pass


async def test_a_model_that_does_both_legs_needs_its_room_once(opener: FakeOpener, tmp_path: Path) -> None:
    registry = Registry(opener, max_bytes=1)
    await registry.add(Place(write_bundle(tmp_path / "a", directions=[("de", "en"), ("en", "es")]), "a", "1"))
    async with registry.lease("", "de", "es", may_pivot=True) as lease:
        assert lease.second is not None
        assert lease.second.model is lease.model


async def test_a_model_that_is_unloaded_while_it_is_loaded_is_freed(opener: FakeOpener, tmp_path: Path) -> None:
    registry = Registry(opener, max_bytes=2)
    await models(registry, tmp_path, "a")
    loading, may_go_on = threading.Event(), threading.Event()

    def before(_: Entry) -> None:
        loading.set()
        may_go_on.wait()

    opener.before = before
    with pytest.raises(DeadlineError):
        async with registry.lease("a", "en", "fr", monotonic() + 0.05):
            pass
    await asyncio.to_thread(loading.wait)
    removing = asyncio.create_task(registry.remove("a"))
    await asyncio.sleep(0.01)
    may_go_on.set()
    await removing
    assert (opener.opened, opener.open_now) == (["a@1"], set())


async def test_a_server_that_stops_gives_up_what_it_loads(opener: FakeOpener, tmp_path: Path) -> None:
    stop, may_go_on = asyncio.Event(), threading.Event()
    opener.before = lambda _: may_go_on.wait()
    registry = Registry(opener, max_bytes=2, stop=stop)
    await models(registry, tmp_path, "a")
    waiting = asyncio.create_task(serving(registry, "a"))
    await asyncio.sleep(0.01)
    stop.set()
    with pytest.raises(DrainingError):
        await waiting
    may_go_on.set()


async def test_a_model_that_nobody_uses_gives_memory_back_once(opener: FakeOpener, tmp_path: Path) -> None:
    registry = Registry(opener)
    await models(registry, tmp_path, "ab")
    engines = {}
    for name in "ab":
        async with registry.lease(name, "en", "fr") as lease:
            engines[name] = lease.model.engine
    async with in_use(registry, "a"):
        for _ in range(3):
            await registry.give_back_memory(0.0)
    await registry.give_back_memory(1000.0)
    assert [engine.num_given_back for engine in engines.values()] == [0, 1]  # type: ignore[attr-defined]
    await serving(registry, "b")
    await registry.give_back_memory(0.0)
    assert [engine.num_given_back for engine in engines.values()] == [1, 2]  # type: ignore[attr-defined]
    assert registry.num_leases == 0


# -- what others are told ----------------------------------------------------------------------------------------------


async def test_changes_and_loads_are_told(opener: FakeOpener, tmp_path: Path) -> None:
    states: list[dict[str, int]] = []
    loads: list[tuple[str, bool]] = []
    registry = Registry(
        opener,
        on_change=lambda registry: states.append(registry.num_by_state()),
        on_load=lambda name, ok, _: loads.append((name, ok)),
    )
    opener.faults["b"] = "broken"
    await registry.add(Place(write_bundle(tmp_path / "a"), "a", "1"))
    with pytest.raises(ModelFailedError):
        await registry.add(Place(write_bundle(tmp_path / "b"), "b", "1"))
    (tmp_path / "c").mkdir()
    with pytest.raises(ModelFailedError):
        await registry.add(Place(tmp_path / "c", "c", "1"))
    assert loads == [("a", True), ("b", False), ("c", False)]
    assert {state: number for state, number in states[-1].items() if number} == {"ready": 1, "failed": 2}


async def test_at_the_end_all_models_are_closed(opener: FakeOpener, tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        registry = stack.enter_context(Registry(opener))
        await models(registry, tmp_path, "ab")
    assert opener.open_now == set()
