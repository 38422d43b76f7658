"""A REST catalog as pyiceberg 0.12 speaks to it, and three things that it leaves open.

It waits for an answer without end; it takes any 404 for a table that is gone; and it writes files with whatever keys
the server hands out. Here an answer that does not come in time is an error like any other; a table is gone only where
the server lists its namespace without it; and files are reached by the connection's keys alone, the ones that
ClickHouse's engine and the executors have as well.
"""

from __future__ import annotations

from typing import Any

from pyiceberg.catalog.rest import Endpoint, RestCatalog
from pyiceberg.exceptions import BadRequestError, NoSuchNamespaceError, NoSuchTableError, RESTError
from pyiceberg.io import FileIO, load_file_io
from pyiceberg.table import Table
from pyiceberg.table.metadata import TableMetadata
from pyiceberg.typedef import EMPTY_DICT, Identifier, Properties
from requests import PreparedRequest, Response, Session
from requests.adapters import HTTPAdapter
from requests.exceptions import RequestException

# To connect, and between two bytes of an answer.
TIMEOUTS_S = (10.0, 60.0)


class NoAnswer(RESTError):
    """The server was not reached, or its answer did not come whole: nobody knows what it did."""


class _Bounded(HTTPAdapter):
    """Reads whole answers, within limits of time, and sends nothing twice."""

    def send(self, request: PreparedRequest, *arguments: Any, **options: Any) -> Response:
        try:
            response = super().send(request, *arguments, **{**options, "timeout": TIMEOUTS_S})
            _ = response.content  # here, so that an answer that breaks off is one that did not come
        except OSError as error:  # those of requests are OSErrors too, and may quote what was sent
            said = type(error).__name__ if isinstance(error, RequestException) else str(error)
            raise NoAnswer(f"no answer to {request.method} {request.path_url}: {said}") from None
        return response


class Catalog(RestCatalog):
    """A REST catalog that commits may rely on."""

    def __init__(self, name: str, **properties: Any) -> None:
        self._storage = {key: value for key, value in properties.items() if key.startswith("s3.")}
        super().__init__(name, **properties)

    def _config_headers(self, session: Session) -> None:
        """Prepare a new session: it is the first that pyiceberg does with one, before it asks for a token by it."""
        super()._config_headers(session)
        session.headers.pop("X-Iceberg-Access-Delegation", None)
        for scheme in ("http://", "https://"):
            session.mount(scheme, _Bounded())

    def _load_file_io(self, properties: Properties = EMPTY_DICT, location: str | None = None) -> FileIO:
        return load_file_io(self._storage, location)

    def _check_endpoint(self, endpoint: Endpoint) -> None:
        try:
            super()._check_endpoint(endpoint)
        except NotImplementedError as error:
            raise BadRequestError(str(error)) from error

    @staticmethod
    def _delete_old_metadata(io: FileIO, base: TableMetadata, metadata: TableMetadata) -> None:
        """Leave old metadata files to the server that wrote them; what it leaves are orphans for maintenance."""

    def load_table(self, identifier: str | Identifier) -> Table:
        """Load a table.

        Raises:
            NoSuchTableError: the server lists the namespace without it, or no such namespace.
            FileNotFoundError: the server lists it and does not find it.
            RESTError: the server can't be asked.
        """
        try:
            return super().load_table(identifier)
        except NoSuchTableError:
            if not self._is_listed(identifier):
                raise
        try:  # it may have been made in between
            return super().load_table(identifier)
        except NoSuchTableError as error:
            raise FileNotFoundError(str(error)) from error

    def _is_listed(self, identifier: str | Identifier) -> bool:
        table = self.identifier_to_tuple(identifier)
        try:
            return table in self.list_tables(table[:-1])
        except NoSuchNamespaceError:
            pass
        try:
            namespaces = self.list_namespaces(table[:-2])
        except NoSuchNamespaceError as error:
            raise RESTError(f"it answers as if there were nothing: {error}") from error
        if table[:-1] in namespaces:
            raise RESTError(f"it lists namespace {'.'.join(table[:-1])}, and does not find it")
        return False
