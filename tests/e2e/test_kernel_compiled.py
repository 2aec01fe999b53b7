"""Compiled kernels against the oracle: sizes around every edge, all types, threads, and arrays nobody wishes for."""

# ruff: noqa: F821, F722, UP037

from __future__ import annotations

import ctypes
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from portolan.core.running import CompilerError, CompilerLate
from portolan.errors import NoBackend, NoResult, UsageError, VerificationFailed, WorkerCrashed
from portolan.kernels import place
from portolan.kernels.arrays import narrowed, result_shapes
from portolan.kernels.candidates import candidates
from portolan.kernels.compiler import Compiler, find
from portolan.kernels.decorated import Kernel
from portolan.kernels.embed.empty import may_be_empty
from portolan.kernels.lower.nest import groups
from portolan.kernels.printers.c import prelude
from portolan.kernels.tune import source, tune
from portolan.kernels.turned import _order, orders, turned
from portolan.kernels.verify import AGENT, TOLERANCE, Case, Judge, difference, odd_cases, random_arrays, real_case
from portolan.targets.local import local
from portolan.worker.session import Worker
from support import operators

pytestmark = [
    pytest.mark.usefixtures("cache"),
    pytest.mark.skipif(not any(map(shutil.which, ("gcc", "clang", "cc"))), reason="needs a C compiler"),
]


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    with Worker(module=AGENT) as started:
        yield started


def written(kernel: Kernel, size: int) -> str:
    sizes = dict.fromkeys(kernel.program.symbols, size)
    best = [candidates(kernel.program, g, local.detect(), sizes)[0] for g in groups(kernel.program)]
    return source(kernel.program, best)


def built(kernel: Kernel, size: int, extra: tuple[str, ...] = ()) -> Path:
    return find().build(written(kernel, size), extra)


def test_exp_of_a_long_sum_is_checked_on_numbers_that_float32_can_hold(worker: Worker) -> None:
    kernel, sizes = operators.mean_shift, {"i": 64, "d": 512, "j": 48, "c": 40}
    case = real_case(kernel.program, sizes, np.random.default_rng(0))
    assert Judge(kernel.program, [case], worker).error("long", built(kernel, 40)) < TOLERANCE["f32"]


@pytest.mark.parametrize("name", operators.EVERY)
def test_sizes_around_the_edges_of_tiles(name: str, worker: Worker) -> None:
    kernel = operators.EVERY[name]
    sizes = dict.fromkeys(kernel.program.symbols, 40)
    best = candidates(kernel.program, groups(kernel.program)[0], local.detect(), sizes)[0]
    cases = odd_cases(kernel.program, best, np.random.default_rng(3), number=12)
    error = Judge(kernel.program, cases, worker).error(name, built(kernel, 40))
    assert error <= max(TOLERANCE[o.dtype] for o in kernel.program.outputs)


@pytest.mark.parametrize("ahead", [False, True])
def test_rows_around_the_edges_of_a_table(worker: Worker, ahead: bool) -> None:
    kernel = operators.deformable
    sizes = {"b": 2, "s": 40, "h": 3, "c": 20, "v": 2, "q": 160, "p": 3}
    options = candidates(kernel.program, groups(kernel.program)[0], local.detect(), sizes)
    tabled = replace(next(s for s in options if s.table == "rows" and s.rows == "q"), ahead=ahead)
    rng, step = np.random.default_rng(5), tabled.step
    rows = (step, step + 1, 2 * step - 1, 2 * step, 2 * step + 3, 1)
    cases = [Case(s, random_arrays(kernel.program, s, rng)) for s in (sizes | {"q": n} for n in rows)]
    code = source(kernel.program, [tabled])
    assert ("__builtin_prefetch" in code) == ahead
    assert Judge(kernel.program, cases, worker).error("table", find().build(code)) <= TOLERANCE["f32"]


