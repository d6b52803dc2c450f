"""What is installed here and what is missing: versions, devices, models, extras. Works without torch."""

import os
import platform
from typing import Any

from equipoise import __version__
from equipoise.extras import EXTRAS, missing
from equipoise.machine import processor, versions
from equipoise.models.builtin import cache_folder, installed
from equipoise.models.wheels import BUILTIN


def examine() -> dict[str, Any]:
    """Return what is found, as plain values for JSON.

    `extras` maps each optional group to the packages it lacks here, `models` each built-in model to its
    folder or None; `devices` is empty and `threads` is None where torch is missing or broken.
    """
    found = installed()
    return {
        "equipoise": __version__,
        "versions": versions(),
        "system": platform.platform(),
        "processor": processor(),
        "cores": os.cpu_count(),
        **_torch(),
        "cache": str(cache_folder()),
        "models": {name: str(found[name]) if name in found else None for name in BUILTIN},
        "extras": {extra: missing(extra) for extra in EXTRAS},
    }


def as_text(report: dict[str, Any]) -> str:
    """Return the findings for a person, each gap with the command that closes it."""
    lines = [
        f"equipoise {report['equipoise']}",
        *(f"  {name} {version}" for name, version in report["versions"].items()),
        f"system     {report['system']}",
        f"processor  {report['processor'] or 'unknown'}, {report['cores']} cores",
        f"devices    {', '.join(report['devices']) or 'none, torch is not installed'}",
    ]
    if report["threads"]:
        lines[-1] += f"; {report['threads']} threads"
    if report["torch_error"]:
        lines.append(f"torch      cannot be imported: {report['torch_error']}")
    lines.append(f"models     in {report['cache']}")
    for name, folder in report["models"].items():
        state = "installed" if folder else f"missing; to get it: equipoise models install {name}"
        lines.append(f"  {name}: {state}")
    lines.append("extras")
    for extra, lacking in report["extras"].items():
        how = f"missing {', '.join(lacking)}; to get it: pip install 'equipoise[{extra}]'"
        lines.append(f"  {extra}: {how if lacking else 'complete'}")
    return "\n".join(lines)


def _torch() -> dict[str, Any]:
    nothing: dict[str, Any] = {"devices": [], "threads": None, "torch_error": None}
    if "torch" in missing("train"):
        return nothing
    try:
        import torch
    except (ImportError, OSError) as exc:  # a broken build is what one asks the doctor about
        return {**nothing, "torch_error": str(exc).strip().splitlines()[0]}
    devices = [f"cuda:{i} {torch.cuda.get_device_name(i)}" for i in range(torch.cuda.device_count())]
    if torch.backends.mps.is_available():
        devices.append("mps")
    return {**nothing, "devices": [*devices, "cpu"], "threads": torch.get_num_threads()}
