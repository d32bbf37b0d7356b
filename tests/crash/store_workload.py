"""The mixed workload of `mdstore crash`, for tests that put it to uses of their own."""

from mdstore.tools.crash.transactions import COLLECTIONS, Mixed, content_of, outcome

__all__ = ["COLLECTIONS", "Mixed", "content_of", "outcome"]
