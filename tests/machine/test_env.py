"""`runner env` tells what a machine has, and nothing that a stranger should not read."""

import getpass
import importlib.util
import json
import socket
import tomllib
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import pytest
import torch

from runner.cli.main import main
from runner.config.extras import FOR_DEVELOPMENT
from runner.machine import limits, links
from runner.machine.options import option_faults, shipped_options
from runner.machine.report import as_text, collect
from runner.machine.versions import libraries
from tests.conftest import CHECKOUT

TOPOLOGY = """\
\t\x1b[4mGPU0\tGPU1\tGPU2\tNIC0\tCPU Affinity\tNUMA Affinity\x1b[0m
GPU0\t X \tNV18\tPHB\tNODE\t0-63\t0
GPU1\tNV18\t X \tSYS\tSYS\t0-63\t0
GPU2\tPHB\tSYS\t X \tSYS\t64-127\t1
NIC0\tNODE\tSYS\tSYS\t X

Legend:

  X    = Self
"""


@pytest.fixture(scope="module")
def report() -> dict[str, Any]:
    return collect(Path.cwd())


def test_the_report_is_what_the_machine_says_itself(
    report: dict[str, Any], capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["env", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told.keys() == report.keys()
    assert told["versions"]["torch"] == torch.__version__
    assert {one["name"] for one in told["interfaces"]} == {name for _, name in socket.if_nameindex()}
    assert [one["usable"] for one in told["interfaces"] if one["loopback"]] == [True]
    assert len(told["accelerators"]) == torch.cuda.device_count() or torch.backends.mps.is_available()
    assert list(tmp_path.iterdir()) == []


def test_every_library_of_the_extras_is_there(report: dict[str, Any]) -> None:
    assert report["libraries"]["torch"] == torch.__version__
    assert {"deepspeed", "torchao", "wandb", "scikit-learn", "transformers"} <= report["libraries"].keys()
    assert not {"hypothesis", "mypy", "furo", "hydra-runner"} & libraries().keys()
    extras = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert extras.keys() == {
        "demo",
        "transformers",
        "datasets",
        "metrics",
        "parquet",
        "fp8",
        "deepspeed",
        *FOR_DEVELOPMENT,
    }


def test_every_option_is_asked(report: dict[str, Any]) -> None:
    files = sorted((CHECKOUT / "conf").glob("*/*.yaml"))
    assert [(group, name) for group, found in shipped_options().items() for name in found] == [
        (path.parent.name, path.stem) for path in files
    ]
    asked = [(group, name) for group, found in report["options"].items() for name in found]
    assert sorted(asked) == [(path.parent.name, path.stem) for path in files]
    assert report["options"]["strategy"]["ddp"] == report["options"]["hardware"]["cpu"] == []


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_an_option_without_its_device_says_so(report: dict[str, Any]) -> None:
    (fault,) = report["options"]["hardware"]["cuda"]
    assert "hardware.processes: 1 process, but this machine has 0 CUDA devices." in fault
    assert f"hardware=cuda: {fault}" in as_text(report)


def test_an_option_without_its_library_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    missing, find = ("deepspeed", "torchao", "wandb", "tensorboard"), importlib.util.find_spec

    def find_spec(name: str, package: str | None = None) -> ModuleSpec | None:
        return None if name in missing else find(name, package)

    monkeypatch.setattr(importlib.util, "find_spec", find_spec)
    found = option_faults()
    for group, name, words in (
        ("strategy", "deepspeed_zero2", "pip install 'hydra-runner[deepspeed]'"),
        ("precision", "fp8", "pip install 'hydra-runner[fp8]'"),
        ("tracker", "wandb", "tracker.wandb: the library is not installed: pip install wandb."),
        ("tracker", "tensorboard", "the library is not installed: pip install tensorboard."),
    ):
        assert words in " ".join(found[group][name])
    assert found["strategy"]["fsdp"] == []


def test_nothing_is_told_that_a_stranger_should_not_read(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    planted = {"WANDB_API_KEY": "hush-hush-1", "MASTER_ADDR": "localhost", "MY_TOKEN": "hush-hush-2"}
    for name, value in planted.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    assert main(["env"]) == 0
    said = capsys.readouterr().out
    assert "MASTER_ADDR  loopback" in said
    host = socket.gethostname()
    private = {*planted.values(), str(tmp_path), str(Path.home()), f"/{getpass.getuser()}/"}
    private |= {host} if len(host) > 3 and host not in ("localhost", "linux") else set()
    assert [text for text in private if text in said] == []


@pytest.mark.parametrize(
    ("address", "where"),
    [("127.0.0.1", "loopback"), ("203.0.113.7", "another machine"), ("", "does not resolve")],
)
def test_a_name_is_told_by_where_it_leads(monkeypatch: pytest.MonkeyPatch, address: str, where: str) -> None:
    monkeypatch.setenv("MASTER_ADDR", address or "no such name")
    assert links.names()["MASTER_ADDR"] == where


def test_links_between_devices_are_counted_by_kind() -> None:
    assert links.parse_topology(TOPOLOGY) == {"NV18": 1, "PHB": 1, "SYS": 1}
    assert links.parse_topology("") == {}


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"memory.max": "max", "cpu.max": "max 100000"}, {"memory_gib": None, "cpus": None}),
        ({"memory.max": str(3 << 30), "cpu.max": "150000 100000"}, {"memory_gib": 3.0, "cpus": 1.5}),
        (
            {
                "memory/memory.limit_in_bytes": str((1 << 63) - 4096),
                "cpu/cpu.cfs_quota_us": "-1",
                "cpu/cpu.cfs_period_us": "100000",
            },
            {"memory_gib": None, "cpus": None},
        ),
        (
            {
                "memory/memory.limit_in_bytes": str(2 << 30),
                "cpu/cpu.cfs_quota_us": "50000",
                "cpu/cpu.cfs_period_us": "100000",
            },
            {"memory_gib": 2.0, "cpus": 0.5},
        ),
    ],
)
def test_limits_of_a_container_are_read_in_both_versions(tmp_path: Path, files: Any, expected: Any) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text + "\n")
    assert limits.container(tmp_path) == expected
