"""A manifest holds the hash of itself: nothing in it changes unseen, and it belongs to the directory that it is in."""

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import xxhash
from torch import Tensor

from runner.errors import CheckpointError
from runner.protocols import State
from runner.storage.checkpoints import Checkpoints
from runner.storage.decode import decode_manifest
from runner.storage.format import Manifest, encode_manifest
from runner.storage.history import choose
from runner.world.solo import SoloWorld
from tests.storage.forging import change_manifest, manifest_of

Save = Callable[..., Path]


def test_every_flipped_bit_is_found_and_named(checkpoints: Checkpoints, save: Save) -> None:
    """None of them makes a run continue from an older checkpoint."""
    save(1)
    file = save(2, **{"eval/loss": 0.5}) / "manifest.json"
    content = file.read_bytes()
    with file.open("r+b", buffering=0) as opened:
        for bit in range(8 * len(content)):
            os.pwrite(opened.fileno(), bytes([content[bit // 8] ^ 1 << bit % 8]), bit // 8)
            with pytest.raises(CheckpointError) as caught:
                decode_manifest(file.parent)
            assert str(caught.value).startswith(f"{file} is corrupted: it does not match the hash of itself"), bit
            if bit % 500 == 0:  # the whole way, which verifies the older one each time
                with pytest.raises(CheckpointError) as caught:
                    checkpoints.latest()
                assert str(caught.value).endswith("An older checkpoint is intact; continue from it: --from step_1.")
            os.pwrite(opened.fileno(), content[bit // 8 : bit // 8 + 1], bit // 8)
    assert checkpoints.latest() == file.parent


@pytest.mark.parametrize("changed", [b"%s\n", b"%s ", b" %s", b"\n%s", b"%s{}", b"\xef\xbb\xbf%s"])
def test_a_byte_more_is_found(checkpoints: Checkpoints, save: Save, changed: bytes) -> None:
    file = save(2) / "manifest.json"
    file.write_bytes(changed % file.read_bytes())
    with pytest.raises(CheckpointError, match=r"manifest.json is corrupted: it does not match the hash of itself"):
        checkpoints.latest()


def test_the_hash_of_its_first_line_is_its_second(save: Save) -> None:
    """As a person would compare them: head -n 1 manifest.json | xxh128sum."""
    file = save(1) / "manifest.json"
    first = subprocess.run(["head", "-n", "1", str(file)], check=True, capture_output=True).stdout
    assert json.loads(file.read_text())["xxh3_128"] == xxhash.xxh3_128_hexdigest(first)
    assert file.read_bytes() == first + b'"xxh3_128": "%s"}\n' % xxhash.xxh3_128_hexdigest(first).encode()


def test_a_directory_that_was_renamed_is_refused(checkpoints: Checkpoints, save: Save) -> None:
    save(1)
    path = save(2).rename(save(1).parent / "step_9")
    with pytest.raises(CheckpointError) as caught:
        checkpoints.latest()
    fault = f"{path}/manifest.json is corrupted: its step is 2, but its directory is step_9."
    assert str(caught.value) == f"{fault} An older checkpoint is intact; continue from it: --from step_1."


def test_of_two_with_one_serial_number_none_is_taken_for_the_newer(
    tmp_path: Path, checkpoints: Checkpoints, save: Save, world: SoloWorld
) -> None:
    save(1)
    change_manifest(save(2), lambda fields: fields.update(serial=1))
    with pytest.raises(CheckpointError, match=r"step_\d and step_\d have the serial number 1: which one is the newer"):
        checkpoints.latest()
    path = choose(tmp_path / "checkpoints", "step_1")
    assert Checkpoints(tmp_path / "checkpoints", world).latest() == path  # as the run does that is started then


def test_a_metric_that_is_not_finite_is_null() -> None:
    metrics = {"a": float("nan"), "b": float("inf"), "c": 1.5}
    text = encode_manifest(Manifest(step=1, position=0, world_size=1, serial=1, metrics=metrics, files={}))
    assert json.loads(text)["metrics"] == {"a": None, "b": None, "c": 1.5}
    assert b"NaN" not in text


WRONG = [
    ("step", -1, "step is -1, but must be a whole number from 0"),
    ("step", True, "step is True, but must be a whole number"),
    ("step", 2.0, "step is 2.0, but must be a whole number"),
    ("position", "3", "position is '3', but must be a whole number"),
    ("position", 2**63, "position is 9223372036854775808, but must be"),
    ("world_size", 0, "world_size is 0, but must be a whole number from 1"),
    ("serial", None, "serial is None, but must be a whole number"),
    ("serial", 10**400, "serial is 10000000000"),
    ("metrics", [], r"metrics is \[\], but must be an object"),
    ("metrics", {"a": "x"}, r"metrics\['a'\] is 'x', but must be a finite number or null"),
    ("metrics", {"a": True}, r"metrics\['a'\] is True, but must be a finite number or null"),
    ("metrics", {"a": 10**400}, r"metrics\['a'\] is 1000.*, but must be a finite number or null"),
    ("metrics", {"a": float("nan")}, "it holds NaN, which is not JSON"),
    ("files", {}, "files lacks metadata.json"),
    ("files", 7, "files is 7, but must be an object"),
    ("format", 4, "has format 4; this version of runner reads format 3. Use the version that wrote it"),
    ("format", "3", "format is '3', but must be a whole number"),
    ("more", 1, r"it has an unknown \['more'\]"),
]


@pytest.mark.parametrize(("key", "value", "fault"), WRONG)
def test_a_field_that_cannot_be_is_named_with_its_value(
    checkpoints: Checkpoints, save: Save, key: str, value: object, fault: str
) -> None:
    path = save(2)
    change_manifest(path, lambda fields: fields.update({key: value}))
    with pytest.raises(CheckpointError, match=rf"step_2/manifest.json (is corrupted: )?{fault}"):
        checkpoints.latest()


@pytest.mark.parametrize(
    "entry", [None, {}, {"bytes": 1}, {"bytes": -1, "xxh3_128": "0" * 32}, {"bytes": 1, "xxh3_128": "x"}]
)
def test_an_entry_of_a_file_that_cannot_be_is_named(checkpoints: Checkpoints, save: Save, entry: object) -> None:
    path = save(2)
    change_manifest(path, lambda fields: fields["files"].update({"rank_0.safetensors": entry}))
    with pytest.raises(CheckpointError, match=r"manifest.json is corrupted: files\['rank_0.safetensors'\]"):
        checkpoints.latest()


def test_what_was_chosen_has_a_manifest_that_matches_itself(
    tmp_path: Path, checkpoints: Checkpoints, save: Save, blank: State[Tensor]
) -> None:
    path = save(1)
    save(2)
    choose(tmp_path / "checkpoints", "step_1")
    assert manifest_of(path)["serial"] == 3
    assert [one.name for one in path.iterdir() if "partial" in one.name] == []
    checkpoints.open(path).read(blank)
