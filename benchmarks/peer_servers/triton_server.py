"""NVIDIA Triton, the one that comes with PyTriton, with two instances of a Python backend."""

import os
import shutil
import sys
import sysconfig
import tempfile
from pathlib import Path

import pytriton
from generator import BATCH, PORT

_CONFIGURATION = f"""
backend: "python"
max_batch_size: 64
input [{{ name: "seeds", data_type: TYPE_UINT64, dims: [1] }}]
output [{{ name: "images", data_type: TYPE_UINT8, dims: [64, 64, 3] }}]
instance_group [{{ kind: KIND_CPU, count: 2 }}]
dynamic_batching {{ preferred_batch_size: [{BATCH}] }}
"""


def main() -> None:
    """Lay out a repository with the model, then become the server."""
    package = Path(pytriton.__file__).parent
    triton = package / "tritonserver"
    folder = Path(tempfile.mkdtemp())
    model = folder / "models" / "dcgan64"
    (model / "1").mkdir(parents=True)
    (model / "config.pbtxt").write_text(_CONFIGURATION)
    shutil.copy(Path(__file__).with_name("triton_model.py"), model / "1" / "model.py")
    shutil.copytree(triton / "backends", folder / "backends")
    python = f"{sys.version_info[0]}.{sys.version_info[1]}"
    stub = triton / "python_backend_stubs" / python / "triton_python_backend_stub"
    shutil.copy(stub, folder / "backends" / "python")
    libraries = package.parent / "nvidia_pytriton.libs"
    environment = {
        **os.environ,
        "LD_LIBRARY_PATH": f"{sysconfig.get_config_var('LIBDIR')}:{libraries}",
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": ":".join(path for path in sys.path if path),
    }
    command = ["tritonserver", "--model-repository", str(folder / "models")]
    command += ["--backend-directory", str(folder / "backends")]
    command += ["--grpc-port", str(PORT), "--grpc-address", "127.0.0.1"]
    command += ["--disable-auto-complete-config", "--allow-http", "false"]
    command += ["--allow-metrics", "false"]
    command += ["--backend-config", f"python,shm-region-prefix-name=peer{os.getpid()}"]
    os.execve(triton / "bin" / "tritonserver", command, environment)


if __name__ == "__main__":
    main()
