import os
import re
from dataclasses import replace
from pathlib import Path
from typing import Literal, get_args

import pytest

from dragoman_server.config import OPTIONS, Config, EngineOptions, InputLimits, ModelOptions, validate
from dragoman_server.errors import StartError
from dragoman_server.runtime.machine import available_cpus, available_memory, cpu_allowance, throttled_periods


def test_the_defaults_are_valid() -> None:
    validate(Config())


@pytest.mark.parametrize(
    ("config", "name", "value"),
    [
        (Config(listen="50051"), "listen", "'50051'"),
        (Config(models=ModelOptions(model=("a", "n=b", "a"))), "model", "'a'"),
        (Config(models=ModelOptions(watch_seconds=1.5)), "watch_seconds", "1.5"),
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
        (Config(engine=EngineOptions(max_running=True)), "max_running", "True"),
        (Config(engine=EngineOptions(lanes=2000)), "lanes", "2000"),
    ],
)
def test_a_bad_option_is_named_with_its_value(config: Config, name: str, value: str) -> None:
    with pytest.raises(StartError) as caught:
        validate(config)
    assert str(caught.value).startswith(f"{name} must be ")
    assert str(caught.value).endswith(f" is {value}.")


def test_every_number_has_a_range() -> None:
    for option in OPTIONS:
        for kind in (option.type, *get_args(option.type)):
            if kind in (int, float):
                assert re.search(r"\d+ to \d+ [a-z]+$", option.range), option.name


def test_all_bad_options_are_named_at_once() -> None:
    config = replace(Config(), listen="nowhere", engine=EngineOptions(max_running=0, num_threads=-2))
    with pytest.raises(StartError, match=r"listen must .* num_threads must .* max_running must "):
        validate(config)


@pytest.mark.parametrize(
    ("lanes", "num_threads", "num_cpus", "shape"),
    [
        ("auto", 0, 8, (8, 1)),
        ("auto", 0, 1, (1, 1)),
        ("auto", 4, 8, (2, 4)),
        ("auto", 3, 8, (2, 3)),
        ("auto", 16, 8, (1, 16)),
        (2, 0, 8, (2, 4)),
        (3, 0, 8, (3, 2)),
        (5, 0, 2, (5, 1)),
        (2, 2, 2, (2, 2)),
    ],
)
def test_lanes_and_their_threads_take_all_cpus(
    lanes: int | Literal["auto"], num_threads: int, num_cpus: int, shape: tuple[int, int]
) -> None:
    assert EngineOptions(lanes=lanes, num_threads=num_threads).shape(num_cpus) == shape


@pytest.mark.parametrize(
    ("options", "cpus"),
    [
        (EngineOptions(), 8.0),
        (EngineOptions(), 2.5),  # the half is left idle
        (EngineOptions(), 1.0),
        (EngineOptions(lanes=8), 8.0),
        (EngineOptions(lanes=3), 8.0),
        (EngineOptions(lanes=2, num_threads=4), 8.0),
        (EngineOptions(num_threads=8), 8.0),
    ],
)
def test_a_shape_that_fits_is_not_warned_of(options: EngineOptions, cpus: float) -> None:
    assert options.misfit(cpus) is None


@pytest.mark.parametrize(
    ("options", "cpus", "begins"),
    [
        (EngineOptions(lanes=5), 2.0, "lanes (5) x num_threads (1) is more than the 2 CPUs"),
        (EngineOptions(lanes=2, num_threads=2), 3.0, "lanes (2) x num_threads (2) is more than the 3 CPUs"),
        (EngineOptions(num_threads=16), 8.0, "lanes (1) x num_threads (16) is more than the 8 CPUs"),
        (EngineOptions(lanes=3), 2.5, "lanes (3) x num_threads (1) is more than the 2.5 CPUs"),
        (EngineOptions(), 0.5, "lanes (1) x num_threads (1) is more than the 0.5 CPUs"),
    ],
)
def test_a_shape_beyond_the_cpus_is_one_sentence(options: EngineOptions, cpus: float, begins: str) -> None:
    sentence = options.misfit(cpus)
    assert sentence is not None
    assert sentence.startswith(begins)
    assert sentence.count(". ") == 0


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


@pytest.mark.parametrize(
    ("limit", "allowance", "cpus"),
    [("max 100000", 8.0, 8), ("250000 100000", 2.5, 2), ("50000 100000", 0.5, 1), ("900000 100000", 8.0, 8)],
)
def test_a_quota_of_version_2_counts(machine: Machine, limit: str, allowance: float, cpus: int) -> None:
    machine.write("proc/self/cgroup", "0::/")
    machine.write("sys/fs/cgroup/cpu.max", limit)
    assert cpu_allowance(machine.root) == allowance
    assert machine.cpus() == cpus


@pytest.mark.parametrize(
    ("group", "path", "limit", "has"),
    [
        ("0::/", "memory.max", "max", 1 << 30),
        ("0::/", "memory.max", "1000000", 1_000_000),
        ("0::/", "memory.max", str(1 << 40), 1 << 30),
        ("9:memory:/", "memory/memory.limit_in_bytes", "2000000", 2_000_000),
        ("9:memory:/", "memory/memory.limit_in_bytes", "9223372036854771712", 1 << 30),
        ("", "memory.max", "1000000", 1 << 30),
    ],
)
def test_the_memory_is_that_of_the_machine_or_the_limit_of_the_group(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, group: str, path: str, limit: str, has: int
) -> None:
    monkeypatch.setattr(os, "sysconf", {"SC_PHYS_PAGES": 1 << 18, "SC_PAGE_SIZE": 1 << 12}.__getitem__)
    machine.write("proc/self/cgroup", group)
    machine.write(f"sys/fs/cgroup/{path}", limit)
    assert available_memory(machine.root) == has


def test_half_a_cpu_is_served_by_one_lane_of_one_thread(machine: Machine) -> None:
    machine.write("proc/self/cgroup", "0::/")
    machine.write("sys/fs/cgroup/cpu.max", "50000 100000")
    assert EngineOptions().shape(machine.cpus()) == (1, 1)


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


@pytest.mark.parametrize(("group", "path"), [("0::/a/b", "a/"), ("1:cpu,cpuacct:/a", "cpu/a/")])
def test_throttled_periods_are_those_of_the_group_with_a_quota(machine: Machine, group: str, path: str) -> None:
    assert throttled_periods(machine.root) == (0, 0)
    machine.write("proc/self/cgroup", group)
    machine.write("sys/fs/cgroup/a/b/cpu.stat", "usage_usec 5\nnr_periods 0\nnr_throttled 0")
    machine.write(f"sys/fs/cgroup/{path}cpu.stat", "usage_usec 5\nnr_periods 40\nnr_throttled 10\nthrottled_usec 9")
    assert throttled_periods(machine.root) == (40, 10)
