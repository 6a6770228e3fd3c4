"""Who is behind a node's stream, as its service account token proves; knows no stream, and believes no node.

The API server judges the token; the node's name comes from its answer alone.
"""

from __future__ import annotations

import asyncio
import base64
import json
import time
from dataclasses import dataclass
from typing import Any, Protocol

from csi_driver.cluster.orchestrator import Review
from csi_driver.errors import NodeRefused, TokenRefused

_CONCURRENT_REVIEWS = 16
_TOKEN_BYTES = 16384
# For a token that does not tell when it ends.
_DEFAULT_SECONDS = 3600.0
_ACCOUNT_PREFIX = "system:serviceaccount"


class TokenReviewer(Protocol):
    """The part of the orchestrator's API that is needed here."""

    async def review_token(self, token: str, audience: str) -> Review: ...

    async def pod(self, namespace: str, name: str) -> dict[str, Any] | None: ...


@dataclass(frozen=True, slots=True)
class NodeIdentity:
    """The node that a token speaks for, until `expires_at` (time.time())."""

    node_id: str
    expires_at: float


class Verifier:
    """Accepts tokens of one service account, made for one audience, bound to a pod on a node."""

    def __init__(self, reviewer: TokenReviewer, *, audience: str, namespace: str, account: str) -> None:
        self._reviewer = reviewer
        self._audience = audience
        self._namespace = namespace
        self._account = account
        # Whoever reaches the port can make us ask; only so much at a time.
        self._reviews = asyncio.Semaphore(_CONCURRENT_REVIEWS)

    async def verify(self, token: str) -> NodeIdentity:
        """The node whose pod the token belongs to.

        Raises: TokenRefused; NodeRefused; OrchestratorUnavailable.
        """
        if not token or len(token) > _TOKEN_BYTES or not token.isascii():
            raise TokenRefused("no service account token came with the call")
        async with self._reviews:
            review = await self._reviewer.review_token(token, self._audience)
            if not review.authenticated:
                raise TokenRefused(f"the token is not valid: {review.error or 'no reason given'}")
            if self._audience not in review.audiences:
                raise TokenRefused(f"the token was not made for the audience {self._audience}")
            if review.user_name != f"{_ACCOUNT_PREFIX}:{self._namespace}:{self._account}":
                raise NodeRefused(f"{review.user_name} is not the service account of the nodes")
            node_name = review.node_name or await self._node_of_pod(review)
        if not node_name:
            raise NodeRefused("the token is not bound to a pod on a node")
        return NodeIdentity(node_name, _expiry(token))

    async def _node_of_pod(self, review: Review) -> str:
        """For API servers before 1.30, whose tokens name only the pod."""
        if not review.pod_name or not review.pod_uid:
            return ""
        pod = await self._reviewer.pod(self._namespace, review.pod_name)
        if pod is None or pod.get("metadata", {}).get("uid") != review.pod_uid:
            return ""
        return str(pod.get("spec", {}).get("nodeName", ""))


def _expiry(token: str) -> float:
    """When the token ends; it is asked only of a token that the API server has accepted."""
    longest = time.time() + _DEFAULT_SECONDS
    try:
        payload = token.split(".")[1]
        claims = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
        return float(claims["exp"])
    except (IndexError, ValueError, KeyError, TypeError):
        return longest
