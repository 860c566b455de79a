"""Hardware that is not there."""

from dataclasses import replace

from dragoman_server.config import EngineOptions
from dragoman_server.engine.kv_budget import KvBudget
from dragoman_server.runtime.device import Device
from dragoman_server.runtime.hardware import Hardware


class SeveralDevices(Hardware):
    """The CPUs, as if they were several devices: each with lanes and memory of its own."""

    def __init__(self, options: EngineOptions, num_devices: int) -> None:
        super().__init__(options)
        for _ in range(num_devices - 1):
            self._cpu += (replace(self._cpu[0], device=Device.of(options), budget=KvBudget()),)
