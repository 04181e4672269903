"""Writes the Python code of protos/ into the packages; --check only compares."""

import argparse
import filecmp
import subprocess
import sys
import tempfile
from pathlib import Path

PROTOS = Path(__file__).resolve().parent
REPOSITORY = PROTOS.parent


def generate(target: Path) -> list[Path]:
    """Write the generated modules below `target`; return their paths relative to it."""
    sources = [str(path.relative_to(PROTOS)) for path in sorted(PROTOS.rglob("*.proto"))]
    subprocess.run(
        [
            *(sys.executable, "-m", "grpc_tools.protoc"),
            f"--proto_path={PROTOS}",
            f"--python_out={target}",
            f"--grpc_python_out={target}",
            f"--mypy_out=quiet:{target}",
            f"--mypy_grpc_out=quiet:{target}",
            *sources,
        ],
        check=True,
        # The protoc plugins are scripts beside this interpreter, which need not be on PATH.
        env={"PATH": str(Path(sys.executable).parent)},
    )
    return [
        Path(source).with_name(Path(source).stem + suffix)
        for source in sources
        for suffix in ("_pb2.py", "_pb2.pyi", "_pb2_grpc.py", "_pb2_grpc.pyi")
    ]


def main() -> None:
    """Generate into the packages, or with --check into a folder of its own to compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 if stale")
    if not parser.parse_args().check:
        print(*generate(REPOSITORY), sep="\n")
        return
    with tempfile.TemporaryDirectory() as folder:
        stale = [
            str(path)
            for path in generate(Path(folder))
            if not (REPOSITORY / path).is_file()
            or not filecmp.cmp(Path(folder) / path, REPOSITORY / path, shallow=False)
        ]
    if stale:
        sys.exit(f"generated code is stale, run `make protos`: {', '.join(stale)}")


if __name__ == "__main__":
    main()
