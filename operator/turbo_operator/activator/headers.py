"""Which headers of a request or an answer go further. Pure."""

from __future__ import annotations

from multidict import CIMultiDict, CIMultiDictProxy

# Of one connection alone: https://www.rfc-editor.org/rfc/rfc9110#section-7.6.1
HOP_BY_HOP = frozenset({"connection", "keep-alive", "proxy-connection", "te", "trailer", "transfer-encoding"})
NOT_PASSED_ON = HOP_BY_HOP | {"host", "content-length", "expect", "upgrade"}
ADDED = ("Accept", "Accept-Encoding", "Content-Type", "User-Agent")  # by aiohttp, unless it is told not to


def passed_on(headers: CIMultiDictProxy[str], left_out: frozenset[str]) -> CIMultiDict[str]:
    """Return the headers that go further: not those, nor what `Connection` names."""
    named = {name.strip().lower() for value in headers.getall("Connection", ()) for name in value.split(",")}
    left_out = left_out | named
    return CIMultiDict([(name, value) for name, value in headers.items() if name.lower() not in left_out])
