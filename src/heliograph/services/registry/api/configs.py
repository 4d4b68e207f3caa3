"""Configs and their schemas: one by one, and by folder."""

from __future__ import annotations

from functools import partial
from typing import Annotated, Literal

from fastapi import APIRouter, Query, Request, Response

from heliograph.access.permissions import Action
from heliograph.core import names
from heliograph.core.errors import InvalidName
from heliograph.core.patch import JSON_PATCH, MERGE_PATCH
from heliograph.runtime.http import Json, RawJson
from heliograph.services.registry.answers import EntryList, VersionAnswer
from heliograph.services.registry.api import inputs
from heliograph.services.registry.api.context import Context
from heliograph.services.registry.api.openapi import ANY_JSON, WRITE_HEADERS, gives, takes
from heliograph.services.registry.api.writing import answer, etag_of, order
from heliograph.services.registry.changes import Change, set_document, set_schema
from heliograph.services.registry.heads import Place
from heliograph.services.registry.patching import read_patch

_PATCHES = takes(ANY_JSON, WRITE_HEADERS, (MERGE_PATCH, JSON_PATCH))
Part = Literal["document", "schema"]


class Configs:
    def __init__(self, context: Context) -> None:
        self._context = context

    def router(self) -> APIRouter:
        router = APIRouter(prefix="/v1/namespaces/{namespace}/environments/{environment}", tags=["configs"])
        router.get("/configs", responses=gives(200, EntryList))(self.list_folder)
        written = gives(201, VersionAnswer) | gives(200, VersionAnswer, "nothing to change: the current version")
        for path, part in (("/configs/{name:path}", "document"), ("/schemas/{name:path}", "schema")):
            add = partial(router.add_api_route, path)
            add(getattr(self, f"get_{part}"), methods=["GET"], responses=gives(200, ANY_JSON) | gives(304, None))
            add(
                getattr(self, f"put_{part}"),
                methods=["PUT"],
                status_code=201,
                responses=written,
                openapi_extra=takes(ANY_JSON, WRITE_HEADERS),
            )
            add(
                getattr(self, f"delete_{part}"),
                methods=["DELETE"],
                status_code=201,
                responses=written,
                openapi_extra=takes(None, WRITE_HEADERS),
            )
        router.patch("/configs/{name:path}", status_code=201, responses=written, openapi_extra=_PATCHES)(self.patch_document)
        return router

    async def list_folder(
        self,
        request: Request,
        namespace: str,
        environment: str,
        folder: Annotated[str, Query(max_length=200, description="ends in `/`; empty: the top")] = "",
        cursor: inputs.Cursor = "",
        limit: inputs.Limit = 100,
        at: inputs.At = "",
    ) -> Response:
        """A folder's configs and folders, by name. Folders below it are one entry each."""
        _, place = await self._context.permitted(request, Action.READ, namespace, environment)
        if names.selector(folder) and not folder.endswith("/"):
            raise InvalidName("a folder's name ends in /")
        number, version, root = await self._root(place, at)
        entries = await self._context.reading.folder(place, root, folder, inputs.keys_of(cursor)[0], limit)
        after = inputs.cursor_of(entries[-1].name) if len(entries) == limit else None
        return Json(EntryList(entries, after, number, version))

    async def get_document(self, request: Request, namespace: str, environment: str, name: str, at: inputs.At = "") -> Response:
        """The document as its exact canonical text. ETag: the id of the head (what If-Match takes), or of the version asked for."""
        return await self._get(request, namespace, environment, name, at, "document")

    async def get_schema(self, request: Request, namespace: str, environment: str, name: str, at: inputs.At = "") -> Response:
        """The config's JSON Schema. 404 when it has none."""
        return await self._get(request, namespace, environment, name, at, "schema")

    async def put_document(self, request: Request, namespace: str, environment: str, name: str) -> Response:
        """Publishes a document: a new version with one change. It must satisfy the config's schema, if it has one.

        A document that is there already commits nothing: 200 with the current version and `unchanged: true`.
        """
        return await self._write(request, namespace, environment, name, "document")

    async def patch_document(self, request: Request, namespace: str, environment: str, name: str) -> Response:
        """Publishes a patched document. Takes a JSON Merge Patch (RFC 7396) or a JSON Patch (RFC 6902, at most 1,000 operations) by its media type.

        Without If-Match it is applied to the head, and again when the head moves meanwhile. An operation that does not fit the document, a `test`
        that fails among them, is 409 with its index and pointer.
        """
        principal, place = await self._context.permitted(request, Action.WRITE, namespace, environment)
        config = names.config(name)
        body = await request.body()
        patch = await inputs.read(body, partial(read_patch, request.headers.get("content-type", "")))
        asked = order(request, principal, place, body, action="config.patch")
        return await answer(self._context, request, place, await self._context.patching(asked, config, patch))

    async def put_schema(self, request: Request, namespace: str, environment: str, name: str) -> Response:
        """Gives an existing config a JSON Schema (draft-07), from this version on. Refused when the current document breaks it."""
        return await self._write(request, namespace, environment, name, "schema")

    async def delete_document(self, request: Request, namespace: str, environment: str, name: str) -> Response:
        """Deletes a config, with its schema: a new version without it. Older versions keep it."""
        return await self._remove(request, namespace, environment, Change(names.config(name), delete=True), "config.delete")

    async def delete_schema(self, request: Request, namespace: str, environment: str, name: str) -> Response:
        """Takes a config's schema away. Nothing happens when it has none."""
        return await self._remove(request, namespace, environment, Change(names.config(name), schema=False), "schema.delete")

    # --- what they share ------------------------------------------------------------------------------------------------------------

    async def _get(self, request: Request, namespace: str, environment: str, name: str, at: str, part: Part) -> Response:
        _, place = await self._context.permitted(request, Action.READ, namespace, environment)
        config = names.config(name)
        number, version, root = await self._root(place, at)
        found = await self._context.reading.config(place, root, config, part)
        headers = {"ETag": f'"{version}"', "Heliograph-Version": str(number), "Cache-Control": "private, no-cache"}
        if request.headers.get("if-none-match") == headers["ETag"]:
            return Response(status_code=304, headers=headers)
        return RawJson(found.text, headers=headers)

    async def _root(self, place: Place, at: str) -> tuple[int, str, bytes]:
        """(number, id, root) of the head or of the version asked for."""
        if not at:
            head = await self._context.store.head(place)
            return head.number, etag_of(head.version)[1:-1], head.root
        row = await self._context.version(place, at)
        return row.number, etag_of(row.id)[1:-1], row.root

    async def _write(self, request: Request, namespace: str, environment: str, name: str, part: Part) -> Response:
        """Publishes one document, or one schema."""
        principal, place = await self._context.permitted(request, Action.WRITE, namespace, environment)
        config = names.config(name)
        body = await request.body()
        change = await inputs.read(body, partial(_READERS[part], config))
        asked = order(request, principal, place, body, action=f"{'config' if part == 'document' else 'schema'}.put")
        return await answer(self._context, request, place, await self._context.publish(asked, (change,)))

    async def _remove(self, request: Request, namespace: str, environment: str, change: Change, action: str) -> Response:
        principal, place = await self._context.permitted(request, Action.WRITE, namespace, environment)
        asked = order(request, principal, place, b"", action=action)
        return await answer(self._context, request, place, await self._context.publish(asked, (change,)))


_READERS = {"document": set_document, "schema": set_schema}
