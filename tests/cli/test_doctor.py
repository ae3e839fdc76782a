"""`circadia doctor`: requirements from the installed metadata, places, compiler, exit codes."""

import json
import sys
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from typer.testing import CliRunner

import circadia
from circadia.cli import app, health

METADATA = """Metadata-Version: 2.1
Name: circadia
Version: 9.9
Provides-Extra: good
Provides-Extra: bad
Requires-Dist: torch>=2.8
Requires-Dist: rich>=13
Requires-Dist: pytest>=8; extra == "good"
Requires-Dist: no-such-package>=1; extra == "bad"
Requires-Dist: pytest>=1000; extra == "bad"
"""


def install(folder, monkeypatch, text=METADATA):
    """Put a distribution named circadia in front of any real one."""
    info = folder / "circadia-9.9.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(text)
    monkeypatch.setattr(sys, "path", [str(folder), *sys.path])


def run(*arguments):
    return CliRunner().invoke(app, ["doctor", *arguments])


def test_requirements_come_from_the_installed_metadata(tmp_path, monkeypatch):
    install(tmp_path, monkeypatch)
    found = json.loads(run("--json").stdout)
    assert [(package["name"], package["ok"]) for package in found["core"]] == [
        ("torch", True),
        ("rich", True),
    ]
    good, bad = found["extras"]
    assert (good["name"], good["ok"], good["fix"]) == ("good", True, None)
    assert (bad["ok"], bad["fix"]) == (False, "pip install 'circadia[bad]'")
    assert bad["problem"] == f"no-such-package is not installed, pytest is {metadata.version('pytest')}, needs >=1000"
    assert (found["circadia"], found["usable"]) == (circadia.__version__, True)


def test_exit_code_is_1_only_when_the_core_is_unusable(tmp_path, monkeypatch):
    install(tmp_path, monkeypatch, METADATA + "Requires-Dist: no-such-core\n")
    result = run()
    assert result.exit_code == 1
    assert "no-such-core" in result.stdout and "pip install --upgrade circadia" in result.stdout


def test_from_a_folder_it_still_answers(monkeypatch):
    def missing(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "distribution", missing)
    result = run()
    assert result.exit_code == 0
    assert "pip install -e ." in result.stdout


def test_compiler(tmp_path, monkeypatch):
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert not health.compiler()["ok"]
    clang = tmp_path / "clang++"
    clang.write_text("#!/bin/sh\n")
    clang.chmod(0o755)
    assert health.compiler()["path"] == (None if " " in torch.__file__ else str(clang))
    monkeypatch.setattr(torch, "__file__", "/a path/torch/__init__.py")
    assert "/a path/torch" in health.compiler()["problem"]


def test_a_torch_that_cannot_be_imported_is_told(tmp_path, monkeypatch):
    """That is when somebody asks."""
    install(tmp_path, monkeypatch)
    monkeypatch.setitem(sys.modules, "torch", None)
    result = run()
    assert result.exit_code == 1 and "torch cannot be imported" in result.stdout


def test_places_follow_the_settings(tmp_path, monkeypatch):
    for name in ("CIRCADIA_DATA", "CIRCADIA_STORE", "HF_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("CIRCADIA_HOME", str(tmp_path / "new" / "store"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "file"))
    data, store, texts, cache = health.places()
    assert (data["path"], data["writable"]) == (None, False)
    assert store["path"] == str(tmp_path / "store")
    assert (texts["path"], texts["exists"], texts["writable"]) == (
        str(tmp_path / "new" / "store"),
        False,
        True,
    )
    assert (cache["path"], cache["writable"]) == (str(tmp_path / "file" / "hub"), False)


def test_without_a_home_texts_are_kept_among_the_temporary_files(tmp_path, monkeypatch):
    for name in ("CIRCADIA_HOME", "HF_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "home").write_text("no folder: not even root can write below it")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    texts, cache = health.places()[2:]
    assert Path(texts["path"]).parent == tmp_path and texts["writable"]
    assert not cache["writable"]
    monkeypatch.setenv("COLUMNS", "200")
    assert "set HF_HUB_CACHE to a folder that can be written" in run().stdout
    monkeypatch.setenv("HOME", str(tmp_path / "new"))
    assert health.places()[2]["path"] == str(tmp_path / "new" / ".circadia")


def test_fused_kernels_need_cuda_and_triton():
    without = health.fla({"devices": [{"name": "cpu"}]})
    assert not without["ok"] and "no CUDA device" in without["problem"] and without["fix"] is None


def test_memory_is_plausible():
    total, available = health.memory()
    if total is None:
        pytest.skip("this system does not tell its memory")
    assert total > 1 << 28
    assert available is None or 0 < available <= total


@pytest.mark.parametrize(("major", "bf16"), [(9, "native"), (7, "emulated, prefer float16")])
def test_cuda_devices_are_listed(monkeypatch, major, bf16):
    properties = SimpleNamespace(name="Card", total_memory=80 << 30, major=major)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: properties)
    cpu, card = health.devices()["devices"]
    assert cpu["name"] == "cpu"
    assert card == {"name": "cuda:0", "model": "Card", "memory": 80 << 30, "bf16": bf16}
    assert "no CUDA device" not in (health.fla({"devices": [cpu, card]})["problem"] or "")
    assert "cuda:0" in run().stdout and "80.0 GiB" in run().stdout
