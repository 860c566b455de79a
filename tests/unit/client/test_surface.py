import inspect
import subprocess
import sys
from typing import get_args

import pytest

import dragoman
from dragoman import AsyncClient, Client, errors, models, types
from dragoman.v1 import attention_pb2, models_pb2, translation_pb2

# Which method of the clients calls a method of the API.
CLIENT_METHODS = {
    "dragoman.v1.TranslationService.Translate": "translate",
    "dragoman.v1.TranslationService.StreamTranslation": "stream",
    "dragoman.v1.TranslationService.ExchangeTranslations": "exchange",
    "dragoman.v1.TranslationService.Score": "score",
    "dragoman.v1.AttentionService.GetAttention": "attention",
    "dragoman.v1.AttentionService.Align": "align",
    "dragoman.v1.ModelService.ListModels": "models",
    "dragoman.v1.ModelService.GetModel": "model",
    "dragoman.v1.ModelAdminService.LoadModel": "load_model",
    "dragoman.v1.ModelAdminService.UnloadModel": "unload_model",
    "dragoman.v1.ModelAdminService.SetDefaultModel": "set_default_model",
}
# What they return in the async client is to be iterated over, not awaited.
ITERATORS = {"stream", "exchange"}


def public(client: type) -> list[str]:
    return [name for owner in client.__mro__ for name in vars(owner) if not name.startswith("_")]


def test_all_names_exist_and_are_sorted() -> None:
    assert sorted(dragoman.__all__) == dragoman.__all__
    for name in dragoman.__all__:
        assert hasattr(dragoman, name)


@pytest.mark.parametrize("module", [types, models, errors])
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
        for descriptor in (translation_pb2.DESCRIPTOR, attention_pb2.DESCRIPTOR, models_pb2.DESCRIPTOR)
        for service in descriptor.services_by_name.values()
        for method in service.methods
    }
    assert methods == set(CLIENT_METHODS)
    for name in CLIENT_METHODS.values():
        assert callable(getattr(Client, name))


def test_both_clients_have_the_same_methods_in_the_same_order() -> None:
    assert public(Client) == public(AsyncClient)
    for name in ["__init__", *public(Client)]:
        sync_method, async_method = getattr(Client, name), getattr(AsyncClient, name)
        sync_parameters, async_parameters = (inspect.signature(m).parameters for m in (sync_method, async_method))
        assert list(sync_parameters) == list(async_parameters)
        if name not in ITERATORS:
            assert inspect.signature(sync_method) == inspect.signature(async_method)
            assert inspect.iscoroutinefunction(async_method) or name == "__init__"


def test_every_option_of_the_api_is_a_keyword() -> None:
    options = translation_pb2.DecodingOptions.DESCRIPTOR.fields_by_name
    assert list(types.DecodingOptions.__annotations__) == list(options)


@pytest.mark.parametrize(
    ("alias", "prefix"), [("EarlyStopping", "EARLY_STOPPING"), ("Priority", "PRIORITY"), ("Vocabulary", "VOCABULARY")]
)
def test_every_value_of_an_enum_has_a_name(alias: str, prefix: str) -> None:
    names = get_args(getattr(types, alias))
    values = getattr(translation_pb2, alias).keys()
    assert [f"{prefix}_{name.upper()}" for name in names] == values[1:]


def test_the_sdk_imports_without_extras() -> None:
    code = (
        "import sys, dragoman, dragoman.cli\n"
        "print([m for m in ('numpy', 'matplotlib', 'onnxruntime', 'torch', 'typer', 'rich')"
        " if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=30)
    assert done.stdout.strip() == "[]"
