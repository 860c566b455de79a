import os
from dataclasses import replace
from pathlib import Path

import pytest

from dragoman_server.config import Config, EngineOptions, InputLimits, validate
from dragoman_server.errors import StartError
from dragoman_server.runtime.cpus import available_cpus


def test_the_defaults_are_valid() -> None:
    validate(Config())


@pytest.mark.parametrize(
    ("config", "name", "value"),
    [
        (Config(listen="50051"), "listen", "'50051'"),
        (Config(metrics_listen="localhost:"), "metrics_listen", "'localhost:'"),
        (Config(shutdown_grace_seconds=float("nan")), "shutdown_grace_seconds", "nan"),
        (Config(engine=EngineOptions(max_running=0)), "max_running", "0"),
        (Config(engine=EngineOptions(max_waiting=0)), "max_waiting", "0"),
        (Config(engine=EngineOptions(max_encoder_tokens=-1)), "max_encoder_tokens", "-1"),
        (Config(engine=EngineOptions(num_threads=-1)), "num_threads", "-1"),
        (Config(engine=EngineOptions(lanes=0)), "lanes", "0"),
        (Config(limits=InputLimits(max_inputs=0)), "max_inputs", "0"),
        (Config(limits=InputLimits(max_text_characters=0)), "max_text_characters", "0"),
        (Config(engine=EngineOptions(max_kv_bytes=-1)), "max_kv_bytes", "-1"),
        (Config(limits=InputLimits(max_exchange_in_flight=0)), "max_exchange_in_flight", "0"),
        (Config(limits=InputLimits(max_attention_bytes=0)), "max_attention_bytes", "0"),
        (Config(limits=InputLimits(max_message_bytes=2**31)), "max_message_bytes", str(2**31)),
    ],
)
def test_a_bad_option_is_named_with_its_value(config: Config, name: str, value: str) -> None:
    with pytest.raises(StartError) as caught:
        validate(config)
    assert str(caught.value).startswith(f"{name} must be ")
    assert str(caught.value).endswith(f" is {value}.")


def test_all_bad_options_are_named_at_once() -> None:
    config = replace(Config(), listen="nowhere", engine=EngineOptions(max_running=0, num_threads=-2))
    with pytest.raises(StartError, match=r"listen must .* max_running must .* num_threads must "):
        validate(config)


@pytest.mark.parametrize(
    ("lanes", "num_threads", "num_cpus", "shape"),
    [
        (None, 0, 8, (8, 1)),
        (None, 0, 1, (1, 1)),
        (None, 4, 8, (2, 4)),
        (None, 3, 8, (2, 3)),
        (None, 16, 8, (1, 16)),
        (2, 0, 8, (2, 4)),
        (3, 0, 8, (3, 2)),
        (5, 0, 2, (5, 1)),
        (2, 2, 2, (2, 2)),
    ],
)
def test_lanes_and_their_threads_take_all_cpus(
    lanes: int | None, num_threads: int, num_cpus: int, shape: tuple[int, int]
) -> None:
    assert EngineOptions(lanes=lanes, num_threads=num_threads).shape(num_cpus) == shape


class Machine:
    """A made-up /proc and /sys under a folder, on a machine of 8 CPUs."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def write(self, path: str, text: str) -> None:
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text + "\n", encoding="ascii")

    def cpus(self) -> int:
        return available_cpus(self.root)


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    return Machine(tmp_path)


def test_without_control_groups_the_affinity_mask_counts(machine: Machine) -> None:
    assert machine.cpus() == 8


@pytest.mark.parametrize(("limit", "cpus"), [("max 100000", 8), ("250000 100000", 2), ("50000 100000", 1)])
def test_a_quota_of_version_2_counts(machine: Machine, limit: str, cpus: int) -> None:
    machine.write("proc/self/cgroup", "0::/")
    machine.write("sys/fs/cgroup/cpu.max", limit)
    assert machine.cpus() == cpus


def test_the_quota_of_an_outer_group_counts_too(machine: Machine) -> None:
    machine.write("proc/self/cgroup", "0::/outer/inner")
    machine.write("sys/fs/cgroup/outer/cpu.max", "300000 100000")
    machine.write("sys/fs/cgroup/outer/inner/cpu.max", "500000 100000")
    assert machine.cpus() == 3


@pytest.mark.parametrize(("limit", "cpus"), [("-1", 8), ("400000", 4)])
def test_a_quota_of_version_1_counts(machine: Machine, limit: str, cpus: int) -> None:
    machine.write("proc/self/cgroup", "4:memory:/x\n1:cpu,cpuacct:/docker/1f\n0::/")
    machine.write("sys/fs/cgroup/cpu/cpu.cfs_quota_us", limit)
    machine.write("sys/fs/cgroup/cpu/cpu.cfs_period_us", "100000")
    assert machine.cpus() == cpus
