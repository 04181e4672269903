"""The house rules that a program can check: who imports whom, what is needed, what is generated."""

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# Highest first. A module or package imports from lower layers only, never back or sideways.
LAYERS = {
    "ganserve": [
        {"__main__"},
        {"cli"},
        {"server"},
        {"running_server"},
        {"assembly"},
        {"api", "saved_images"},
        {"repository", "tracing", "cli_options"},
        {"batching", "security", "load_test", "log_format"},
        {"calls"},
        {"client", "transport"},
        {"models", "metrics", "metrics_port", "encoding", "config"},
        {"errors", "latents", "png", "single_writer_metrics", "wire_format", "setting_values"}
        | {"file_reads", "listeners", "cpus", "memory", "flag_names", "seed_ranges", "grid"}
        | {"addresses", "pem", "inference", "v1"},
        {"plain_text"},
    ],
    "gantrain": [
        {"__main__"},
        {"cli"},
        {"cli_options"},
        {"training", "export", "report"},
        {"evaluation"},
        {"diagnosis", "sampling"},
        {"optimizers", "run_directory", "presets", "curves"},
        {"checkpoint", "config_rules", "run_log", "pictures", "publishing"},
        {"data", "durable_files", "ranks", "runtime"},
        {"networks", "losses", "config", "errors", "latents", "class_labels"},
        {"memory", "cpus", "other_machines", "progress", "seed_ranges", "typos"},
    ],
}
# The same within each package, whose own `__init__` is written as "".
LAYERS_WITHIN = {
    "ganserve.api": [
        {"open_inference"},
        {"service", "inference_request"},
        {"request", "interceptors", "replies"},
        {"methods"},
    ],
    "ganserve.batching": [
        {"batcher"},
        {"results", "row_queue", "chunk_admission"},
        {"entries", "batch_delay", "latency_estimate"},
    ],
    "ganserve.client": [
        {""},
        {"sync_client"},
        {"async_client"},
        {"streams", "settings"},
        {"messages"},
        {"failures", "models", "channel", "channel_security", "patience"},
    ],
    "ganserve.load_test": [
        {"run", "plot"},
        {"workers", "sweep"},
        {"offering", "report"},
        {"references"},
        {"plan"},
        {"latency_histogram"},
    ],
    "ganserve.models": [
        {"loading"},
        {"gpu_sessions", "lone_session"},
        {"model"},
        {"model_spec", "cuda_graphs"},
        {"bound_session"},
        {"runtime"},
        {"artifact", "model_files", "onnx_file", "onnx_weights", "providers", "batch_sizes"},
    ],
    "ganserve.repository": [
        {"repository"},
        {"model_index", "model_series"},
        {"versions", "repository_folder", "model_tasks"},
    ],
    "ganserve.security": [{"admission"}, {"credentials"}, {"certificates"}],
    "ganserve.transport": [
        {"accepting"},
        {"direct_calls", "calls_under_way"},
        {"core_call", "unfinished_requests", "unread_replies", "messages"}
        | {"listening", "deadlines", "health"},
        {"call_context"},
    ],
    "gantrain.data": [
        {"data_check"},
        {"datasets"},
        {"meant_sources", "celeba_folders", "image_decoding"},
        {"image_folders"},
        {"image_files", "idx_files", "cifar_files", "stacked_mnist"},
        {"class_folders", "point_sets", "bad_data"},
    ],
    "gantrain.diagnosis": [{"diagnostics"}, {"evidence"}, {"advice"}, {"setting_changes"}],
    "gantrain.evaluation": [
        {"evaluate"},
        {"yardstick"},
        {"feature_spaces"},
        {"examples", "classifier_cache", "sample_statistics"},
        {"classifier", "distances", "inception", "random_features", "reference", "results"},
    ],
    "gantrain.export": [
        {"artifact"},
        {"quantization"},
        {"integer_graph"},
        {"proof", "integer_layers", "small_maps"},
        {"window_nodes"},
        {"onnx_graph", "half_precision", "precision_distance", "frechet_change", "precision"}
        | {"graph_draft", "window_products"},
    ],
    "gantrain.networks": [
        {""},
        {"dcgan"},
        {"dcgan_2015", "faces", "keras_conv", "mlp", "image_gradients"},
        {"keras", "shape", "convolutions"},
        {"product_limits"},
    ],
    "gantrain.training": [
        {"loop"},
        {"recorded_steps", "recovery"},
        {"steps", "run_monitor", "run_quality", "run_setup"},
        {"step_means", "stop_requests", "out_of_memory", "determinism"}
        | {"shared_batch_norm", "batches", "augment"},
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


def place(package: str, name: str) -> int:
    """The layer of a name in its program or package, counted from the top."""
    layers = LAYERS.get(package) or LAYERS_WITHIN.get(package, [])
    for index, names in enumerate(layers):
        if name in names:
            return index
    if not name:
        return len(layers)  # a package's own docstring, below all of its modules
    raise LookupError(f"{package}.{name} has no place: give it one, or give the work another home")


def is_below(module: str, imported: str) -> bool:
    """Whether a module of the same program may be imported."""
    program, *names = module.split(".")
    name, within = [*names, "", ""][:2]
    imported_name, imported_within = [*imported.split(".")[1:], "", ""][:2]
    if name == imported_name:
        package = f"{program}.{name}"
        return place(package, within) < place(package, imported_within)
    return place(program, name) < place(program, imported_name)


def violations(module: str, source: str) -> list[str]:
    """What the imports of a module do against the rules."""
    package = module.partition(".")[0]
    imported = imported_modules(source)
    found = [f"imports {name}" for name in imported if name.partition(".")[0] in FORBIDDEN[package]]
    found += [
        f"imports {name}, which is not below it"
        for name in imported
        if name.startswith(f"{package}.") and not is_below(module, name)
    ]
    return sorted(found)


@pytest.mark.parametrize("module", MODULES)
def test_imports_follow_the_arrows(module):
    assert violations(module, read_source(module)) == []


@pytest.mark.parametrize(
    ("module", "source"),
    [
        pytest.param("ganserve.batching.batcher", "from ganserve.server import serve", id="back"),
        pytest.param("ganserve.latents", "import ganserve.encoding", id="sideways"),
        pytest.param(
            "ganserve.batching.entries", "import ganserve.batching.batcher", id="back-within"
        ),
        pytest.param(
            *("ganserve.batching.batch_delay", "import ganserve.batching.entries"),
            id="sideways-within",
        ),
        pytest.param(
            "ganserve.models.model", "def load():\n    import torch.nn", id="torch-in-a-function"
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
    with pytest.raises(LookupError, match="no place"):
        violations("ganserve.batching.utils", "import ganserve.batching.entries")


def test_the_tables_name_what_exists_once():
    placed = [
        f"{package}.{name}".removesuffix(".")
        for package, layers in (LAYERS | LAYERS_WITHIN).items()
        for layer in layers
        for name in layer
    ]
    assert len(placed) == len(set(placed)) + len({"ganserve.client", "gantrain.networks"})
    assert set(placed) - {"ganserve.v1"} <= set(MODULES)


@pytest.mark.parametrize("program", LAYERS)
def test_the_document_names_every_module_once(program):
    page = (ROOT / "docs/architecture.md").read_text()
    table = page.partition(f"| {program} | hides |\n|---|---|\n")[2].partition("\n\n")[0]
    first_cells = " ".join(row.split("|")[1] for row in table.splitlines())
    packages = {path.parent.name for path in (ROOT / program).glob("*/__init__.py")}
    names = {name.partition(".")[2] for name in list_modules(program)} - {"", "__main__"} - packages
    expected = [name.rpartition(".")[2] for name in names] + [f"{name}/" for name in packages]
    assert sorted(re.findall(r"`([\w/]+)`", first_cells)) == sorted(expected)


@pytest.mark.parametrize("module", MODULES)
def test_every_module_says_what_it_hides(module):
    docstring = ast.get_docstring(ast.parse(read_source(module))) or ""
    first_paragraph = docstring.partition("\n\n")[0]
    assert first_paragraph.endswith("."), "open the module with one sentence"


def test_every_package_is_installed():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert set(project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]) == set(LAYERS)


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
