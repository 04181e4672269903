"""The house rules that a program can check: who imports whom, what is needed, what is generated."""

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# Highest first. A module imports from lower layers only, never back or sideways; a name stands
# for its submodules too.
LAYERS = {
    "ganserve": [
        {"__main__"},
        {"cli"},
        {"server"},
        {"running_server"},
        {"assembly", "service", "open_inference"},
        {"tracing"},
        {"inference_request"},
        {"repository", "request", "interceptors"},
        {"model_series", "model_tasks", "repository_folder"},
        {"versions"},
        {"batcher", "model", "admission"},
        {"gpu_sessions"},
        {"cuda_graphs", "model_spec"},
        {"bound_session"},
        {"runtime"},
        {"credentials", "answers", "row_queue", "further_parts"},
        {"entries", "log_format", "saved_images"},
        {"calls", "calls_under_way", "client"},
        {"load_test", "load_plot", "cli_options"},
        {"async_client", "load_workers", "load_sweep"},
        {"load_offering", "load_report"},
        {"load_references"},
        {
            "artifact",
            "client_streams",
            "model_files",
            "onnx_file",
            "onnx_weights",
            "metrics",
            "memory",
        }
        | {"accepting", "replies"},
        {
            "single_writer_metrics",
            "encoding",
            "listening",
            "messages",
            "client_messages",
            "client_channel",
            "client_models",
        }
        | {"direct_calls", "metrics_port", "providers"}
        | {"load_plan"},
        {"config", "unfinished_requests"},
        {
            *(
                "batch_sizes",
                "certificates",
                "deadlines",
                "core_call",
                "wire_format",
                "unread_replies",
                "call_times",
                "client_patience",
                "latents",
                "png",
                "errors",
                "health",
                "channel_security",
                "cpus",
                "flag_names",
                "grid",
                "growth",
                "latency_histogram",
                "listeners",
                "seed_ranges",
                "setting_values",
            ),
            *("inference", "v1"),
        },
    ],
    "gantrain": [
        {"__main__"},
        {"cli"},
        {"export"},
        {"frechet_change"},
        {"training", "report", "cli_options", "evaluation"},
        {"yardstick"},
        {"feature_spaces", "evaluation_data", "inception", "evaluation_results"},
        {"classifier_cache", "proof", "quantization"},
        {"run_monitor", "run_setup", "presets", "data_check", "onnx_graph", "precision_distance"},
        {"datasets", "sampling", "step_means", "curves", "diagnostics", "integer_graph"}
        | {"recorded_steps"},
        {"advice"},
        {"setting_changes"},
        {"config_rules", "pictures", "steps", "sample_statistics", "integer_layers"},
        {"run_log", "run_directory", "image_decoding", "celeba_folders", "publishing"}
        | {"optimizers", "meant_sources"},
        {"checkpoint", "image_folders", "idx_files", "cifar_files", "stacked_mnist"},
        {"class_folders", "image_files", "networks", "point_sets"},
        {
            *("networks.dcgan", "networks.dcgan_2015", "networks.faces", "networks.keras_conv"),
            *(
                "networks.mlp",
                "losses",
                "augment",
                "latents",
                "batches",
                "seed_ranges",
                "class_labels",
            ),
            *("random_features", "classifier", "distances"),
            *("determinism", "out_of_memory", "shared_batch_norm"),
            *("half_precision", "window_products"),
        },
        {"ranks", "runtime", "durable_files"},
        {"networks.keras", "config", "bad_data", "errors", "stop_requests", "precision"}
        | {"networks.image_gradients"},
        {"networks.shape", "networks.convolutions", "memory", "cpus", "reference"},
    ],
}
# Programs share nothing but the artifact; what trains must not be needed to serve.
FORBIDDEN = {
    "ganserve": {"gantrain", "torch", "sklearn", "tqdm", "onnx", "onnxscript"},
    "gantrain": {"ganserve", "grpc"},
}

GENERATED = ("ganserve.inference.v2", "ganserve.v1")


def list_modules(package: str) -> list[str]:
    """Dotted names of all modules of a package, generated ones left out."""
    paths = sorted((ROOT / package).rglob("*.py"))
    names = [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in paths]
    return [name.removesuffix(".__init__") for name in names if not name.startswith(GENERATED)]


MODULES = [name for package in LAYERS for name in list_modules(package)]


