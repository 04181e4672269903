"""ONNX Runtime: which build is installed, and how a session is opened on a device, or is not."""

import importlib.metadata
import importlib.util
import os
from collections.abc import Collection
from typing import Any

from ganserve.errors import ModelError, ProviderUnavailable, StartupError
from ganserve.models.onnx_weights import WEIGHTS_NAME, SplitFile
from ganserve.models.providers import CPU_PROVIDER, CUDA_PROVIDER, FIRST_PROVIDERS, Provider
from ganserve.plain_text import escape
from ganserve.setting_values import Device

# ONNX Runtime is published without types.
Session = Any  # onnxruntime.InferenceSession
_RUNTIMES = ("onnxruntime", "onnxruntime-gpu")
# What it says where memory is short, or CUDA's, or threads; it has no exceptions of their own.
_SHORTAGES = (
    *("bad_alloc", "Failed to allocate memory", "out of memory", "ALLOC_FAILED"),
    *("Resource temporarily unavailable", "can't start new thread"),
)
_ON_CPU: tuple[Provider, ...] = ((CPU_PROVIDER, {}),)
# An ONNX file with one node, Identity, of one float.
_SMALLEST_MODEL = (
    b'\x08\x08\x12\x00:7\n\x10\n\x01a\x12\x01b"\x08Identity\x12\x01gZ\x0f\n\x01a\x12\n\n\x08\x08\x01\x12'
    b"\x04\n\x02\x08\x01b\x0f\n\x01b\x12\n\n\x08\x08\x01\x12\x04\n\x02\x08\x01B\x04\n\x00\x10\x11"
)


def check_runtime(installed: Collection[str] | None = None) -> None:
    """Make sure that exactly one build of ONNX Runtime is installed.

    Raises:
        StartupError: none or both are; they own the same module and break each other.
    """
    if installed is None:
        installed = [name for name in _RUNTIMES if _is_installed(name)]
    if len(installed) > 1:
        raise StartupError(
            "onnxruntime and onnxruntime-gpu are both installed and break each other: uninstall "
            "both, then install one of the extras cpu and gpu"
        )
    if not installed and importlib.util.find_spec("onnxruntime") is None:
        raise StartupError(
            "ONNX Runtime is not installed: in a checkout, pip install '.[cpu]' or '.[gpu]'"
        )


def keep_runtime_silent() -> None:
    """Have ONNX Runtime report to nobody, unless the variable says otherwise already.

    Its telemetry writes an id and a database below the home folder and sends events to its makers.
    It begins with the import, so this comes before.
    """
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")


def runtime_version() -> str:
    """The version of ONNX Runtime."""
    import onnxruntime  # not at the top: `check_runtime` comes first

    return str(onnxruntime.__version__)


def resolve_device(device: Device) -> Device:
    """The device that is meant: `auto` is CUDA if the installed build knows it.

    Raises:
        ProviderUnavailable: the build does not know the device.
    """
    import onnxruntime

    available = onnxruntime.get_available_providers()
    if device == "auto":
        return "cuda" if CUDA_PROVIDER in available else "cpu"
    if FIRST_PROVIDERS[device] not in available:
        raise ProviderUnavailable(
            f"device {device}: expected {FIRST_PROVIDERS[device]}, but the installed ONNX Runtime "
            f"has {', '.join(available)}; install the extra gpu or use --device cpu"
        )
    return device


def check_device(device: Device) -> None:
    """Make sure that the installed build knows a device that was asked for, before any model.

    Raises:
        StartupError: it does not.
    """
    if device in ("auto", "cpu"):  # which every build can do
        return
    try:
        resolve_device(device)
    except ProviderUnavailable as error:
        raise StartupError(str(error)) from error


def open_session(
    file: SplitFile,
    device: Device,
    threads: int,
    *,
    providers: Collection[Provider] = _ON_CPU,
    deterministic: bool = False,
) -> Session:
    """Open a session on the device, and make sure it is on that device.

    Raises:
        ModelError: the file cannot be run.
        ProviderUnavailable: a file that can be run cannot be run on this device.
    """
    import onnxruntime

    options = session_options(threads)
    options.use_deterministic_compute = deterministic
    graph = file.graph
    if file.is_split and device == "tensorrt":  # which parses the model itself
        graph = bytes(file.content)
    elif file.is_split:
        options.add_external_initializers_from_files_in_memory(
            [WEIGHTS_NAME], [file.content], [len(file.content)]
        )
    if device == "cpu":
        # With its memory planned as a whole for each shape a batch is slower: without, each layer
        # presumably writes where caches still hold what was just freed. Not measured on GPUs.
        options.enable_mem_pattern = False
    else:
        onnxruntime.preload_dlls()
    wanted = FIRST_PROVIDERS[device]
    try:
        # ONNX Runtime would else try again on the CPU, here and whenever a run fails.
        session: Session = onnxruntime.InferenceSession(
            graph, options, providers=[*providers], enable_fallback=0
        )
    except Exception as error:  # ONNX Runtime's exceptions share no other class
        problem = one_line(error)
        if device == "cpu" or can_use(device):
            raise ModelError(f"ONNX Runtime cannot load it on {device}: {problem}") from error
        raise ProviderUnavailable(
            f"device {device}: expected {wanted}, but ONNX Runtime cannot use it: {problem}"
        ) from error
    in_use = session.get_providers()
    if in_use[0] != wanted:
        raise ProviderUnavailable(
            f"device {device}: expected {wanted}, but ONNX Runtime fell back to "
            f"{in_use[0]}; check the driver and the CUDA libraries, or use --device cpu"
        )
    return session


def can_use(device: Device) -> bool:
    """Whether the device runs the smallest of all models."""
    import onnxruntime

    wanted = FIRST_PROVIDERS[device]
    try:
        session = onnxruntime.InferenceSession(
            _SMALLEST_MODEL, session_options(1), providers=[wanted], enable_fallback=0
        )
    except Exception:  # ONNX Runtime's exceptions share no other class
        return False
    return bool(session.get_providers()[0] == wanted)


def session_options(threads: int) -> Any:  # noqa: ANN401 - untyped library
    """Build options for one of several callers that share the CPUs."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # Nothing: what matters is raised as well, and lines of its own quote the file as it is.
    options.log_severity_level = 4
    # A spinning thread takes the CPU from the other workers.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.inter_op.allow_spinning", "0")
    return options


def is_shortage(error: BaseException | None) -> bool:
    """Whether memory or threads were short, here or in what this came from; that may pass."""
    while error is not None:
        if isinstance(error, MemoryError) or any(words in str(error) for words in _SHORTAGES):
            return True
        error = error.__cause__
    return False


def one_line(error: Exception) -> str:
    """What ONNX Runtime says, short enough for a log."""
    # It names nodes as the file does. Of memory that is short Python says nothing.
    text = escape(" ".join(str(error).split())) or type(error).__name__
    # Both ends: where CUDA fails, the reason stands last, behind the signatures of functions.
    return text if len(text) <= 400 else f"{text[:100]} ... {text[-295:]}"


def _is_installed(distribution: str) -> bool:
    try:
        importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True
