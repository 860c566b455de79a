"""Repositories of tiny models, and bundles that are swapped while a server has them."""

import shutil
from pathlib import Path

from dragoman_server.bundle.manifest import MANIFEST_FILE
from support.bundles import edit_manifest


def copy_bundle(source: Path, folder: Path, pair: tuple[str, str] | None = None, name: str | None = None) -> Path:
    """A copy of a tiny bundle, for another pair of languages or under another name if that is said."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    shutil.copytree(source, folder)

    def edit(values: dict[str, object]) -> None:
        if name is not None:
            values["name"] = name
        if pair is not None:
            languages: dict[str, dict[str, list[int]]] = values["languages"]  # type: ignore[assignment]
            tag = next(iter(languages["token_ids"].values()))
            values["languages"] = {
                "directions": [{"sources": [pair[0]], "targets": [pair[1]]}],
                "token_ids": {pair[1]: tag},
                "aliases": {},
            }
            parity: dict[str, list[dict[str, object]]] = values["parity"]  # type: ignore[assignment]
            golden = [each for each in parity["golden"] if each["source_ids"][0] == tag[0]]  # type: ignore[index]
            parity["golden"] = [{**each, "direction": [*pair]} for each in golden]

    edit_manifest(folder, edit)
    return folder


def swap(folder: Path, source: Path) -> None:
    """Puts a copy of a bundle in a folder's place, by two renames."""
    new, old = folder.with_name(f".{folder.name}.new"), folder.with_name(f".{folder.name}.old")
    shutil.copytree(source, new)
    if folder.exists():
        folder.rename(old)
    new.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def copy_in_steps(source: Path, folder: Path) -> list[Path]:
    """Makes the folder, and gives the files that are still to be copied, the manifest last."""
    folder.mkdir()
    return sorted(source.iterdir(), key=lambda path: (path.name == MANIFEST_FILE, path.name))


def resident_bytes(pid: int) -> int:
    """Memory of a process, without what the kernel could drop at once."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("the kernel tells no resident memory")
