"""Rows of approvals: the audit log, requests with their signatures, which group is which role, and API tokens."""

from approvals.models.audit import AppendOnly, AuditEntry, AuditHead
from approvals.models.request import ApprovalRequest, Signature
from approvals.models.role import RoleGroup
from approvals.models.token import ApiToken, Scope, StoredAnswer

__all__ = [
    "ApiToken",
    "AppendOnly",
    "ApprovalRequest",
    "AuditEntry",
    "AuditHead",
    "RoleGroup",
    "Scope",
    "Signature",
    "StoredAnswer",
]
