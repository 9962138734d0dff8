"""Who may see the page: this machine, or whoever has the token; and what the page may load."""

from __future__ import annotations

import hmac
import ipaddress
import secrets
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from urllib.parse import urlsplit

from aiohttp import web

COOKIE = "phasewatch"

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'"
)
"""The page loads nothing from anywhere else. plotly.js writes styles into its own elements."""

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


@dataclass(frozen=True, slots=True)
class Access:
    """Who may see the page.

    Attributes:
        token: What a visitor must show; empty on a loopback address, which needs none.
    """

    token: str

    @classmethod
    def of(cls, host: str, token: str = "") -> Access:
        """A token for any address that other machines reach, made if none is given."""
        return cls(token or ("" if is_loopback(host) else secrets.token_urlsafe(24)))

    def allows(self, request: web.Request) -> bool:
        """Whether the visitor may see the page."""
        if not self.token:
            # A foreign page may have its own name lead here: only names of this machine will do.
            return is_loopback(urlsplit(f"//{request.host}").hostname or "")
        scheme, _, given = request.headers.get("Authorization", "").partition(" ")
        shown = (
            given if scheme.lower() == "bearer" else "",
            request.cookies.get(COOKIE, ""),
            request.query.get("token", ""),
        )
        wanted = self.token.encode()
        return any(hmac.compare_digest(one.encode(), wanted) for one in shown)

    @web.middleware
    async def guard(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Turn away who may not see it; say to the browser what the page may do."""
        if not self.allows(request):
            text = "phasewatch: open the address that was printed when it started, with its token\n"
            raise web.HTTPUnauthorized(text=text)
        if self.token and "token" in request.query:
            # From here on the cookie has it: no address that is passed on holds the token.
            target = request.rel_url.without_query_params("token")
            moved = web.HTTPSeeOther(location=str(target))
            moved.set_cookie(COOKIE, self.token, httponly=True, samesite="Strict")
            raise moved
        response = await handler(request)
        response.headers.setdefault("Content-Security-Policy", POLICY)
        response.headers["X-Content-Type-Options"] = "nosniff"
        response.headers["Referrer-Policy"] = "no-referrer"
        response.headers.setdefault("Cache-Control", "no-store")
        return response
