"""The admin's pages of approvals, a module each."""

from approvals.admin import accounts, breaking_glass, freezes, hours, log, people, policies, requests, tokens

__all__ = ["accounts", "breaking_glass", "freezes", "hours", "log", "people", "policies", "requests", "tokens"]
