"""The admin's pages of approvals, a module each."""

from approvals.admin import accounts, hours, log, people, policies, requests, tokens

__all__ = ["accounts", "hours", "log", "people", "policies", "requests", "tokens"]
"""The admin's pages of approvals, a module each: requests to decide, what holds rollouts, the audit log, tokens."""

from approvals.admin import breaking_glass, freezes, log, requests, tokens

__all__ = ["breaking_glass", "freezes", "log", "requests", "tokens"]
