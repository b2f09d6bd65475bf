"""Runs commands on damaged input in forked children with limits of time and memory (RELIABILITY R25)."""

from __future__ import annotations

import contextlib
import io
import os
import random
import resource
import signal
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from bgpt_fast.cli.main import main

CPU_SECONDS, SECONDS, BYTES = 10, 120, 2 * 2**30
"""A loop ends by its time on the processor; a wait, which a busy machine lengthens, by the clock."""


class Result(NamedTuple):
    """How a command ended: its exit code, minus the number of a signal; its output; its largest memory in bytes."""

    code: int
    out: str
    err: str
    memory: int

    def problem(self) -> str:
        """What a command must not do; "" if it did nothing of that."""
        if self.code in (-signal.SIGALRM, -signal.SIGXCPU):
            return f"did not end within {CPU_SECONDS} s of computing or {SECONDS} s"
        if self.code < 0:
            return f"was killed by {signal.Signals(-self.code).name}"
        if self.code not in (0, 1, 2):
            return f"exit code {self.code}"
        if "Traceback" in self.err:
            return "a stack trace"
        if self.code and not self.err.strip():
            return "failed without a word"
        if self.memory > BYTES:
            return f"took {self.memory / 1e9:.1f} GB"
        return ""


def run(words: Sequence[object]) -> Result:
    """Runs `bgpt-fast WORDS` in a forked child, which has this process's modules."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        code = 99
        out, err = io.StringIO(), io.StringIO()
        try:
            torch.set_num_threads(1)  # the threads of this process's pools are not in the child
            signal.alarm(SECONDS)
            resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS + 1))
            mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (mapped + BYTES, mapped + BYTES))
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                try:
                    code = main([str(word) for word in words])
                except BaseException:
                    traceback.print_exc()
        finally:
            with open(writing, "wb") as pipe:
                pipe.write(f"{out.getvalue()}\0{err.getvalue()}".encode("utf-8", "backslashreplace"))
            os._exit(code)
    os.close(writing)
    with open(reading, "rb") as pipe:
        text = pipe.read().decode()
    _, status, usage = os.wait4(child, 0)
    out_text, _, err_text = text.partition("\0")
    return Result(os.waitstatus_to_exitcode(status), out_text, err_text, usage.ru_maxrss * 1024)


def damaged(content: bytes, stream: random.Random) -> bytes:
    """The content with a random damage: flipped, cut, repeated, replaced or inserted bytes, or large numbers in it."""
    data = bytearray(content)
    for _ in range(stream.choice([1, 1, 2, 5])):
        at, size = stream.randrange(len(data) + 1), stream.choice([1, 2, 4, 16, 200])
        kind = stream.randrange(7)
        if kind == 0 and data:
            data[at % len(data)] ^= 1 << stream.randrange(8)
        elif kind == 1:
            del data[at:]
        elif kind == 2:
            del data[at : at + size]
        elif kind == 3:
            data[at:at] = data[max(0, at - size) : at] * stream.choice([1, 3, 50])
        elif kind == 4:
            data[at : at + size] = stream.randbytes(size)
        elif kind == 5:
            data[at : at + 4] = stream.choice([b"\xff\xff\xff\xff", b"\xff\xff\xff\x7f", b"\0\0\0\0", b"\0\0\0\x80"])
        else:
            data[at:at] = stream.choice(
                [b"9" * 40, b"[" * 3000, b"{", b"&a *a ", b"\xef\xbb\xbf", b"\0", b"-1", b"1e999"]
            )
    return bytes(data)
