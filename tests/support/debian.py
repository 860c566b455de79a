"""Folders with packages of Debian, unpacked and not installed, of any architecture: no right of root is needed."""

import subprocess
import tempfile
from pathlib import Path

RELEASE = "trixie"


def unpack(folder: Path, architecture: str, *packages: str) -> None:
    """Unpacks packages with all that they depend on, as from nothing, into a folder.

    Needs apt, the keys of Debian's archive and the network.

    Raises:
        CalledProcessError: apt or dpkg fails; what it says is on stderr.
    """
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        for needed in ("lists/partial", "cache/archives/partial"):
            (work / needed).mkdir(parents=True)
        sources = f"deb [arch={architecture}] http://deb.debian.org/debian {RELEASE} main\n"
        (work / "sources.list").write_text(sources)
        options = {
            "APT::Architecture": architecture,
            "APT::Architectures": architecture,
            "APT::Install-Recommends": "false",
            "APT::Sandbox::User": "",
            "Dir::Cache": work / "cache",
            "Dir::Etc::SourceList": work / "sources.list",
            "Dir::Etc::SourceParts": "-",
            "Dir::State::Lists": work / "lists",
            "Dir::State::Status": "/dev/null",
            "Debug::NoLocking": "true",
        }
        apt = ["apt-get", "--quiet=2", *(f"--option={key}={value}" for key, value in options.items())]
        subprocess.run([*apt, "update"], check=True)
        subprocess.run([*apt, "install", "--yes", "--download-only", *packages], check=True)
        folder.mkdir(parents=True, exist_ok=True)
        # Most packages count on /lib and such to be there already.
        for top in ("bin", "lib", "lib64", "sbin"):
            (folder / "usr" / top).mkdir(parents=True, exist_ok=True)
            if not (folder / top).exists():
                (folder / top).symlink_to(f"usr/{top}")
        for package in sorted((work / "cache/archives").glob("*.deb")):
            subprocess.run(["dpkg-deb", "--extract", package, folder], check=True)
