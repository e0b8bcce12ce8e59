"""The admin's pages of approvals, a module each: requests to decide, the audit log to read, tokens to make."""

from approvals.admin import log, requests, tokens

__all__ = ["log", "requests", "tokens"]
