"""Writes the type stubs of the extension, bgpt_fast/_C.pyi, from the built extension.

python tools/stubs.py [OUTPUT]        # or: make stubs
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def main() -> None:
    output = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "bgpt_fast" / "_C.pyi"
    with tempfile.TemporaryDirectory() as folder:
        run("pybind11_stubgen", "bgpt_fast._C", "--output-dir", folder, "--exit-code")
        stubs = (Path(folder) / "bgpt_fast" / "_C.pyi").read_text()
    # The value of with_cuda depends on the build; no signature does.
    output.write_text(re.sub(r"^with_cuda: bool = .*$", "with_cuda: bool", stubs, flags=re.MULTILINE))
    run("ruff", "check", "--silent", "--fix", "--exit-zero", str(output))
    run("ruff", "format", "--quiet", str(output))


def run(module: str, *arguments: str) -> None:
    subprocess.run([sys.executable, "-m", module, *arguments], check=True, cwd=ROOT)


if __name__ == "__main__":
    main()
