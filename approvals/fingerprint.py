"""One hash that stands for a patch, its evidence and the policy: what a signature is bound to."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any

import rfc8785


def canonical(value: Any) -> bytes:
    """`value` as canonical JSON (RFC 8785): one spelling for one meaning. ValueError for what JSON cannot say."""
    try:
        return rfc8785.dumps(value)
    except (rfc8785.CanonicalizationError, UnicodeEncodeError) as error:
        raise ValueError(
            f"{error}. Only text, whole numbers below 2**53, finite floats, lists and dicts can be hashed."
        ) from error


def digest(value: Any) -> str:
    """SHA-256 of the canonical JSON of `value`, as 64 hex digits."""
    return hashlib.sha256(canonical(value)).hexdigest()


def fingerprint(*, patch: str, evidence: Iterable[str], policy_version: str) -> str:
    """What a signature is bound to, as 64 hex digits.

    `patch` is the patch's text (or a hash of it), `evidence` the hashes of what the steps left behind in any order.
    Any change of patch, evidence or policy version gives another fingerprint.
    """
    return digest({"patch": patch, "evidence": sorted(evidence), "policy_version": policy_version})