@pytest.mark.parametrize("rows", ["h", "q"])
@pytest.mark.parametrize(("tile", "lanes"), [(1, 16), (2, 8), (4, 4)])
def test_elements_around_the_edges_of_a_table(worker: Worker, rows: str, tile: int, lanes: int) -> None:
    kernel = operators.deformable
    sizes = {"b": 2, "s": 40, "h": 5, "c": 37, "v": 2, "q": 7, "p": 8}
    options = candidates(kernel.program, groups(kernel.program)[0], local.detect(), sizes)
    inner = next(s for s in options if s.table == "inner")
    tabled = replace(inner, rows=rows, tile_rows=tile, lanes=lanes, tile_vectors=1)
    # Fewer than fill a vector, whole vectors, some more: joined indices, and each of them alone.
    edges = [{"v": v, "p": p} for v, p in ((1, 1), (1, 16), (16, 1), (3, 5), (4, 4), (17, 1), (3, 11), (8, 8))]
    edges += [{"h": n, "q": n} for n in (1, 3, 4, 9)]
    rng = np.random.default_rng(6)
    cases = [Case(s, random_arrays(kernel.program, s, rng)) for s in (sizes | edge for edge in edges)]
    path = find().build(source(kernel.program, [tabled]))
    assert Judge(kernel.program, cases, worker).error("inner", path) <= TOLERANCE["f32"]


def test_gathered_rows_are_asked_for_ahead_where_the_array_outgrows_the_caches() -> None:
    program = operators.deformable.program
    held = {"b": 1, "s": 13_101, "h": 8, "c": 32, "v": 4, "q": 100, "p": 4}
    asked = {}
    for batch in (1, 4):
        for caches in ({"L2": 2**20, "L3": 2**25}, {}):
            here = replace(local.detect(), caches=caches)
            tabled = [s for s in candidates(program, groups(program)[0], here, held | {"b": batch}) if s.table]
            asked[batch, bool(caches)] = {s.ahead for s in tabled}
    # 13 MB and 54 MB of rows; where nothing is known of caches, memory is thought to be far.
    assert asked == {(1, True): {False}, (4, True): {True}, (1, False): {True}, (4, False): {True}}


def test_streamed_rows_are_asked_for_ahead_where_they_outgrow_the_near_cache() -> None:
    program = operators.matmul.program
    here = replace(local.detect(), caches={"L2": 2**20})
    asked = {}
    for size in (512, 513, 2048):
        sizes = dict.fromkeys(program.symbols, size)
        asked[size] = {s.ahead for s in candidates(program, groups(program)[0], here, sizes)}
    assert asked == {512: {False}, 513: {True}, 2048: {True}}


@pytest.mark.parametrize("name", ["half", "matmul", "tropical"])
def test_rows_that_are_asked_for_ahead(name: str, worker: Worker) -> None:
    program = operators.EVERY[name].program
    (group,) = groups(program)
    sizes = dict.fromkeys(program.symbols, 40)
    best = next(s for s in candidates(program, group, local.detect(), sizes) if s.rows and s.tile_rows > 1)
    asking = replace(best, ahead=True)
    code = source(program, [asking])
    assert "__builtin_prefetch" in code
    cases = odd_cases(program, asking, np.random.default_rng(4))
    error = Judge(program, cases, worker).error(name, find().build(code))
    assert error <= max(TOLERANCE[o.dtype] for o in program.outputs)


