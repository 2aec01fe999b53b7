"""No backend talks to the network or leaves anything in the home directory: in a process of its own, with an empty
home, and with every attempt to reach an address or look up a name recorded from below Python."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import portolan
from portolan.testing.models import this_machine
from support.envs import made_environment

# Records calls of libc that reach out, whoever makes them: runtimes do it in native code, past Python's audit hooks.
_SHIM = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <netdb.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

static void record(const char *call, int family, const char *what) {
    const char *path = getenv("PORTOLAN_NETWORK_LOG");
    FILE *file = path ? fopen(path, "a") : NULL;
    if (!file) return;
    fprintf(file, "%s family=%d pid=%d %s\n", call, family, (int)getpid(), what ? what : "");
    fclose(file);
}
static int outside(const struct sockaddr *a) { return a && (a->sa_family == AF_INET || a->sa_family == AF_INET6); }

int connect(int fd, const struct sockaddr *a, socklen_t n) {
    static int (*real)(int, const struct sockaddr *, socklen_t);
    if (!real) real = dlsym(RTLD_NEXT, "connect");
    if (outside(a)) record("connect", a->sa_family, NULL);
    return real(fd, a, n);
}
ssize_t sendto(int fd, const void *b, size_t l, int f, const struct sockaddr *a, socklen_t n) {
    static ssize_t (*real)(int, const void *, size_t, int, const struct sockaddr *, socklen_t);
    if (!real) real = dlsym(RTLD_NEXT, "sendto");
    if (outside(a)) record("sendto", a->sa_family, NULL);
    return real(fd, b, l, f, a, n);
}
int getaddrinfo(const char *node, const char *service, const struct addrinfo *hints, struct addrinfo **result) {
    static int (*real)(const char *, const char *, const struct addrinfo *, struct addrinfo **);
    if (!real) real = dlsym(RTLD_NEXT, "getaddrinfo");
    record("getaddrinfo", 0, node);
    return real(node, service, hints, result);
}
struct hostent *gethostbyname(const char *name) {
    static struct hostent *(*real)(const char *);
    if (!real) real = dlsym(RTLD_NEXT, "gethostbyname");
    record("gethostbyname", 0, name);
    return real(name);
}
"""

_RUN = """
import json, sys, time
from pathlib import Path
from portolan.core.registry import backend as find
from portolan.core.target import Target
name, target, folder = json.loads(sys.argv[1])
backend, folder = find(name), Path(folder)
if backend.needs_program:
    import numpy as np
    from portolan.core.model import Model
    from portolan.core.signature import Signature, TensorSpec
    from portolan.core.silence import runtime
    torch = runtime("torch")
    torch.export.save(torch.export.export(torch.nn.Linear(3, 3), (torch.ones(2, 3),)), folder / "p.pt2")
    spec = TensorSpec("x", "float32", (2, 3))
    model = Model("p", folder / "p.onnx", "0", Signature((spec,), (spec,)), program=folder / "p.pt2")
    inputs = {"x": np.ones((2, 3), np.float32)}
else:
    from portolan.testing.models import perceptron
    case = perceptron(folder, rows=1)
    model, inputs = case.model, case.inputs
executable = backend.compile(model, Target.from_json(target), **backend.schema.check({}))
executable.run(inputs)
# Telemetry is sent from a thread a while after the import: the process has to be there for it.
time.sleep(3)
executable.close()
print("ran")
"""

_GUILTY = """
import contextlib, socket
from pathlib import Path
with contextlib.suppress(OSError), socket.socket() as s:
    s.settimeout(1)
    s.connect(("127.0.0.1", 9))
with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
    s.sendto(b"x", ("127.0.0.1", 9))
with contextlib.suppress(OSError):
    socket.getaddrinfo("localhost", 9)
Path.home().joinpath("device-id").write_text("1")
"""


@pytest.fixture(scope="module")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shim")
    source, library = folder / "shim.c", folder / "shim.so"
    source.write_text(_SHIM)
    subprocess.run(["cc", "-shared", "-fPIC", "-o", str(library), str(source), "-ldl"], check=True)
    return library


