"""Text reaches the terminal as it is: nothing interprets markup in it, and every encoding can show it."""

from __future__ import annotations

import ast
import io
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from support.paths import ROOT

from bgpt_fast import terminal

TEXT = "pip install '.[plot]' [/red] [link=x] :warning: {0} %s \\[x]"
INTERPRETS = {"Console", "TextColumn", "track", "from_markup", "render_markup", "wrap_file", "open"}
"""Names of rich that interpret text unless they are told not to."""


def rendered(text: str, console: Console | None = None) -> str:
    file = io.StringIO()
    console = console or terminal.new_console()
    console.file, console.width = file, 200
    table = Table(title=text)
    table.add_column(text)
    table.add_row(text)
    console.print(text)
    console.print(table)
    return file.getvalue()


def test_text_is_not_interpreted() -> None:
    assert rendered(TEXT).count(TEXT) == 4
    assert rendered(TEXT.replace("[/red]", ""), Console()).count("[plot]") == 0, "rich's own console eats it"
    file = io.StringIO()
    console = terminal.new_console()
    console.file, console.width = file, 200
    with Progress(terminal.text_column("{task.description}"), console=console) as bar:
        bar.add_task(TEXT)
    assert TEXT in file.getvalue()


def interpreting(source: str) -> list[str]:
    """The calls of a file by which rich may interpret text as markup or emoji."""
    tree = ast.parse(source)
    from_rich = {
        alias.asname or alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom | ast.Import)
        for alias in node.names
        if (node.module if isinstance(node, ast.ImportFrom) else alias.name or "").split(".")[0] == "rich"
    }
    calls = []
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        base, _, attribute = name.rpartition(".")
        is_rich = name in from_rich or base.split(".")[0] in from_rich
        if is_rich and (attribute in INTERPRETS or attribute == "print" or name == "Text.from_markup"):
            calls.append(f"line {node.lineno}: {name}")
        if any(word.arg in ("markup", "emoji") for word in node.keywords):
            calls.append(f"line {node.lineno}: {name} with markup or emoji")
        if is_rich and attribute == "Progress" and not node.args:
            calls.append(f"line {node.lineno}: {name} with rich's own columns")
    return calls


def test_no_text_reaches_markup() -> None:
    """Rich's consoles and text columns are created in one module, where markup is off; so no f-string can be markup."""
    folders = [ROOT / name for name in ("bgpt_fast", "kernels", "examples", "benchmarks", "tools")]
    paths = [path for folder in folders for path in folder.rglob("*.py") if path != ROOT / "bgpt_fast/terminal.py"]
    assert len(paths) > 200
    sources = {str(path): path.read_text(encoding="utf-8") for path in paths}
    assert [
        (path, calls) for path, source in sources.items() if "rich" in source and (calls := interpreting(source))
    ] == []


@pytest.mark.parametrize(
    "source",
    [
        "from rich.console import Console\nConsole(stderr=True)",
        "from rich import console\nconsole.Console()",
        "from rich.progress import TextColumn as Column\nfrom rich.progress import TextColumn\nTextColumn(f'{x}')",
        "from rich.progress import track\ntrack(files, f'{x}')",
        "import rich\nrich.print(f'{x}')",
        "from rich import print\nprint(f'{x}')",
        "from rich.text import Text\nText.from_markup(f'{x}')",
        "from rich.progress import Progress\nProgress(console=console)",
        "console.print(f'{x}', markup=True)",
    ],
)
def test_the_source_test_catches(source: str) -> None:
    assert len(interpreting(source)) == 1


def test_printable() -> None:
    assert terminal.printable("a\x1b[31m\n\udcff\u202eé") == "a\\x1b[31m\\n\\udcff\\u202eé"
    assert terminal.printable_lines("a\nb\rc") == "a\nb\\rc"


@pytest.mark.parametrize(
    ("encoding", "expected"),
    [
        ("ascii", b"0...255 - 3 x 4 != 12 \\xe9 \\u4e2d \\udcff"),
        ("latin-1", b"0...255 - 3 \xd7 4 != 12 \xe9 \\u4e2d \\udcff"),
        ("cp1252", b"0\x85255 \x96 3 \xd7 4 != 12 \xe9 \\u4e2d \\udcff"),
        ("utf-8", "0…255 – 3 × 4 ≠ 12 é 中 \\udcff".encode()),
    ],
)
def test_every_encoding_shows_every_text(encoding: str, expected: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "0…255 – 3 × 4 ≠ 12 é 中 \udcff"
    strict = io.TextIOWrapper(io.BytesIO(), encoding, write_through=True)
    with pytest.raises(UnicodeEncodeError):
        print(text, file=strict)
    with monkeypatch.context() as patch:
        output = io.BytesIO()
        patch.setattr(sys, "stdout", io.TextIOWrapper(output, encoding, write_through=True))
        terminal.accept_all_text()
        print(text, end="")
        content = output.getvalue()
    assert content == expected


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full")
def test_output_that_cannot_be_written_is_named() -> None:
    command = [sys.executable, "-m", "bgpt_fast.cli.main", "env"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with open("/dev/full", "wb") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, env=environment, check=False)
    assert done.returncode == 1
    assert done.stderr == b"bgpt-fast env: OSError: [Errno 28] No space left on device: 'standard output'\n"


def test_closed_and_full_streams_end_no_command(tmp_path: Path) -> None:
    """A closed descriptor is given to no other file, and text that cannot be written on standard error is dropped."""
    program = """
import os
from terminal import accept_all_text, print_error, print_text
accept_all_text()
print_text("x")
print_error("y")
os.write(os.open("file", os.O_CREAT | os.O_WRONLY), b"content")
"""
    for streams in (">&- 2>&-", "2>&-", "<&- >&-", "2>/dev/full"):
        command = f"{shlex.quote(sys.executable)} -c {shlex.quote(program)} {streams}"
        environment = {**os.environ, "PYTHONPATH": str(ROOT / "bgpt_fast")}  # the module alone, without torch
        done = subprocess.run(["sh", "-c", command], cwd=tmp_path, env=environment, check=False)
        assert done.returncode == 0, streams
        assert (tmp_path / "file").read_bytes() == b"content"
        (tmp_path / "file").unlink()


def test_text_and_tables_raise_when_the_reader_has_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    for write in (lambda: terminal.print_text("a"), lambda: terminal.print_table(Table("a", "b"))):
        reader, writer = os.pipe()
        os.close(reader)
        with open(writer, "w") as pipe, monkeypatch.context() as patch:
            patch.setattr(sys, "stdout", pipe)
            with pytest.raises(BrokenPipeError):
                write()