@settings(max_examples=40)
@given(m=st.integers(1, 40), k=st.integers(1, 40), n=st.integers(1, 150), seed=st.integers(0, 9))
def test_any_shape_of_a_product(m: int, k: int, n: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    a, b = rng.standard_normal((m, k), np.float32), rng.standard_normal((k, n), np.float32)
    assert difference(operators.tropical(a, b), operators.tropical.oracle(a, b)[0]) < 1e-6


def test_infinities_nan_and_rows_of_nothing() -> None:
    a = np.array([[-np.inf, -np.inf], [1, np.nan], [np.nan, np.nan], [np.inf, 0]], np.float32)
    b = np.zeros((2, 40), np.float32)
    found = operators.tropical(a, b)[:, 0]
    assert found.tolist() == [-np.inf, 1, -np.inf, np.inf]
    x = np.array([[np.nan, -1, 3, np.nan, 3]], np.float32)
    total, _, best, worst, _ = operators.statistics(x)
    assert (np.isnan(total[0]), best[0], worst[0]) == (True, 2, 1)
    masked = operators.window_attention(
        *(np.ones((1, 40, 16), np.float32) for _ in range(3)), np.full((1, 1), -np.inf, np.float32)
    )
    assert masked.tolist() == np.zeros((1, 40, 16)).tolist()


def test_what_is_masked_may_be_no_number() -> None:
    rng = np.random.default_rng(0)
    q, k, v = (rng.standard_normal((1, 70, 16), np.float32) for _ in range(3))
    k[0, 40:], v[0, 40:] = np.nan, np.inf
    found = operators.window_attention(q, k, v, np.zeros((1, 8), np.float32))
    assert np.isfinite(found[0, :40]).all()
    assert not np.isfinite(found[0, 40:]).any()


def test_a_masked_neighbour_outside_of_a_table_may_be_no_number() -> None:
    kernel, sizes = operators.bilinear_sample, {"h": 6, "w": 7, "c": 40, "q": 37}
    best = candidates(kernel.program, groups(kernel.program)[0], local.detect(), sizes)[0]
    assert best.table
    image = np.ones((6, 7, 40), np.float32)
    image[:, 0] = np.nan
    xs = np.concatenate([np.linspace(-3, -1.01, 20), np.linspace(1, 7, 17)]).astype(np.float32)
    ys = np.linspace(-2, 8, 37, dtype=np.float32)
    # A place left of the image is read at its nearest end, which is no number here, and must not count.
    found, want = kernel(image, ys, xs), kernel.oracle(image, ys, xs)[0]
    assert np.isfinite(found).all()
    np.testing.assert_allclose(found, want, atol=1e-6)


@pytest.mark.parametrize("edge", [0.0, -0.0, 88.7, 88.8, -87.3, -88.0, 200.0, -200.0, np.inf, -np.inf, np.nan, 1e-40])
def test_the_edges_of_exp_and_log(edge: float) -> None:
    from portolan.kernels import kernel

    @kernel
    def both(x: "i") -> ("i", "i"):
        return exp(x[i]), log(x[i])

    x = np.full(40, edge, np.float32)
    with np.errstate(all="ignore"):
        want = np.exp(x, dtype=np.float32), np.log(x, dtype=np.float32)
    for found, value in zip(both(x), want, strict=True):
        np.testing.assert_allclose(found, value, rtol=3e-7, atol=1.2e-38)


@pytest.mark.parametrize("lanes", [4, 8, 16])
def test_powers_of_two_in_vectors_are_exact_to_an_ulp(lanes: int) -> None:
    each = f"for (long i = 0; i < n; i += {lanes}) *(V *)(y + i) = v_exp2(*(const V *)(x + i));"
    whole = f"void all(const float *x, float *y, long n) {{ {each} }}"
    library = find().build(f"#define LANES {lanes}\n{prelude()}\n{whole}")
    rng = np.random.default_rng(0)
    x = np.r_[rng.uniform(-126, 128, 1 << 16), np.arange(-126, 128), 0.5, -0.5].astype(np.float32)
    edges = np.float32([np.inf, -np.inf, np.nan, 128, 1e9, 3e38, -150, -1e9, -3e38, -0.0, 1e-40, 0])
    x = np.r_[x, edges, np.zeros(-(len(x) + len(edges)) % 16)].astype(np.float32)
    found = np.full_like(x, 7)
    ctypes.CDLL(str(library)).all(*(ctypes.c_void_p(a.ctypes.data) for a in (x, found)), ctypes.c_long(len(x)))
    with np.errstate(over="ignore"):
        want = np.exp2(x.astype(np.float64))
        np.testing.assert_allclose(found, want.astype(np.float32), rtol=2e-7, atol=1.2e-38)
    normal = np.abs(x) < 126
    assert (np.abs(found[normal] - want[normal]) / np.spacing(found[normal])).max() <= 1


@pytest.mark.parametrize("edge", [0.0, 88.7, 88.8, -87.3, -88.0, 200.0, -200.0, np.inf, -np.inf, np.nan, 1e-40])
def test_the_edges_of_exp_of_a_product_whose_factor_is_known_earlier(edge: float) -> None:
    from portolan.kernels import kernel

    @kernel
    def decayed(x: "i", y: "j") -> "i":
        return sum(exp(y[j] * x[i]) for j in J)

    assert "= v_exp2(" in written(decayed, 40)
    x, y = np.full(40, edge, np.float32), np.ones(1, np.float32)
    with np.errstate(all="ignore"):
        want = np.exp(x, dtype=np.float32)
    np.testing.assert_allclose(decayed(x, y), want, rtol=8e-6, atol=1.2e-38)


def test_the_floating_point_mode_is_left_alone() -> None:
    operators.softmax(np.ones((3, 5), np.float32))
    assert ctypes.c_float(1e-40).value * np.float32(0.5) != 0
    assert np.float32(1e-40) * np.float32(0.5) != 0


def test_threads_share_the_tasks() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((70, 33), np.float32), rng.standard_normal((33, 300), np.float32)
    assert operators.matmul(a, b, threads=3).tolist() == operators.matmul(a, b).tolist()


def test_arrays_that_are_not_contiguous_and_results_that_are_given() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((33, 70), np.float32).T, rng.standard_normal((66, 40), np.float32)[::2]
    out = np.empty((70, 40), np.float32)
    assert operators.matmul(a, b, out=out) is out
    np.testing.assert_allclose(out, a @ b, rtol=1e-4, atol=1e-5)
    odd = np.frombuffer(b"\0" * 2 + a.tobytes(), np.uint8)[2:].view(np.float32).reshape(a.shape)
    np.testing.assert_allclose(operators.matmul(odd, b), a @ b, rtol=1e-4, atol=1e-5)


def test_a_call_like_an_earlier_one_is_still_looked_at() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((20, 16), np.float32), rng.standard_normal((16, 20), np.float32)
    want = operators.matmul(a, b)
    read_only = a.copy()
    read_only.flags.writeable = False
    for same in (a.tolist(), np.asfortranarray(a), read_only, np.repeat(a, 2, axis=0)[::2], np.ma.masked_array(a)):
        given = np.asarray(same, np.float32) if isinstance(same, list) else same
        np.testing.assert_array_equal(operators.matmul(given, b), want)
    for wrong in (a.astype(np.float64), a.astype(">f4"), a.view(np.int32)):
        with pytest.raises(UsageError, match="`A` is f32 and was given"):
            operators.matmul(wrong, b)
    with pytest.raises(UsageError, match="takes 2 arrays"):
        operators.matmul(a)
    with pytest.raises(UsageError, match="`k` is 16 in `A` and 20 in `B`"):
        operators.matmul(a, a)


def test_large_transposed_arrays_are_read_where_they_are() -> None:
    kernel = Kernel(operators.batched.program)
    rng = np.random.default_rng(0)
    a = rng.standard_normal((520, 3, 260), np.float32).transpose(1, 2, 0)  # b i k, with i next to each other
    b = rng.standard_normal((3, 520, 40), np.float32)
    orders_ = orders(kernel.program, (a, b))
    assert orders_ == {"A": (2, 0, 1)}
    assert turned(kernel.program, orders_).inputs[0].axes == ("k", "b", "i")
    out = np.empty((3, 260, 40), np.float32)
    assert kernel(a, b, out=out) is out
    np.testing.assert_allclose(out, a @ b, rtol=1e-4, atol=1e-4)
    assert list(kernel._turned) == [(("A", (2, 0, 1)),)]
    assert not kernel._ready  # nothing was copied for the kernel of contiguous arrays
    with pytest.raises(UsageError, match="overlaps"):
        kernel(a, b, out=a.transpose(2, 0, 1).reshape(-1)[: 3 * 260 * 40].reshape(3, 260, 40))
    gaps = np.zeros((3, 520, 1040), np.float32)[:, :, ::2].transpose(0, 2, 1)
    assert orders(kernel.program, (gaps, b)) == {}


def test_columns_of_a_larger_array_are_read_where_they_are() -> None:
    """As the parts of one projection to queries, keys and values are."""
    kernel = Kernel(operators.matmul.program)
    rng = np.random.default_rng(0)
    whole, b = rng.standard_normal((700, 3, 520), np.float32), rng.standard_normal((520, 40), np.float32)
    for part in (0, 2):
        a = whole.reshape(700, -1)[:, part * 520 : (part + 1) * 520]
        assert orders(kernel.program, (a, b)) == {"A": (0, -3, 1)}
        out = np.empty((700, 40), np.float32)
        assert kernel(a, b, out=out) is out
        np.testing.assert_allclose(out, a @ b, rtol=1e-4, atol=1e-4)
    assert list(kernel._turned) == [(("A", (0, -3, 1)),)]
    assert not kernel._ready  # nothing was copied
    many = np.zeros((17, 8, 128, 128), np.float32)
    turned_ = [many[:, : n + 1].transpose(0, 1, 3, 2) for n in range(7)]
    assert {_order(a) for a in turned_} == {(0, -8, 1, 3, 2)} | {(0, -4, 1, 3, 2), (0, -2, 1, 3, 2)} | {None}


GAPS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "every second column": lambda a: a[:, ::2],
    "columns": lambda a: a[:, 5:525],
    "columns, a multiple": lambda a: a[:, 520:],
    "rows": lambda a: a[::3, :520],
    "backwards": lambda a: a[::-1, 519::-1],
    "transposed": lambda a: a.T[:520].copy().T,
    "transposed columns": lambda a: a.reshape(520, 1400)[:, :700].T,
    "one row again and again": lambda a: np.broadcast_to(a[3, :520], (700, 520)),
    "overlapping windows": lambda a: np.lib.stride_tricks.sliding_window_view(a.reshape(-1), 520)[:700],
    "one row of a larger array": lambda a: a[:1, :520],
}