def read_source(module: str) -> str:
    path = ROOT / module.replace(".", "/")
    return (path / "__init__.py" if path.is_dir() else path.with_suffix(".py")).read_text()


def imported_modules(source: str) -> set[str]:
    """Absolute names of what a source imports, anywhere in it."""
    imported = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            imported |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.module, "imports are absolute"
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            submodules = {name for name in names if name in MODULES}
            imported |= submodules | ({node.module} if names - submodules else set())
    return imported


def layer(module: str) -> int:
    """The index of a module's layer; the longest name in the table that fits decides."""
    package, _, name = module.partition(".")
    if not name:
        return len(LAYERS[package])  # the package itself, below all of its modules
    while name:
        for index, names in enumerate(LAYERS[package]):
            if name in names:
                return index
        name = name.rpartition(".")[0]
    raise LookupError(
        f"{module} has no place in LAYERS: give it one, or give the work another home"
    )


def violations(module: str, source: str) -> list[str]:
    """What the imports of a module do against the rules."""
    package = module.partition(".")[0]
    imported = imported_modules(source)
    found = [f"imports {name}" for name in imported if name.partition(".")[0] in FORBIDDEN[package]]
    own_layer = layer(module)
    found += [
        f"imports {name}, which is not below it"
        for name in imported
        if name.startswith(f"{package}.") and layer(name) <= own_layer
    ]
    return sorted(found)


@pytest.mark.parametrize("module", MODULES)
def test_imports_follow_the_arrows(module):
    assert violations(module, read_source(module)) == []


@pytest.mark.parametrize(
    ("module", "source"),
    [
        pytest.param("ganserve.batcher", "from ganserve.server import serve", id="back"),
        pytest.param("ganserve.latents", "import ganserve.encoding", id="sideways"),
        pytest.param(
            "ganserve.model", "def load():\n    import torch.nn", id="torch-in-a-function"
        ),
        pytest.param("ganserve.cli", "from gantrain.latents import draw_latents", id="the-other"),
        pytest.param("gantrain.config", "from ganserve import config", id="the-other-way"),
    ],
)
def test_a_forbidden_import_would_be_found(module, source):
    assert len(violations(module, source)) == 1


def test_a_module_without_a_place_would_be_found():
    with pytest.raises(LookupError, match="no place"):
        violations("ganserve.utils", "import ganserve.config")


def test_the_table_names_only_what_exists():
    placed = {
        f"{package}.{name}" for package in LAYERS for layer in LAYERS[package] for name in layer
    }
    assert placed - set(GENERATED) <= set(MODULES)


@pytest.mark.parametrize("package", LAYERS)
def test_the_document_names_every_module_once(package):
    page = (ROOT / "docs/architecture.md").read_text()
    table = page.partition(f"| {package} | hides |\n|---|---|\n")[2].partition("\n\n")[0]
    first_cells = " ".join(row.split("|")[1] for row in table.splitlines())
    names = {name.split(".")[1] for name in list_modules(package) if "." in name} - {"__main__"}
    folders = {path.parent.name + "/" for path in (ROOT / package).glob("*/__init__.py")}
    expected = {name for name in names if f"{name}/" not in folders} | folders
    assert sorted(re.findall(r"`([\w/]+)`", first_cells)) == sorted(expected)


@pytest.mark.parametrize("module", MODULES)
def test_every_module_says_what_it_hides(module):
    docstring = ast.get_docstring(ast.parse(read_source(module))) or ""
    first_paragraph = docstring.partition("\n\n")[0]
    assert first_paragraph.endswith("."), "open the module with one sentence"


def test_every_package_is_installed():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    found = {
        ".".join(path.parent.relative_to(ROOT).parts)
        for package in LAYERS
        for path in (ROOT / package).rglob("__init__.py")
    }
    assert set(project["tool"]["setuptools"]["packages"]) == found


def test_the_server_needs_nothing_that_trains():
    modules = [name for name in list_modules("ganserve") if not name.endswith("__main__")]
    program = f"""
import importlib, sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {FORBIDDEN["ganserve"]}:
            raise ModuleNotFoundError(f"{{name}} is not needed to serve")

sys.meta_path.insert(0, Refuse())
for name in {modules}:
    importlib.import_module(name)
"""
    command = [sys.executable, "-W", "error", "-c", program]
    finished = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (finished.returncode, finished.stderr) == (0, "")


def test_generated_code_is_up_to_date():
    command = [sys.executable, "protos/generate.py", "--check"]
    finished = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
