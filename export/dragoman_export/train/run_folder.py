"""The folder of one training: its settings, its state, its snapshots."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from dragoman_export.checkpoint import WEIGHTS_FILE

SETTINGS_FILE, STATE_FILE, SNAPSHOT_FOLDER = "settings.json", "training_state.pt", "snapshots"

Setting = str | int | float | bool


class RunFolder:
    """Every file is written under a temporary name and renamed, so that a kill leaves the old file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def is_begun(self) -> bool:
        return (self.path / SETTINGS_FILE).exists()

    @property
    def has_state(self) -> bool:
        return (self.path / STATE_FILE).exists()

    def check(self, settings: Mapping[str, Setting]) -> None:
        """Makes sure that a training with these settings can begin or continue here.

        Raises:
            ValueError: it was begun with other settings, or the folder has a model that was not trained in it.
        """
        if not self.is_begun and (self.has_state or (self.path / WEIGHTS_FILE).exists()):
            raise ValueError(f"{self.path} has a model, and no note of how it was trained: give another folder")
        noted = self._settings()
        others = {name: value for name, value in settings.items() if noted.get(name, value) != value}
        if others:
            begun, given = (", ".join(f"{name} {values[name]}" for name in others) for values in (noted, others))
            raise ValueError(
                f"the training in {self.path} was begun with {begun}, and cannot be continued with {given}: "
                "give the same, or another folder"
            )

    def begin(self, settings: Mapping[str, Setting]) -> None:
        """Checks the settings and notes them."""
        self.check(settings)
        self.path.mkdir(parents=True, exist_ok=True)
        partial = self.path / (SETTINGS_FILE + ".tmp")
        partial.write_text(json.dumps({**self._settings(), **settings}, indent=2) + "\n", encoding="utf-8")
        partial.replace(self.path / SETTINGS_FILE)

    def _settings(self) -> dict[str, Setting]:
        if not self.is_begun:
            return {}
        settings: dict[str, Setting] = json.loads((self.path / SETTINGS_FILE).read_text(encoding="utf-8"))
        return settings

    def save_state(self, state: Mapping[str, Any]) -> None:
        self.path.mkdir(parents=True, exist_ok=True)
        partial = self.path / (STATE_FILE + ".tmp")
        torch.save(dict(state), partial)
        partial.replace(self.path / STATE_FILE)

    def load_state(self, device: torch.device) -> dict[str, Any]:
        state: dict[str, Any] = torch.load(self.path / STATE_FILE, map_location=device, weights_only=True)
        return state

    def save_snapshot(self, step: int, tensors: Mapping[str, Tensor], num_kept: int) -> None:
        """Keeps the last `num_kept` snapshots, this one among them."""
        path = self._snapshot(step)
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".tmp")
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, partial)
        partial.replace(path)
        for old in self._snapshots()[:-num_kept]:
            old.unlink()

    def forget_snapshots_after(self, step: int) -> None:
        """Snapshots that were written between the last state and a kill are written again, maybe at other steps."""
        for snapshot in self._snapshots():
            if snapshot > self._snapshot(step):
                snapshot.unlink()

    def mean_of_snapshots(self) -> dict[str, Tensor]:
        snapshots = [load_file(path) for path in self._snapshots()]
        return {name: torch.stack([s[name] for s in snapshots]).mean(dim=0) for name in snapshots[0]}

    def _snapshot(self, step: int) -> Path:
        return self.path / SNAPSHOT_FOLDER / f"step-{step:08d}.safetensors"

    def _snapshots(self) -> list[Path]:
        return sorted((self.path / SNAPSHOT_FOLDER).glob("step-*.safetensors"))