@pytest.mark.parametrize("name", GAPS)
@pytest.mark.parametrize("worth", [1 << 20, pytest.param(1, marks=pytest.mark.slow)])
def test_arrays_with_gaps_give_the_right_answers(name: str, worth: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("portolan.kernels.turned.WORTH", worth)
    rng = np.random.default_rng(0)
    a = GAPS[name](rng.standard_normal((700, 1040), np.float32))
    b = rng.standard_normal((520, 120), np.float32)[:, 40:80]
    np.testing.assert_allclose(operators.matmul(a, b), a @ b, rtol=1e-4, atol=1e-4)


def test_results_with_gaps_are_refused() -> None:
    a, whole = np.zeros((40, 40), np.float32), np.zeros((40, 80), np.float32)
    with pytest.raises(UsageError, match="has to be a contiguous array"):
        operators.matmul(a, a, out=whole[:, :40])


def test_empty_arrays() -> None:
    assert operators.matmul(np.zeros((0, 3), np.float32), np.zeros((3, 4), np.float32)).shape == (0, 4)
    assert operators.matmul(np.zeros((2, 0), np.float32), np.zeros((0, 4), np.float32)).tolist() == [[0] * 4] * 2
    with_nothing = operators.gathered(np.zeros((0, 2), np.float32), np.zeros(3, np.int32))
    assert with_nothing.shape == (3, 2)


REDUCING = ["matmul", "tropical", "batched", "bilinear", "mean_shift", "selective_scan", "top", "statistics"]


@pytest.mark.parametrize("name", REDUCING)
def test_compiled_reductions_over_nothing_give_what_the_oracle_gives(name: str, worker: Worker) -> None:
    program = operators.EVERY[name].program
    cases = []
    for symbol in sorted(may_be_empty(program)):
        for others in (3, 40):
            sizes = {**dict.fromkeys(program.symbols, others), symbol: 0}
            if not any(0 in shape for shape in result_shapes(program, sizes)):
                cases.append(Case(sizes, random_arrays(program, sizes, np.random.default_rng(0))))
    assert cases
    Judge(program, cases, worker).error(name, built(operators.EVERY[name], 40))


def test_which_axes_may_be_empty() -> None:
    assert may_be_empty(operators.matmul.program) == {"i", "k", "j"}
    assert may_be_empty(operators.gathered.program) == {"i", "d"}  # `n` is read where `idx` says
    assert may_be_empty(operators.causal_conv.program) == {"b", "k"}  # `t` is read at `t - k`
    assert may_be_empty(operators.butterfly.program) == set()


def test_bits_of_bfloat16_and_halves() -> None:
    x = np.array([1.0, 1.00390625, 65504.0, 1e-8, np.inf, -3.5], np.float32)
    tensor = operators.brain.program.inputs[0]
    assert narrowed(tensor, x).tolist() == [0x3F80, 0x3F80, 0x4780, 0x322C, 0x7F80, 0xC060]
    from portolan.kernels import kernel

    @kernel
    def halved(x: "i : f16") -> "i : f16":
        return x[i] * 0.5

    every = np.arange(65536, dtype=np.uint16).view(np.float16)
    with np.errstate(all="ignore"):
        want = (every.astype(np.float32) * np.float32(0.5)).astype(np.float16)
    np.testing.assert_array_equal(halved(every), want)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ((np.zeros((2, 3), np.float32),), "takes 2 arrays"),
        ((np.zeros((2, 3)), np.zeros((3, 4), np.float32)), "`A` is f32 and was given float64"),
        ((np.zeros((2, 3), np.float32), np.zeros((4, 4), np.float32)), "`k` is 3 in `A` and 4 in `B`"),
        ((np.zeros((2,), np.float32), np.zeros((4, 4), np.float32)), "has the axes `i k` and was given shape"),
    ],
)
def test_arguments_that_do_not_fit(given: tuple[np.ndarray, ...], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        operators.matmul(*given)


def test_a_result_that_overlaps_is_refused() -> None:
    a = np.zeros((40, 40), np.float32)
    with pytest.raises(UsageError, match="overlaps"):
        operators.matmul(a, np.zeros((40, 40), np.float32), out=a)


def test_no_compiler_and_one_that_fails(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(NoBackend) as none:
        find()
    assert "apt install gcc" in str(none.value.hint)
    broken = tmp_path / "gcc"
    broken.write_text("#!/bin/sh\nkill -SEGV $$\n")
    broken.chmod(0o755)
    with pytest.raises(CompilerError, match="ended with code -11"):
        Compiler((str(broken),), "broken").build("int x;")


def test_a_compiler_that_hangs_is_ended_with_its_children_and_tuning_says_so(tmp_path: Path) -> None:
    slow, child = tmp_path / "slowcc", tmp_path / "child"
    slow.write_text(f"#!/bin/sh\nsleep 1000 & echo $! >> {child}; wait\n")
    slow.chmod(0o755)
    compiler = Compiler((str(slow),), "slow", seconds=0.3)
    with pytest.raises(CompilerLate, match=r"did not finish within 0\.3 s, and was ended"):
        compiler.build("int x;")
    begun = time.monotonic()
    with pytest.raises(NoResult, match=r"no schedule gave a valid program: .*did not finish within 0\.3 s"):
        tune(operators.matmul.program, {"i": 40, "k": 40, "j": 40}, local.detect(), compiler)
    assert time.monotonic() - begun < 60  # a bound on waiting for ever, not a measurement
    pids = child.read_text().split()
    assert len(pids) <= 4  # a compiler that hung is asked no more
    assert not any(running(pid) for pid in pids)


def running(pid: str) -> bool:
    stat = Path("/proc") / pid / "stat"
    return stat.exists() and stat.read_text().rsplit(") ", 1)[1][0] != "Z"


def test_a_wrong_kernel_and_one_that_crashes_are_found(worker: Worker) -> None:
    program = operators.matmul.program
    cases = odd_cases(program, operators.matmul.schedules({"i": 40, "k": 40, "j": 40})[0], np.random.default_rng(0))
    wrong = operators.matmul.code({"i": 40, "k": 40, "j": 40}).replace(" * v_", " + v_").replace("] * ", "] + ")
    with pytest.raises(VerificationFailed, match="differs from the oracle"):
        Judge(program, cases, worker).error("wrong", find().build(wrong))
    name = "portolan_matmul"
    head = "#include <stdint.h>\n#include <signal.h>\n"
    counts = "".join(f"int64_t {name}_{what}(const int64_t *s) {{ return 1; }}\n" for what in ("tasks", "workspace"))
    run = f"void {name}(void *const *a, const int64_t *s, void *w, int64_t f, int64_t l)"
    crash = find().build(head + counts + run + " { raise(SIGSEGV); }")
    outside = find().build(head + counts + run + " { ((float *)a[2])[-1] = 0; }")
    with Worker(module=AGENT) as other, pytest.raises(WorkerCrashed):
        Judge(program, cases, other).error("crash", crash)
    with Worker(module=AGENT) as other, pytest.raises(Exception, match="wrote outside"):
        Judge(program, cases, other).error("outside", outside)


def test_a_damaged_memory_is_no_memory(cache: Path) -> None:
    assert place.recall("kind", "some") is None
    place.remember("kind", "some", {"a": 1})
    place.remember("kind", "some", {"a": 2})
    assert place.recall("kind", "some") == {"a": 2}
    for file in cache.glob("ledger.sqlite*"):
        file.unlink()
    (cache / "ledger.sqlite").write_bytes(b"\xff{" * 100)
    assert place.recall("kind", "some") is None
    place.remember("kind", "some", {"a": 3})
    (cache / "ledger.sqlite").unlink()