def observe(
    shim: Path, folder: Path, code: str, question: object = None, python: str = sys.executable
) -> tuple[list[str], list[str]]:
    """Runs `code`; returns what reached out and what lies in its home afterwards."""
    home, temporary, log = folder / "home", folder / "tmp", folder / "network.log"
    for path in home, temporary:
        path.mkdir()
    log.write_text("")
    kept = {k: v for k, v in os.environ.items() if k in ("PATH", "PYTHONPATH", "LD_LIBRARY_PATH", "PORTOLAN_FAKE")}
    environment = kept | {"HOME": str(home), "TMPDIR": str(temporary), "PORTOLAN_NETWORK_LOG": str(log)}
    if python != sys.executable:
        environment["PYTHONPATH"] = str(Path(portolan.__file__).parents[1])
    command = [python, "-P", "-c", code, json.dumps(question)]
    done = subprocess.run(
        command, env=environment | {"LD_PRELOAD": str(shim)}, capture_output=True, text=True, check=False, timeout=200
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return log.read_text().splitlines(), sorted(str(p.relative_to(home)) for p in home.rglob("*"))


def script(folder: Path) -> Path:
    path = folder / "script.toml"
    path.write_text("[variants.default]\nlatency_ms = 0.1\n")
    return path


@pytest.mark.parametrize(
    "name", ["reference", "fake", "onnxruntime", "openvino", pytest.param("torch", marks=pytest.mark.torch)]
)
def test_a_backend_reaches_nobody_and_leaves_nothing(
    name: str, shim: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PORTOLAN_FAKE", str(script(tmp_path)))
    reached, left = observe(shim, tmp_path, _RUN, [name, this_machine().to_json(), str(tmp_path)])
    assert reached == []
    assert left == []


def test_the_observer_sees_who_does(shim: Path, tmp_path: Path) -> None:
    reached, left = observe(shim, tmp_path, _GUILTY)
    assert {line.split()[0] for line in reached} == {"connect", "sendto", "getaddrinfo"}
    assert left == ["device-id"]


def traced(folder: Path, name: str, python: str = sys.executable) -> tuple[list[str], list[str]]:
    """As `observe`, by the word of the kernel, which static programs do not escape; without strace the home alone."""
    home, calls = folder / f"home-{name}", folder / f"calls-{name}"
    home.mkdir()
    calls.write_text("")
    strace = shutil.which("strace")
    prefix = [strace, "-f", "-qq", "-e", "trace=connect,sendto,sendmmsg", "-o", str(calls)] if strace else []
    environment = {"HOME": str(home), "PATH": os.environ["PATH"]}
    if python != sys.executable:
        environment["PYTHONPATH"] = str(Path(portolan.__file__).parents[1])
    elif "PYTHONPATH" in os.environ:
        environment["PYTHONPATH"] = os.environ["PYTHONPATH"]
    question = json.dumps([name, this_machine().to_json(), str(folder)])
    command = [*prefix, python, "-P", "-c", _RUN, question]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=280)
    said = done.stdout.strip()
    # Converters of other environments print; the runtimes of this one must not.
    assert said == "ran" or (python != sys.executable and said.endswith("ran")), done.stderr[-2000:]
    reached = [line for line in calls.read_text().splitlines() if "AF_INET" in line]
    return reached, sorted(str(path.relative_to(home)) for path in home.rglob("*"))


def test_the_system_calls_say_the_same(tmp_path: Path) -> None:
    """Where strace is installed, the kernel's own word for the two runtimes that phone home by default."""
    for name in "onnxruntime", "openvino":
        assert traced(tmp_path, name) == ([], [])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["executorch", "iree", "litert", "ncnn", "tinygrad", "tvm"])
def test_a_backend_of_an_environment_reaches_nobody_and_leaves_nothing(
    name: str, shim: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Converting, compiling and running; where strace is there by its word, else by that of libc's calls."""
    python = str(made_environment(name, monkeypatch).python)
    question = [name, this_machine().to_json(), str(tmp_path)]
    found = (
        traced(tmp_path, name, python) if shutil.which("strace") else observe(shim, tmp_path, _RUN, question, python)
    )
    assert found == ([], [])
