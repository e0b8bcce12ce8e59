"""Rows of approvals: the audit log, requests with their signatures, and which group is which role."""

from approvals.models.audit import AppendOnly, AuditEntry, AuditHead
from approvals.models.request import ApprovalRequest, Signature
from approvals.models.role import RoleGroup

__all__ = ["AppendOnly", "ApprovalRequest", "AuditEntry", "AuditHead", "RoleGroup", "Signature"]
