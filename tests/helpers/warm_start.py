"""Programs of .venv that start at once: forked from a Python that has imported torch already.

Most of the time of a small command is imports. ``Warm.start`` runs this file as a server; the
programs ``hetmp`` and ``python`` that ``Warm.install`` writes hand it what they were called with,
their environment and their open files, and end as it ends. The process is a new one each time, and
MPI starts in it as in any other.
"""

import atexit
import ctypes
import gc
import json
import os
import select
import signal
import socket
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

CLIENT = """#!{python} -SE
import json, os, socket, sys
files = [0, 1, 2]
if "PMI_FD" in os.environ:  # MPICH's ranks find each other through it
    files.append(int(os.environ["PMI_FD"]))
call = {{"argv": sys.argv, "cwd": os.getcwd(), "environment": dict(os.environ), "files": files}}
server = socket.socket(socket.AF_UNIX)
server.connect({path!r})
message = json.dumps(call).encode()
socket.send_fds(server, [len(message).to_bytes(4, "big")], files)
server.sendall(message)
code = server.recv(1)
os._exit(code[0] if code else 1)
"""


class Warm:
    """A running server; ``stop`` ends it."""

    def __init__(self, folder: tempfile.TemporaryDirectory[str], path: str) -> None:
        self._folder, self._path = folder, path
        self._server = subprocess.Popen(
            [sys.executable, __file__, path],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
        assert self._server.stdout is not None
        assert self._server.stdout.readline() == b"ready\n"

    @classmethod
    def start(cls) -> "Warm":
        """A server that is ready; its socket has a short name, as sockets must."""
        folder = tempfile.TemporaryDirectory(prefix="warm-")
        return cls(folder, f"{folder.name}/socket")

    def install(self, binaries: Path) -> None:
        """Write ``hetmp`` and ``python`` into a folder."""
        for name in ("hetmp", "python"):
            program = binaries / name
            program.unlink(missing_ok=True)
            program.write_text(CLIENT.format(python=sys.executable, path=self._path))
            program.chmod(program.stat().st_mode | stat.S_IXUSR)

    def stop(self) -> None:
        """End the server. Programs that still run go on."""
        self._server.terminate()
        self._server.wait(30)
        self._folder.cleanup()


def serve(path: str) -> list[str]:
    """Never returns in the server itself; in every program's process, what it was called with."""
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(path)
    listening.listen(64)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the processes below
    print("ready", flush=True)
    while True:
        ready, _, _ = select.select([listening, 0], [], [])
        if 0 in ready:  # closed: whoever started this is gone
            os._exit(0)
        caller, _ = listening.accept()
        if os.fork() == 0:
            listening.close()
            return _keep(caller)
        caller.close()


def _keep(caller: socket.socket) -> list[str]:
    """Fork the program; wait for it and tell its caller its code, or end it with its caller."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    head, files, _, _ = socket.recv_fds(caller, 4, 8)
    message = b""
    while len(message) < int.from_bytes(head, "big"):
        message += caller.recv(1 << 16)
    call = json.loads(message)
    program = os.fork()
    if program == 0:
        caller.close()
        return _become(call, files)
    for file in {0, 1, 2, *files}:  # an open end of a pipe would keep its reader waiting
        os.close(file)
    ended = os.pidfd_open(program)
    ready, _, _ = select.select([ended, caller], [], [])
    if ended not in ready:
        os.kill(program, signal.SIGKILL)
    code = os.waitstatus_to_exitcode(os.waitpid(program, 0)[1])
    if ended in ready:
        caller.sendall(bytes([code if code >= 0 else 128 - code]))
    os._exit(0)


def _become(call: dict[str, object], files: list[int]) -> list[str]:
    high = [os.dup2(file, 200 + number) for number, file in enumerate(files)]
    for file in files:
        os.close(file)
    for file, number in zip(high, call["files"], strict=True):
        os.dup2(file, number)
        os.close(file)
    os.environ.clear()
    os.environ.update(call["environment"])
    added = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    sys.path[1:1] = [path for path in added if path]
    os.chdir(call["cwd"])
    return call["argv"]


def run(argv: list[str]) -> None:
    """What ``hetmp`` or ``python`` does with such a command line."""
    import runpy

    sys.argv = argv
    if Path(argv[0]).name == "hetmp":
        from hetmp.cli import main

        sys.exit(main())
    if argv[1] == "-c":
        sys.argv, sys.path[0] = ["-c", *argv[3:]], ""
        exec(argv[2], {"__name__": "__main__"})
    elif argv[1] == "-m":
        sys.argv, sys.path[0] = argv[2:], os.getcwd()
        runpy.run_module(argv[2], run_name="__main__", alter_sys=True)
    else:
        sys.argv, sys.path[0] = argv[1:], str(Path(argv[1]).resolve().parent)
        runpy.run_path(argv[1], run_name="__main__")


def end() -> None:
    """End a program that ran well, without taking apart all that was imported for it."""
    atexit._run_exitfuncs()
    mpi = sys.modules.get("mpi4py.MPI")
    if mpi is not None and mpi.Is_initialized() and not mpi.Is_finalized():
        mpi.Finalize()
    sys.stdout.flush()
    sys.stderr.flush()
    ctypes.CDLL(None).exit(0)  # MPI takes leave of its launcher in a handler of C's


if __name__ == "__main__":
    import h5py  # noqa: F401
    import scipy.stats  # noqa: F401
    import sklearn.datasets
    import sklearn.model_selection  # noqa: F401
    import torch._dynamo  # noqa: F401, a first step of any optimizer imports it

    import hetmp.cli
    import hetmp.run.train  # noqa: F401

    gc.collect()
    gc.freeze()  # what is shared with the processes stays shared
    called = serve(sys.argv[1])
    try:
        run(called)
    except SystemExit as ended:
        if ended.code:
            raise
    end()
