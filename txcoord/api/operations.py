"""What all adapters offer: one call of the service each, and its reply."""

from __future__ import annotations

from txcoord.api import replies
from txcoord.api.replies import Reply
from txcoord.errors import TransactionNotFoundError
from txcoord.model import GlobalTransaction
from txcoord.request import BranchRegistration, TransRequest
from txcoord.service import Service


class Operations:
    """The requests of initiators. They raise the service's errors, for `replies.of_error`."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def prepare(self, request: TransRequest) -> Reply:
        await self._service.prepare(request)
        return replies.SUCCESS

    async def prepare_workflow(self, request: TransRequest) -> GlobalTransaction:
        return await self._service.prepare_workflow(request)

    async def submit(self, request: TransRequest) -> Reply:
        return replies.submitted(request.gid, await self._service.submit(request))

    async def abort(self, request: TransRequest) -> Reply:
        return replies.aborted(request.gid, await self._service.abort(request))

    async def register_branch(self, branch: BranchRegistration) -> Reply:
        try:
            await self._service.register_branch(branch)
        except TransactionNotFoundError:
            return replies.no_prepared(branch.gid)
        return replies.SUCCESS

    async def subscribe(self, topic: str, url: str, remark: str) -> Reply:
        await self._service.topics.subscribe(topic, url, remark)
        return replies.SUCCESS

    async def unsubscribe(self, topic: str, url: str) -> Reply:
        await self._service.topics.unsubscribe(topic, url)
        return replies.SUCCESS

    async def delete_topic(self, topic: str) -> Reply:
        await self._service.topics.delete(topic)
        return replies.SUCCESS
