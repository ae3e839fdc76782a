"""What this machine can run, as plain data. Only torch is imported; other packages are looked up."""

import importlib.util
import os
import platform
import shutil
from importlib import metadata
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement

from circadia import __version__
from circadia.machine import home, memory, writable

PYTHON = (3, 11)


def report() -> dict[str, Any]:
    """Everything `circadia doctor` shows. `usable` says whether the core works."""
    core, extras = packages()
    hardware = devices()
    python_ok = tuple(map(int, platform.python_version_tuple()[:2])) >= PYTHON
    return {
        "circadia": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "usable": python_ok and all(package["ok"] for package in core) and hardware["problem"] is None,
        "core": core,
        "extras": extras,
        "hardware": hardware,
        "compile": compiler(),
        "kernels": {"flash-linear-attention": fla(hardware)},
        "places": places(),
    }


def packages() -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The core requirements and the extras, as the installed distribution declares them."""
    try:
        distribution = metadata.distribution("circadia")
    except metadata.PackageNotFoundError:
        # Usable all the same; only what it needs is not declared anywhere.
        note = "runs from a folder and is not installed, so its requirements are not known"
        return [
            {
                "name": "circadia",
                "version": __version__,
                "ok": True,
                "problem": note,
                "fix": "pip install -e .",
            }
        ], []
    requirements = [Requirement(line) for line in distribution.requires or []]
    core = [_package(r) for r in requirements if r.marker is None or r.marker.evaluate({"extra": ""})]
    for package in core:
        package["fix"] = None if package["ok"] else "pip install --upgrade circadia"
    extras = []
    for extra in distribution.metadata.get_all("Provides-Extra") or []:
        needed = [_package(r) for r in requirements if r.marker is not None and r.marker.evaluate({"extra": extra})]
        needed = [package for package in needed if package["name"] not in {one["name"] for one in core}]
        problems = [f"{package['name']} {package['problem']}" for package in needed if not package["ok"]]
        fix = f"pip install 'circadia[{extra}]'" if problems else None
        extras.append(
            {
                "name": extra,
                "ok": not problems,
                "problem": ", ".join(problems) or None,
                "fix": fix,
                "packages": needed,
            }
        )
    return core, extras


def _package(requirement: Requirement) -> dict[str, Any]:
    name, version, problem = requirement.name, None, None
    try:
        version = metadata.version(name)
        if not requirement.specifier.contains(version, prereleases=True):
            problem = f"is {version}, needs {requirement.specifier}"
    except metadata.PackageNotFoundError:
        problem = "is not installed"
    return {"name": name, "version": version, "ok": problem is None, "problem": problem}


def devices() -> dict[str, Any]:
    """Processors, the types they compute in, and memory in bytes."""
    total, available = memory()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    found: dict[str, Any] = {"problem": None, "cores": cores, "memory": total, "memory_available": available}
    try:
        import torch
    except Exception as error:  # a broken install fails in many ways: missing libraries, wrong architecture
        return {**found, "problem": f"torch cannot be imported: {error}", "threads": None, "devices": []}
    found["threads"] = torch.get_num_threads()
    native = dict(getattr(torch.cpu, "get_capabilities", dict)())  # not in the oldest torch that we accept
    fast = native.get("avx512_bf16") or native.get("amx_bf16")
    bf16 = "native" if fast else "emulated, slower than float32" if native else "works, speed not known"
    found["devices"] = [{"name": "cpu", "model": native.get("cpu_name") or platform.processor(), "bf16": bf16}]
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        found["devices"].append(
            {
                "name": f"cuda:{index}",
                "model": properties.name,
                "memory": properties.total_memory,
                # bf16 arithmetic came with compute capability 8; before it torch only emulates.
                "bf16": "native" if properties.major >= 8 or torch.version.hip else "emulated, prefer float16",
            }
        )
    if torch.backends.mps.is_available():
        found["devices"].append({"name": "mps", "model": platform.machine(), "bf16": "works on macOS 14 or newer"})
    return found


def compiler() -> dict[str, Any]:
    """Whether torch.compile can build its C++ code for the CPU."""
    try:
        import torch
    except Exception:  # what is wrong with it stands with the hardware
        return {"ok": False, "path": None, "problem": "torch cannot be imported", "fix": None}
    if " " in (place := str(Path(torch.__file__).parent)):
        return {
            "ok": False,
            "path": None,
            "problem": f"torch lies in {place}, and its compiler cannot link from a path with spaces",
            "fix": "make the environment in another folder",
        }
    for name in filter(None, (os.environ.get("CXX"), "c++", "g++", "clang++")):
        if path := shutil.which(name):
            return {"ok": True, "path": path, "problem": None, "fix": None}
    return {
        "ok": False,
        "path": None,
        "problem": "no C++ compiler (c++, g++, clang++)",
        "fix": "apt-get install g++, or set CXX",
    }


def fla(hardware: dict[str, Any]) -> dict[str, Any]:
    """Whether the fused kernels of flash-linear-attention can run here."""
    problems = []
    if importlib.util.find_spec("fla") is None:
        problems.append("flash-linear-attention is not installed")
    if not any(device["name"].startswith("cuda") for device in hardware["devices"]):
        problems.append("no CUDA device")
    if importlib.util.find_spec("triton") is None:
        problems.append("triton is not installed")
    return {
        "ok": not problems,
        "problem": ", ".join(problems) or None,
        "fix": "pip install 'circadia[gpu]'" if problems and "no CUDA device" not in problems else None,
    }


def places() -> list[dict[str, Any]]:
    """Where data, learners and downloads live, and whether they can be written."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"))
    hub = Path(os.environ.get("HF_HOME") or cache / "huggingface") / "hub"
    wanted = (
        ("data", os.environ.get("CIRCADIA_DATA"), "CIRCADIA_DATA or --data DIR"),
        (
            "store of learners",
            Path(os.environ.get("CIRCADIA_STORE") or "store").absolute(),
            "CIRCADIA_STORE or --store DIR",
        ),
        ("prepared texts", home(), "CIRCADIA_HOME"),
        ("Hugging Face cache", os.environ.get("HF_HUB_CACHE") or hub, "HF_HUB_CACHE or HF_HOME"),
    )
    found = []
    for name, place, setting in wanted:
        path = Path(place).expanduser() if place else None
        found.append(
            {
                "name": name,
                "path": str(path) if path else None,
                "set_by": setting,
                "exists": path is not None and path.exists(),
                "writable": path is not None and writable(path),
            }
        )
    return found
