"""What something was measured on: processor, instruction sets, versions, revision."""

import os
import platform
import re
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]  # of the checkout, or of what an install has of it
# What decides how quick products and small numbers are.
_INSTRUCTIONS = r"\b(?:avx|avx2|fma|avx512f|avx512_vnni|avx_vnni|avx512_bf16|avx512_fp16"
_INSTRUCTIONS += r"|amx_tile|amx_int8|amx_bf16|amx_fp16|asimd|asimddp|sve|i8mm|bf16)\b"
_PACKAGES = ("tensorflow", "keras", "numpy")


def describe(packages=()):
    """What JSON can hold of this machine and of what runs on it.

    Args:
        packages: names of packages, beside TensorFlow, Keras and numpy, whose versions matter here;
            those that are not installed are left out. Defaults to none.

    Returns:
        dict: "machine" (a dict: "cpu", "cores", "instructions", "memory_gb", "system", "load"),
        "versions" (of "python", "isa_tf" and packages), "commit" and "dirty", both `None` outside
        of a checkout.
    """
    commit, dirty = revision()
    facts = {
        "cpu": processor(),
        "cores": os.cpu_count(),
        "instructions": instructions(),
        "memory_gb": memory_gb(),
        "system": f"{platform.system()} {platform.release()}",
        "load": load(),
    }
    return {"machine": facts, "versions": versions(packages), "commit": commit, "dirty": dirty}


def processor():
    """The name of the processor's model."""
    found = re.search(r"model name\s*:\s*(.*)", _read("/proc/cpuinfo"))
    return found[1] if found else platform.processor() or platform.machine()


def instructions():
    """Those of the processor that decide how quick it is; none where none are told."""
    return sorted({*re.findall(_INSTRUCTIONS, _read("/proc/cpuinfo"))})


def memory_gb():
    """How much there is; `None` where it is not told."""
    found = re.search(r"MemTotal:\s+(\d+) kB", _read("/proc/meminfo"))
    return round(int(found[1]) * 1024 / 1e9, 1) if found else None


def load():
    """How many processes wanted to run in the last minute; `None` where it is not told."""
    return round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None


def versions(packages=()):
    """{name: version} of Python, isa_tf, TensorFlow, Keras, numpy, and of packages there are."""
    import isa_tf

    found = {"python": platform.python_version(), "isa_tf": isa_tf.__version__}
    for package in (*_PACKAGES, *packages):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            pass
    return found


def revision(folder=ROOT):
    """(commit, whether files differ from it) of a checkout; `None`s of what is none.

    Args:
        folder: `Path`. Defaults to that of this checkout.
    """
    if not (folder / ".git").exists():  # and no repository that an install lies in
        return None, None
    try:
        commit = _git(folder, "rev-parse", "HEAD").strip()
        return commit, bool(_git(folder, "status", "--porcelain").strip())
    except (OSError, subprocess.CalledProcessError):
        return None, None


def line(described):
    """What `describe` found, as one line of a report.

    Args:
        described: dict, with "matmul_gflops" in "machine" where the rate was measured.

    Returns:
        str, without a full stop.
    """
    facts = described["machine"]
    words = [f"{facts['cpu']}, {facts['cores']} cores"]
    if facts.get("matmul_gflops"):
        words[0] += f", {facts['matmul_gflops']:.0f} GFLOP/s of float32 matrix products"
    words.append(f"instructions {', '.join(facts['instructions']) or 'unknown'}")
    names = {"tensorflow": "TensorFlow", "keras": "Keras"}
    others = {name: found for name, found in described["versions"].items() if name != "python"}
    words.append(", ".join(f"{names.get(name, name)} {found}" for name, found in others.items()))
    if described["commit"]:
        changed = ", with changes" if described["dirty"] else ""
        words.append(f"commit {described['commit'][:10]}{changed}")
    return "; ".join(words)


def _read(path):
    try:
        return Path(path).read_text()
    except OSError:  # another system than Linux
        return ""


def _git(folder, *arguments):
    done = subprocess.run(
        ["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=True
    )
    return done.stdout
