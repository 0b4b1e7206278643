import re

import pytest

from repquant.runtimes.cpu import cpu_flags, cpu_model, describe, int8_flags, int8_support, vnni_flags

EPYC = """processor\t: 0
model name\t: AMD EPYC
flags\t\t: fpu avx2 avx512f avx512_vnni
bugs\t\t: sysret_ss_attrs

processor\t: 1
model name\t: AMD EPYC
flags\t\t: fpu avx2 avx512f avx512_vnni
"""
ALDER_LAKE = "model name : Core: i9\nflags : fpu avx2 avx_vnni\n"
HASWELL = "processor : 0\nmodel name : Xeon E5\nflags : fpu avx2\n"
GRAVITON = "processor : 0\nBogoMIPS : 2100.00\nFeatures : fp asimd asimddp\n"


@pytest.mark.parametrize(
    ("machine", "cpuinfo", "safe", "words"),
    [
        ("x86_64", EPYC, True, r"has VNNI \(avx512_vnni\)"),
        ("x86_64", ALDER_LAKE, True, r"has VNNI \(avx_vnni\)"),
        ("x86_64", HASWELL, False, "has no VNNI: .* saturate, .* weights in 7 bits"),
        ("aarch64", GRAVITON, True, "arm64, .* 8-bit weights are safe"),
        ("arm64", "", True, "arm64"),
        ("AMD64", "", False, r"Whether this CPU \(amd64\) has VNNI can't be read .* weights in 7 bits"),
        ("riscv64", GRAVITON, False, r"\(riscv64\)"),
        ("", "", False, r"\(unknown\)"),
    ],
)
def test_judgement(machine, cpuinfo, safe, words):
    support = describe(machine, cpuinfo)
    assert support.safe is safe
    assert re.search(words, support.sentence)


def test_flags_are_those_that_all_cores_share():
    assert vnni_flags(EPYC) == ("avx512_vnni",)
    assert vnni_flags(EPYC + "flags : fpu avx2\n") == ()
    assert cpu_flags(GRAVITON) == frozenset()
    assert cpu_flags("flags :\n") == frozenset()


def test_model_name_may_hold_a_colon():
    assert cpu_model(ALDER_LAKE) == "Core: i9"
    assert cpu_model(GRAVITON) is None


def test_this_cpu_gets_a_sentence():
    assert int8_support().sentence.endswith(".")


def test_int8_flags_name_the_tiles_too():
    assert int8_flags("flags : fpu avx512_vnni amx_tile amx_int8 amx_bf16\n") == ("avx512_vnni", "amx_int8")
    assert int8_flags("") == ()
