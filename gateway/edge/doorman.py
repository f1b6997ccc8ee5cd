"""`Doorman`: who may call, at the entry that a request came in by.

Asked are the ways that the entry's rules name (`auth`); where they name none, those of the function; where that names
none either, anybody if it is public, else a token or an API key of this server. Each way is a `Method` of
`gateway.edge.auth`; the first that admits is enough.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from aiohttp import hdrs, web

from faas.attempts import Attempts
from faas.auth import ANONYMOUS, Authenticator, Permission, Principal
from faas.errors import FaasError, Forbidden, Throttled, Unauthenticated
from faas.remote import client_address
from faas.rules.auth import LOGIN, AuthRule
from faas.web import LOGIN_HINT, PRINCIPAL, credentials, require
from gateway.edge.auth.method import Method, WrongCredentials
from gateway.edge.auth.tokens import TokenMethod
from gateway.edge.caller import NOTHING, STRANGER, Caller
from gateway.edge.entry import Entry
from gateway.headers import WITHHELD
from gateway.router import Route

__all__ = ["NOTHING", "STRANGER", "Caller", "Doorman", "asked_at"]

GUESSES = "credentials"  # the name under which wrong keys and tokens count (`faas.attempts`)
AUTHORIZATION = frozenset({"authorization"})


def asked_at(entry: Entry) -> AuthRule | None:
    """The ways in at `entry`; None: anybody may call."""
    rule = entry.rules.auth or entry.route.revision.spec.rules.auth
    if rule is None:
        return _asked_by_a_canary(entry.route) if entry.public else LOGIN
    return None if rule.public else rule


def _asked_by_a_canary(route: Route) -> AuthRule | None:
    """Where `route` is open, and leads to a second revision too: what that asks. Which of the two it will be is not
    known yet."""
    if route.split is None or not route.revision.spec.public:
        return None
    other = route.split.other.revision.spec
    return other.rules.auth or (None if other.public else LOGIN)


@dataclass(slots=True)
class Doorman:
    """`everybody_logs_in`: the API listener, where nothing is open and only credentials of this server count.

    `methods`: the ways in besides tokens of the server, the cheapest first.
    """

    authenticator: Authenticator
    everybody_logs_in: bool = False
    methods: Sequence[Method] = ()
    attempts: Attempts = field(default_factory=Attempts)

    def __post_init__(self) -> None:
        self.methods = (TokenMethod(self.authenticator, self.attempts), *self.methods)

    async def admit(self, request: web.Request, entry: Entry) -> Caller:
        """The caller; a STRANGER where anybody may call. Raises Unauthenticated, Forbidden, Throttled; what else is
        raised says that nobody can tell: what is not known does not come in."""
        if self.everybody_logs_in:
            return await self._of_the_server(request, entry)
        asked = asked_at(entry)
        if asked is None:
            return STRANGER
        if asked.key is not None:
            request[WITHHELD] = frozenset({asked.key.header.lower()})  # an authorizer is not shown it either
        caller = await self._by_one_of(request, entry, asked)
        request[WITHHELD] = withheld(asked, caller)
        if asked.key is None or not asked.key.query:
            return caller
        return replace(caller, withheld=asked.key.query)

    async def _of_the_server(self, request: web.Request, entry: Entry) -> Caller:
        principal = request.get(PRINCIPAL)  # set by the API listener's middleware
        if principal is None:
            principal = await self._log_in(request)
        key = entry.route.revision.key
        require(principal, Permission.INVOKE, key.namespace, key.function)
        request[WITHHELD] = AUTHORIZATION
        return Caller(principal)

    async def _log_in(self, request: web.Request) -> Principal:
        given = credentials(request)
        if given is None:
            return ANONYMOUS
        return await self.attempts.admit(self.authenticator, *given, client_address(request), hint=LOGIN_HINT)

    async def _by_one_of(self, request: web.Request, entry: Entry, asked: AuthRule) -> Caller:
        refused: dict[Method, FaasError] = {}
        if len(request.headers.getall(hdrs.AUTHORIZATION, ())) > 1:
            raise self._unauthenticated(asked, refused, shown=True)  # which one would count?
        for method in self.methods:
            try:
                caller = await method.admit(request, entry, asked)
            except FaasError as error:
                if isinstance(method, TokenMethod) and isinstance(error, Forbidden):
                    raise  # a token of the server is shown to nobody else
                refused[method] = error  # another way may be open
                continue
            if caller is not None:
                return caller
        errors = sorted(refused.values(), key=_first)
        if errors and not isinstance(errors[0], Unauthenticated):
            raise errors[0]
        if any(isinstance(error, WrongCredentials) for error in errors):
            self.attempts.wrong(client_address(request), GUESSES)
        raise self._unauthenticated(asked, refused, shown=bool(refused))

    def _unauthenticated(self, asked: AuthRule, refused: dict[Method, FaasError], *, shown: bool) -> Unauthenticated:
        """One answer for whatever was wrong, with what each way asks for."""
        error = Unauthenticated("these credentials open nothing" if shown else "credentials are needed here")
        if asked is LOGIN:
            error.hint = LOGIN_HINT if shown else "set FAAS_TOKEN or run faas login"
        challenges = [method.challenge(asked, wrong=method in refused) for method in self.methods]
        error.challenge = ", ".join(dict.fromkeys(filter(None, challenges)))
        return error


def _first(error: FaasError) -> int:
    """Of several refusals the one that says most is told: not allowed, too many, nobody can tell, unknown."""
    kinds = (Forbidden, Throttled, FaasError)
    return len(kinds) if isinstance(error, Unauthenticated) else [isinstance(error, kind) for kind in kinds].index(True)


def withheld(asked: AuthRule, caller: Caller) -> frozenset[str]:
    """The header fields, in lower case, that are for us alone: keys and tokens of this server.

    What an issuer or an authorizer has vouched for goes on to the function, as on AWS: it is who the token is for.
    """
    names = set(AUTHORIZATION) if asked.token and not caller.context else set()
    if asked.key is not None:
        names.add(asked.key.header.lower())
    return frozenset(names)
