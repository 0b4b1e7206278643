"""Whether this CPU accumulates int8 products without saturation."""

import platform
from dataclasses import dataclass
from pathlib import Path

_VNNI = ("avx512_vnni", "avx_vnni")
_AMX = ("amx_int8",)
_X86 = ("x86_64", "amd64", "i386", "i686")
_ARM = ("arm64", "aarch64")
_CPUINFO = Path("/proc/cpuinfo")
_ADVICE = "the targets onnxruntime and openvino need weights in 7 bits"


@dataclass(frozen=True)
class Int8Support:
    """Whether unsigned 8-bit activations times 8-bit weights accumulate in 32 bits, and why.

    Without VNNI, x86 adds pairs of such products in saturating 16 bits (`vpmaddubsw`): 2 x 255 x 127 does
    not fit, 2 x 255 x 63 does, so that weights of 7 bits are safe everywhere.

    Attributes:
        safe: 8-bit weights are safe. False where it is not known.
        sentence: the same for a person.
    """

    safe: bool
    sentence: str


def int8_support() -> Int8Support:
    """Return what is known about the CPU that this process runs on."""
    return describe(platform.machine(), read_cpuinfo())


def is_x86(machine: str) -> bool:
    """Return whether an architecture, as `platform.machine` names it, is x86."""
    return machine.lower() in _X86


def describe(machine: str, cpuinfo: str) -> Int8Support:
    """Judge a CPU by its architecture, as `platform.machine` names it, and the text of /proc/cpuinfo."""
    machine = machine.lower()
    if machine in _ARM:
        return Int8Support(
            True, "This CPU is arm64, which accumulates int8 products in 32 bits: 8-bit weights are safe."
        )
    if machine in _X86 and (found := vnni_flags(cpuinfo)):
        return Int8Support(True, f"This CPU has VNNI ({', '.join(found)}), which accumulates int8 products in 32 bits.")
    if machine in _X86 and cpu_flags(cpuinfo):
        return Int8Support(
            False, f"This CPU has no VNNI: int8 products are added in 16 bits, which saturate, and {_ADVICE}."
        )
    return Int8Support(
        False, f"Whether this CPU ({machine or 'unknown'}) has VNNI can't be read here; without it, {_ADVICE}."
    )


def vnni_flags(cpuinfo: str) -> tuple[str, ...]:
    """Return the flags of int8 dot-product instructions in the text of /proc/cpuinfo."""
    flags = cpu_flags(cpuinfo)
    return tuple(flag for flag in _VNNI if flag in flags)


def int8_flags(cpuinfo: str) -> tuple[str, ...]:
    """Return the flags of all int8 instructions, those for tiles included, in the text of /proc/cpuinfo."""
    flags = cpu_flags(cpuinfo)
    return tuple(flag for flag in (*_VNNI, *_AMX) if flag in flags)


def cpu_flags(cpuinfo: str) -> frozenset[str]:
    """Return the flags that all cores in the text of /proc/cpuinfo share; none where it lists none."""
    lines = [value.split() for key, value in _fields(cpuinfo) if key == "flags"]
    return frozenset(lines[0]).intersection(*lines[1:]) if lines else frozenset()


def cpu_model(cpuinfo: str) -> str | None:
    """Return the model name in the text of /proc/cpuinfo; None where it has none."""
    return next((value for key, value in _fields(cpuinfo) if key == "model name"), None)


def read_cpuinfo() -> str:
    """Return the text of /proc/cpuinfo, or nothing where there is no such file."""
    try:
        return _CPUINFO.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _fields(cpuinfo: str) -> list[tuple[str, str]]:
    pairs = (line.partition(":") for line in cpuinfo.splitlines())
    return [(key.strip(), value.strip()) for key, _, value in pairs]
