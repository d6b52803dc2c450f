"""What a run ran on: versions, processor, time used. It goes into every manifest."""

import platform
import resource
from importlib import metadata
from pathlib import Path

_PACKAGES = ("torch", "transformers", "peft", "accelerate", "numpy", "scikit-learn", "pydantic")


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide a result, where installed."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def processor() -> str:
    """Name of the processor and its vector extensions, or an empty text where unknown."""
    info = Path("/proc/cpuinfo")
    if not info.exists():
        return platform.processor()
    text = info.read_text("utf-8")
    fields = dict(line.split(":", 1) for line in text.split("\n\n")[0].splitlines() if ":" in line)
    fields = {name.strip(): value.strip() for name, value in fields.items()}
    wanted = {"avx2", "fma", "avx512f", "avx512_vnni", "avx_vnni", "amx_tile"}
    flags = wanted & set(fields.get("flags", "").split())
    return " ".join([fields.get("model name", platform.processor()), *sorted(flags)])


def cpu_seconds() -> float:
    """Processor seconds that this process and its finished children have used."""
    own, children = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime
