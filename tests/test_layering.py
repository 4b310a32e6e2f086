"""The architecture's rules about who may import whom, read from the sources."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "python" / "abyssal"

# Lower layers first. A module may import its own layer and those before it.
LAYERS = [
    "errors",
    "machine",
    "_core",
    "reference",
    "ops",
    "nn",
    "models",
    "engine",
    "train",
    "bench",
    "cli",
]
# Leaf modules that need neither torch nor a layer above them.
WITHOUT_TORCH = ["tokenizer.py", "tokenizer_files.py", "kvcache.py", "errors.py", "__init__.py"]
# Where names of the checkpoint's own files may appear.
CHECKPOINT_NAMES = re.compile(
    r"n_routed_experts|kv_a_proj_with_mqa|weight_scale_inv|moe_intermediate_size"
)


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def imported(path: Path, *, top_level_only: bool = False) -> set[str]:
    """The dotted names that a module imports; annotations-only imports are left out."""
    tree = ast.parse(path.read_text("utf-8"))
    found: set[str] = set()

    def visit(nodes: list[ast.stmt]) -> None:
        for node in nodes:
            if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
                continue
            if isinstance(node, ast.Import):
                found.update(alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                # One dot is the module's own package, two its parent.
                package = ["abyssal", *path.relative_to(PACKAGE).parts[:-1]]
                start = package[: len(package) + 1 - node.level] if node.level else []
                module = ".".join([*start, *([node.module] if node.module else [])])
                found.add(module)
                found.update(f"{module}.{alias.name}" for alias in node.names)
            elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and top_level_only:
                continue
            for field in ("body", "orelse", "finalbody", "handlers"):
                visit(getattr(node, field, []))

    visit(tree.body)
    return found


def layer_of(path: Path) -> str:
    part = path.relative_to(PACKAGE).parts[0]
    return part.removesuffix(".py")


def test_reference_never_imports_the_extension_or_the_operations():
    for path in (PACKAGE / "reference").rglob("*.py"):
        bad = [name for name in imported(path) if name.startswith(("abyssal._core", "abyssal.ops"))]
        assert not bad, f"{path}: {bad}"


def test_lower_layers_do_not_import_higher_ones():
    for path in modules():
        layer = layer_of(path)
        if layer not in LAYERS:
            continue
        above = LAYERS[LAYERS.index(layer) + 1 :]
        for name in imported(path):
            parts = name.split(".")
            if parts[0] == "abyssal" and len(parts) > 1:
                assert parts[1] not in above, f"{path.relative_to(ROOT)} imports {name}"


CHAT = [f"chat/{path.name}" for path in sorted((PACKAGE / "chat").glob("*.py"))]


@pytest.mark.parametrize("name", WITHOUT_TORCH + CHAT)
def test_tokenizer_chat_formats_and_page_cache_do_not_import_torch(name):
    modules = imported(PACKAGE / name, top_level_only=True)
    bad = {module.split(".")[0] for module in modules}
    assert "torch" not in bad
    assert "transformers" not in bad
    layers = {module.split(".")[1] for module in modules if module.startswith("abyssal.")}
    assert layers.isdisjoint({"ops", "nn", "models", "engine", "train", "cli"})


def test_only_the_extension_is_imported_by_name_outside_its_users():
    users = {
        "__init__",
        "ops",
        "tokenizer",
        "tokenizer_files",
        "tokenizer_streams",
        "kvcache",
        "engine",
        "integrations",
        "bench",
        "cli",
    }
    for path in modules():
        if any(name.startswith("abyssal._core") for name in imported(path)):
            assert layer_of(path) in users, path.relative_to(ROOT)


def test_checkpoint_names_stay_in_models_training_export_and_test_checkpoints():
    for path in modules():
        allowed = layer_of(path) in {"models", "train"} or path.parent.name == "testing"
        if not allowed:
            tree = ast.parse(path.read_text("utf-8"))
            literals = [
                node.value
                for node in ast.walk(tree)
                if isinstance(node, ast.Constant) and isinstance(node.value, str)
                # Names in prose (docstrings) are explanations, not uses.
                if " " not in node.value and CHECKPOINT_NAMES.search(node.value)
            ]
            assert not literals, f"{path.relative_to(ROOT)}: {literals}"


def test_files_stay_small_enough_to_read():
    for path in [*modules(), *sorted((ROOT / "tests").rglob("*.py"))]:
        assert len(path.read_text("utf-8").splitlines()) <= 300, path.relative_to(ROOT)
    for path in sorted((ROOT / "rust").rglob("*.rs")):
        assert len(path.read_text("utf-8").splitlines()) <= 600, path.relative_to(ROOT)


def test_leaf_crates_know_neither_each_other_nor_python():
    leaves = ["routing", "quant", "kvcache", "tokenizer"]
    for leaf in leaves:
        manifest = (ROOT / "rust" / leaf / "Cargo.toml").read_text("utf-8")
        dependencies = manifest.split("[dependencies]")[-1].split("[dev-dependencies]")[0]
        assert "pyo3" not in manifest
        assert not [other for other in leaves if f"abyssal-{other}" in dependencies], leaf


def test_unsafe_code_is_only_where_it_is_declared_and_explained():
    allowed = {
        "rust/routing/src/simd.rs",
        "rust/routing/src/simd/avx2.rs",
        "rust/routing/src/simd/avx512.rs",
        "rust/routing/src/simd/neon.rs",
        "rust/tokenizer/src/simd.rs",
        "rust/bindings/src/map.rs",
        "rust/bindings/src/tensor.rs",
        "rust/bindings/src/torch.rs",
    }
    for path in sorted((ROOT / "rust").rglob("src/**/*.rs")):
        where = path.relative_to(ROOT).as_posix()
        text = re.sub(r"//.*", "", path.read_text("utf-8"))
        if re.search(r"\bunsafe\s*(\{|fn|impl)", text):
            assert where in allowed or where.startswith(("rust/quant/", "rust/kernels/")), where
    assert "#![forbid(unsafe_code)]" in (ROOT / "rust/kvcache/src/lib.rs").read_text("utf-8")
