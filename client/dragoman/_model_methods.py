"""The methods of both clients that are about the models of a server.

`AsyncModelMethods` has the same methods as `ModelMethods`, in the same order.
"""

from dragoman import _models
from dragoman._connection import AsyncConnection, Connection
from dragoman.models import LanguagePairs, ModelInfo


class ModelMethods:
    """The methods of `Client`."""

    _connection: Connection

    def models(self, *, timeout: float | None = None) -> list[ModelInfo]:
        """Lists the models of the server: every version of every model, also those that it could not load.

        Args:
            timeout: seconds to wait for the answer; default: the client's.

        Returns:
            A ModelInfo for each, by name, then in the order in which they came.

        Raises:
            UnimplementedError: the server is older than this client.
            DragomanError: the call failed otherwise.
        """
        return self._connection.unary(self._connection.models.ListModels, _models.list_models(), timeout)

    def model(self, name: str, *, timeout: float | None = None) -> ModelInfo:
        """Shows one model.

        Args:
            name: "name@version"; or "name", for the version that calls with this name get.
            timeout: seconds to wait for the answer; default: the client's.

        Raises:
            NotFoundError: there is no such model.
            DragomanError: the call failed otherwise.
        """
        return self._connection.unary(self._connection.models.GetModel, _models.get_model(name), timeout)

    def languages(self, *, timeout: float | None = None) -> LanguagePairs:
        """Says which languages the server translates into which.

        They are those of all its models that take calls, whatever their name: a pair that is of one model alone may
        need its name. Pairs that the server reaches through a third language are not among them.

        Args:
            timeout: seconds to wait for the answer; default: the client's.

        Returns:
            The codes of the targets by the code of the source, both sorted: `languages["en"]`. The targets of a source
            are made when they are asked for; `dict(languages)` has them all.

        Raises:
            DragomanError: the call failed.
        """
        return _models.languages(self.models(timeout=timeout))

    def load_model(self, path: str, *, timeout: float | None = None) -> ModelInfo:
        """Has the server load a bundle of its repository, and serve it.

        The client must have been given the server's admin address, which is 127.0.0.1:50052 by default. A model that
        was loaded from the same folder before is replaced without a lost call. Where loading fails, nothing changes.
        The call is not sent again where the server goes away during it.

        Args:
            path: the folder of the bundle, below the server's repository: "en-fr", or "en-fr/2" for a version of its
                own.
            timeout: seconds until the model takes calls. Default: 300, or the client's if that is longer, for a large
                model takes minutes to load.

        Returns:
            The model, as it is served now.

        Raises:
            NotFoundError: there is no bundle at the path.
            AlreadyExistsError: another folder is served under this name and version.
            FailedPreconditionError: the server has no repository, or the bundle is damaged.
            UnimplementedError: the address is not the admin address of a server.
            DragomanError: the call failed otherwise.
        """
        return self._connection.unary(self._connection.model_admin.LoadModel, _models.load_model(path), timeout)

    def unload_model(self, model: str, *, drain: bool = False, timeout: float | None = None) -> None:
        """Has the server end serving one version of a model, and free its memory. Otherwise as `load_model`.

        Args:
            model: "name@version"; or "name", where it has one version.
            drain: whether to unload a model that calls are using: it takes no new ones, and is freed when the last has
                ended. Without it, such a model is left as it is.
            timeout: seconds until the model is freed; where they are up first, one that drains goes on ending.
                Default: as for `load_model`.

        Raises:
            NotFoundError: there is no such model.
            FailedPreconditionError: calls are using it.
            DragomanError: the call failed otherwise.
        """
        call = _models.unload_model(model, drain=drain)
        return self._connection.unary(self._connection.model_admin.UnloadModel, call, timeout)

    def set_default_model(
        self, model: str, *, source: str | None = None, target: str | None = None, timeout: float | None = None
    ) -> None:
        """Chooses the model of calls that name none. Otherwise as `load_model`.

        Args:
            model: "name"; or "name@version", which is then also the version of calls that give this name alone.
            source: with `target`, the pair of languages of these calls; without both, they are all pairs that the
                model translates.
            target: see `source`.
            timeout: as for `load_model`.

        Raises:
            NotFoundError: there is no such model, or it does not translate this pair.
            DragomanError: the call failed otherwise.
        """
        call = _models.set_default_model(model, source, target)
        return self._connection.unary(self._connection.model_admin.SetDefaultModel, call, timeout)


class AsyncModelMethods:
    """The methods of `AsyncClient`."""

    _connection: AsyncConnection

    async def models(self, *, timeout: float | None = None) -> list[ModelInfo]:
        """Lists the models of the server: see `dragoman.Client.models`.

        Raises:
            DragomanError: the call failed.
        """
        connection = self._connection
        return await connection.unary(lambda: connection.models().ListModels, _models.list_models(), timeout)

    async def model(self, name: str, *, timeout: float | None = None) -> ModelInfo:
        """Shows one model: see `dragoman.Client.model`.

        Raises:
            DragomanError: the call failed.
        """
        connection = self._connection
        return await connection.unary(lambda: connection.models().GetModel, _models.get_model(name), timeout)

    async def languages(self, *, timeout: float | None = None) -> LanguagePairs:
        """Says which languages the server translates into which: see `dragoman.Client.languages`.

        Raises:
            DragomanError: the call failed.
        """
        return _models.languages(await self.models(timeout=timeout))

    async def load_model(self, path: str, *, timeout: float | None = None) -> ModelInfo:
        """Has the server load a bundle of its repository, and serve it: see `dragoman.Client.load_model`.

        Raises:
            DragomanError: the call failed.
        """
        connection = self._connection
        return await connection.unary(lambda: connection.model_admin().LoadModel, _models.load_model(path), timeout)

    async def unload_model(self, model: str, *, drain: bool = False, timeout: float | None = None) -> None:
        """Has the server end serving one version of a model: see `dragoman.Client.unload_model`.

        Raises:
            DragomanError: the call failed.
        """
        connection = self._connection
        call = _models.unload_model(model, drain=drain)
        return await connection.unary(lambda: connection.model_admin().UnloadModel, call, timeout)

    async def set_default_model(
        self, model: str, *, source: str | None = None, target: str | None = None, timeout: float | None = None
    ) -> None:
        """Chooses the model of calls that name none: see `dragoman.Client.set_default_model`.

        Raises:
            DragomanError: the call failed.
        """
        connection = self._connection
        call = _models.set_default_model(model, source, target)
        return await connection.unary(lambda: connection.model_admin().SetDefaultModel, call, timeout)
