"""REST: as whom one asks, so that a page offers no more than may be done."""

from __future__ import annotations

from collections.abc import Sequence

from bottle import HTTPResponse, request

from exesys.access import who
from exesys.http import Endpoint, respond
from exesys.tokens import Role


class WhoAmI:
    """The endpoint /whoami."""

    def endpoints(self) -> Sequence[Endpoint]:
        """Return what can be asked, and what is said of it."""
        return (Endpoint("GET", "/whoami", self.show, {}, Role.read, {200: "Caller"}),)

    def show(self) -> HTTPResponse:
        """Tell the role and the name of the token that was sent; without tokens everybody may do everything."""
        role, name = who(request.environ)
        return respond(200, {"role": role.name, "name": name})
