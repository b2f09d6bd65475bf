"""`python -m tools.kernels_hub FOLDER`: writes the kernel package into a new folder."""

from __future__ import annotations

import sys
from pathlib import Path

from tools.kernels_hub import build


def main() -> int:
    if len(sys.argv) != 2:
        print("usage: python -m tools.kernels_hub FOLDER", file=sys.stderr)
        return 2
    try:
        namespaces = build(Path(sys.argv[1]))
    except (OSError, ValueError) as error:
        print(f"kernels_hub: {error}", file=sys.stderr)
        return 1
    print(f"{sys.argv[1]}: " + ", ".join(f"torch-{backend} (torch.ops.{name})" for backend, name in namespaces.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
