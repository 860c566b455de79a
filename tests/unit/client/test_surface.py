import inspect
import subprocess
import sys

import pytest

import dragoman
from dragoman import AsyncClient, Client, errors, types
from dragoman.v1 import translation_pb2

# Which method of the clients calls a method of the API.
CLIENT_METHODS = {"dragoman.v1.TranslationService.Translate": "translate"}


def public(members: object) -> list[str]:
    return [name for name in vars(members) if not name.startswith("_")]


def test_all_names_exist_and_are_sorted() -> None:
    assert sorted(dragoman.__all__) == dragoman.__all__
    for name in dragoman.__all__:
        assert hasattr(dragoman, name)


@pytest.mark.parametrize("module", [types, errors])
def test_every_type_and_exception_is_exported(module: object) -> None:
    defined = {
        name
        for name, value in vars(module).items()
        if inspect.isclass(value) and value.__module__ == module.__name__  # type: ignore[attr-defined]
    }
    assert defined - {"FailedCall"} <= set(dragoman.__all__)


def test_every_method_of_the_api_has_a_client_method() -> None:
    methods = {
        method.full_name
        for service in translation_pb2.DESCRIPTOR.services_by_name.values()
        for method in service.methods
    }
    assert methods == set(CLIENT_METHODS)
    for name in CLIENT_METHODS.values():
        assert callable(getattr(Client, name))


def test_both_clients_have_the_same_methods_in_the_same_order() -> None:
    assert public(Client) == public(AsyncClient)
    for name in ["__init__", *public(Client)]:
        sync_method, async_method = getattr(Client, name), getattr(AsyncClient, name)
        assert inspect.signature(sync_method) == inspect.signature(async_method)
        assert inspect.iscoroutinefunction(async_method) or name == "__init__"


def test_the_sdk_imports_without_extras() -> None:
    code = (
        "import sys, dragoman, dragoman.cli\n"
        "print([m for m in ('numpy', 'onnxruntime', 'torch', 'typer', 'rich')"
        " if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=30)
    assert done.stdout.strip() == "[]"
