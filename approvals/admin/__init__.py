"""The admin's pages of approvals, a module each: requests to decide, the audit log to read, tokens to make,
working hours and letters."""

from approvals.admin import hours, log, requests, tokens

__all__ = ["hours", "log", "requests", "tokens"]
from approvals.admin import people, policies

__all__ = ["log", "people", "policies", "requests", "tokens"]
