"""What an x86 processor says of itself, by the instruction made for it.

Under an emulator `/proc/cpuinfo` still describes the machine that emulates; CPUID describes the one that is emulated.
"""

from __future__ import annotations

import ctypes
import mmap

#: mov r8, rdx; mov eax, edi; mov ecx, esi; cpuid; the four results to [r8]. rbx belongs to the caller.
_CODE = bytes.fromhex("53 4989d0 89f8 89f1 0fa2 418900 41895804 41894808 4189500c 5b c3")
#: (leaf, subleaf, register) and the features by bit, in the spelling of /proc/cpuinfo.
_FEATURES: dict[tuple[int, int, int], dict[int, str]] = {
    (1, 0, 2): {
        0: "pni", 1: "pclmulqdq", 9: "ssse3", 12: "fma", 13: "cx16", 19: "sse4_1", 20: "sse4_2", 22: "movbe",
        23: "popcnt", 25: "aes", 26: "xsave", 28: "avx", 29: "f16c", 30: "rdrand",
    },
    (1, 0, 3): {23: "mmx", 25: "sse", 26: "sse2"},
    (7, 0, 1): {
        0: "fsgsbase", 3: "bmi1", 5: "avx2", 8: "bmi2", 9: "erms", 16: "avx512f", 17: "avx512dq", 18: "rdseed",
        19: "adx", 21: "avx512ifma", 23: "clflushopt", 28: "avx512cd", 29: "sha_ni", 30: "avx512bw", 31: "avx512vl",
    },
    (7, 0, 2): {
        1: "avx512vbmi", 6: "avx512_vbmi2", 8: "gfni", 9: "vaes", 10: "vpclmulqdq", 11: "avx512_vnni",
        12: "avx512_bitalg", 14: "avx512_vpopcntdq",
    },
    (7, 0, 3): {22: "amx_bf16", 23: "avx512_fp16", 24: "amx_tile", 25: "amx_int8"},
    (7, 1, 0): {4: "avx_vnni", 5: "avx512_bf16"},
    (0x80000001, 0, 2): {0: "lahf_lm", 5: "abm"},
}  # fmt: skip


def features() -> tuple[str, ...]:
    """The features of the processor that this process runs on, sorted. Only on x86-64.

    Raises:
        OSError: the system lets no process make code.
    """
    with mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC) as page:
        page.write(_CODE)
        start = (ctypes.c_char * len(_CODE)).from_buffer(page)
        try:
            ask = ctypes.CFUNCTYPE(None, ctypes.c_uint32, ctypes.c_uint32, ctypes.c_void_p)(ctypes.addressof(start))
            return tuple(sorted(_asked(ask)))
        finally:
            del start  # a page that something points into cannot be closed


def _asked(ask: ctypes._CFunctionType) -> set[str]:
    answer = (ctypes.c_uint32 * 4)()
    most = {}
    for base in (0, 0x80000000):
        ask(base, 0, answer)
        most[base] = answer[0]
    found = set()
    for (leaf, subleaf, register), names in _FEATURES.items():
        if leaf > most[leaf & 0x80000000]:
            continue
        ask(leaf, subleaf, answer)
        found |= {name for bit, name in names.items() if answer[register] >> bit & 1}
    return found
