"""Public operations say everything that a caller must know, and the examples in docstrings run."""

import doctest
import importlib
import inspect
import pkgutil

import pytest

import abyssal

PUBLIC_OPERATIONS = ["abyssal.ops", "abyssal.reference"]


def all_modules() -> list[str]:
    found = pkgutil.walk_packages(abyssal.__path__, "abyssal.")
    return [module.name for module in found if not module.name.endswith("__main__")]


@pytest.mark.parametrize("name", all_modules())
def test_examples_in_docstrings_run(name):
    failures, _ = doctest.testmod(importlib.import_module(name))
    assert failures == 0


@pytest.mark.parametrize("name", all_modules())
def test_every_module_says_what_it_is(name):
    module = importlib.import_module(name)
    if not name.endswith("._core"):
        assert (module.__doc__ or "").strip(), name


@pytest.mark.parametrize("home", PUBLIC_OPERATIONS)
def test_every_public_operation_states_arguments_results_and_guarantees(home):
    module = importlib.import_module(home)
    functions = [getattr(module, name) for name in module.__all__]
    functions = [value for value in functions if inspect.isfunction(value)]
    assert functions
    for function in functions:
        text = inspect.getdoc(function) or ""
        for section in ("Args:", "Returns:", "Guarantees:"):
            assert section in text, f"{home}.{function.__name__} has no {section}"
        for parameter in inspect.signature(function).parameters:
            assert parameter in text, f"{home}.{function.__name__} does not mention {parameter}"
