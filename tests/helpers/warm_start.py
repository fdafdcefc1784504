"""Programs of .venv that start at once: forked from a Python that has imported torch already.

Most of the time of a small command is imports. ``Warm.start`` runs this file as a server; the
programs ``hetmp`` and ``python`` that ``Warm.install`` writes hand it what they were called with,
their environment and their open files, and end as it ends. The process is a new one each time, and
MPI starts in it as in any other.
"""

import atexit
import contextlib
import ctypes
import gc
import marshal
import os
import select
import signal
import socket
import stat
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

CLIENT = """#!{python} -SE
import marshal, posix, sys
from _socket import AF_UNIX, SCM_RIGHTS, SOL_SOCKET, socket
files = [0, 1, 2]
if b"PMI_FD" in posix.environ:  # MPICH's ranks find each other through it
    files.append(int(posix.environ[b"PMI_FD"]))
message = marshal.dumps((sys.argv, posix.getcwd(), posix.environ, files))
server = socket(AF_UNIX)
server.connect({path!r})
numbers = b"".join(file.to_bytes(4, sys.byteorder) for file in files)
server.sendmsg([len(message).to_bytes(4, "big")], [(SOL_SOCKET, SCM_RIGHTS, numbers)])
server.sendall(message)
code = server.recv(1)
posix._exit(code[0] if code else 1)
"""
"""Hands over a call. It imports what is part of Python itself: any more would take longer."""


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
    print("ready", flush=True)
    programs: list[Program] = []
    while True:
        watched = [file for program in programs for file in (program.ended, program.caller)]
        ready, _, _ = select.select([listening, 0, *watched], [], [])
        if 0 in ready:  # closed: whoever started this is gone
            os._exit(0)
        for program in programs[:]:
            if program.ended in ready or program.caller in ready:
                program.finish(ended=program.ended in ready)
                programs.remove(program)
        if listening in ready:
            caller, _ = listening.accept()
            call, files = _receive(caller)
            number = os.fork()
            if number == 0:
                for file in (listening, caller, *(program.caller for program in programs)):
                    os.close(file.detach())
                for program in programs:  # those that run still: an ended one's is closed
                    os.close(program.ended)
                return _become(call, files)
            for file in files:  # an open end of a pipe would keep its reader waiting
                os.close(file)
            programs.append(Program(number, os.pidfd_open(number), caller))


@dataclass(frozen=True)
class Program:
    """A program that runs, and who waits for it."""

    number: int
    ended: int
    """A file that is ready when the program has ended."""
    caller: socket.socket

    def finish(self, ended: bool) -> None:
        """Tell its caller its code, or end it with its caller."""
        if not ended:
            os.kill(self.number, signal.SIGKILL)
        code = os.waitstatus_to_exitcode(os.waitpid(self.number, 0)[1])
        if ended:
            with contextlib.suppress(OSError):  # its caller is gone as well
                self.caller.sendall(bytes([code if code >= 0 else 128 - code]))
        os.close(self.ended)
        self.caller.close()


def _receive(caller: socket.socket) -> tuple["Call", list[int]]:
    """Return what a caller hands over, and the files that come with it."""
    head, files, _, _ = socket.recv_fds(caller, 4, 8)
    message = b""
    while len(message) < int.from_bytes(head, "big"):
        message += caller.recv(1 << 16)
    return marshal.loads(message), list(files)


Call = tuple[list[str], str, dict[bytes, bytes], list[int]]
"""Arguments, folder, environment, and the numbers that the files had."""


def _become(call: Call, files: list[int]) -> list[str]:
    arguments, folder, variables, numbers = call
    high = [os.dup2(file, 200 + number) for number, file in enumerate(files)]
    for file in files:
        os.close(file)
    for file, number in zip(high, numbers, strict=True):
        os.dup2(file, number)
        os.close(file)
    os.environ.clear()
    os.environb.update(variables)
    added = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    sys.path[1:1] = [path for path in added if path]
    os.chdir(folder)
    return arguments


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


def end(code: int) -> None:
    """End a program, without taking apart all that was imported for it."""
    atexit._run_exitfuncs()
    mpi = sys.modules.get("mpi4py.MPI")
    if mpi is not None and mpi.Is_initialized() and not mpi.Is_finalized():
        mpi.Finalize()
    sys.stdout.flush()
    sys.stderr.flush()
    ctypes.CDLL(None).exit(code)  # MPI takes leave of its launcher in a handler of C's


def keep_libraries() -> None:
    """Let processes that exit not take apart the libraries loaded so far: torch needs 0.1 s for it.

    Handlers of C's run in the reverse of the order in which they were registered: those of what is
    loaded later, such as MPI's, still do.
    """
    c = ctypes.CDLL(None)
    c.on_exit(c._exit, None)  # is called with the exit code
    c.__cxa_atexit(c.fflush, None, None)


if __name__ == "__main__":
    import h5py  # noqa: F401
    import scipy.stats  # noqa: F401
    import sklearn.datasets
    import sklearn.model_selection  # noqa: F401
    import torch._dynamo  # noqa: F401, a first step of any optimizer imports it

    import hetmp.cli
    import hetmp.run.train  # noqa: F401

    keep_libraries()
    gc.collect()
    gc.freeze()  # what is shared with the processes stays shared
    called = serve(sys.argv[1])
    try:
        run(called)
    except SystemExit as ended:
        # Where mpi4py runs the program, it has to see the code: it ends the other ranks.
        if isinstance(ended.code, str) or (ended.code and "mpi4py.run" in sys.modules):
            raise
        end(ended.code or 0)
    end(0)
