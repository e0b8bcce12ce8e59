"""Rows of approvals: the audit log, requests with their signatures, people and their roles, letters
to them, and API tokens."""

from approvals.models.audit import AppendOnly, AuditEntry, AuditHead, AuditTombstone
from approvals.models.authenticator import Authenticator, RecoveryCode
from approvals.models.break_glass import BreakGlass
from approvals.models.credentials import CredentialsReset
from approvals.models.deputy import Deputy
from approvals.models.freeze import FreezeWindow
from approvals.models.hours import WorkingHours
from approvals.models.letter import Delivery, Letter
from approvals.models.lockout import Counted, SignInFailures, UntoldFailure
from approvals.models.person import PersonSettings
from approvals.models.policy import PolicyVersion
from approvals.models.request import ApprovalRequest, Comment, Signature
from approvals.models.role import RoleGroup
from approvals.models.team import TeamMember
from approvals.models.token import ApiToken, Scope, StoredAnswer

__all__ = [
    "ApiToken",
    "AppendOnly",
    "ApprovalRequest",
    "AuditEntry",
    "AuditHead",
    "AuditTombstone",
    "Authenticator",
    "BreakGlass",
    "Comment",
    "Counted",
    "CredentialsReset",
    "Delivery",
    "Deputy",
    "FreezeWindow",
    "Letter",
    "PersonSettings",
    "PolicyVersion",
    "RecoveryCode",
    "RoleGroup",
    "Scope",
    "SignInFailures",
    "Signature",
    "StoredAnswer",
    "TeamMember",
    "UntoldFailure",
    "WorkingHours",
]
