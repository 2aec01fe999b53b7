"""An nvcc for machines without a GPU: CUDA C++ as C++, with one function beside each kernel that runs its threads."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

SHIM = """
#include <cmath>
#include <cstdint>
#include <cstring>
struct Three { unsigned x; };
static thread_local Three blockIdx, blockDim, threadIdx;
#define __global__
#define __device__
#define __launch_bounds__(n)
#define __forceinline__ inline
static inline float __uint_as_float(unsigned u) { float x; memcpy(&x, &u, 4); return x; }
static inline float __int_as_float(int u) { return __uint_as_float((unsigned)u); }
static inline unsigned __float_as_uint(float x) { unsigned u; memcpy(&u, &x, 4); return u; }
#undef INFINITY
#undef NAN
#undef INT32_MIN
#undef INT32_MAX
"""
#: Only for kernels whose threads wait: these headers take longer to read than most kernels.
GROUPS = """
#include <barrier>
#include <thread>
#include <vector>
static std::barrier<> *together;
#define __syncthreads() together->arrive_and_wait()
#define __shared__ static
"""
KERNEL = re.compile(r'^extern "C" __global__ void __launch_bounds__\(\d+\) (\w+)\((.*)\) \{', re.MULTILINE)


def launcher(name: str, params: str, waits: bool) -> str:
    types = [re.sub(r"\w+$", "", p).strip().replace("__restrict__", "") for p in params.split(", ")]
    args = ", ".join(f"*({t} *)p[{n}]" for n, t in enumerate(types))
    head = f'extern "C" void launch_{name}(void **p, unsigned grid, unsigned block) {{'
    blocks = "for (blockIdx.x = 0; blockIdx.x < grid; blockIdx.x++)"
    if not waits:
        threads = "for (threadIdx.x = 0; threadIdx.x < block; threadIdx.x++)"
        return f"{head} blockDim.x = block; {blocks} {threads} {name}({args}); }}\n"
    # Threads that wait for each other have to be threads; what they share is static, so blocks run one after another.
    work = f"blockDim.x = block; threadIdx.x = t; {blocks} {{ {name}({args}); all.arrive_and_wait(); }}"
    start = f"for (unsigned t = 0; t < block; t++) threads.emplace_back([&, t] {{ {work} }});"
    join = "for (auto &thread : threads) thread.join();"
    return f"{head} std::barrier<> all(block); together = &all; std::vector<std::thread> threads; {start} {join} }}\n"


def main(args: list[str]) -> int:
    if args == ["--version"]:
        print("Cuda compilation tools, release 0.0, for no GPU")
        return 0
    out, source = args[args.index("-o") + 1], Path(args[-1]).read_text(encoding="utf-8")
    found = list(KERNEL.finditer(source))
    ends = [*(f.start() for f in found[1:]), len(source)]
    bodies = [source[f.start() : end] for f, end in zip(found, ends, strict=True)]
    code = (GROUPS if "__syncthreads" in source else "") + SHIM + source
    code += "".join(launcher(f[1], f[2], "__syncthreads" in b) for f, b in zip(found, bodies, strict=True))
    command = ["g++", "-std=c++20", "-pthread", "-O1", "-w", "-shared", "-fPIC", "-x", "c++", "-", "-o", out]
    return subprocess.run(command, input=code, text=True, check=False).returncode


sys.exit(main(sys.argv[1:]))
