"""The admin's pages of approvals, a module each."""

from approvals.admin import accounts, hours, log, people, policies, requests, tokens

__all__ = ["accounts", "hours", "log", "people", "policies", "requests", "tokens"]
