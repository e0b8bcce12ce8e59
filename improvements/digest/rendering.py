"""A composed digest as plain text, as HTML whose styles stand where mail programs read them, and as a mail."""

from __future__ import annotations

import re
from datetime import datetime
from email import policy
from email.headerregistry import Address
from email.message import EmailMessage
from email.utils import format_datetime
from urllib.parse import urlsplit

from django.conf import settings
from django.template.loader import render_to_string

from improvements.digest.parts import Digest

# A header that is folded in the middle of an address is written as an encoded word, which mail programs do not take for
# one. RFC 5322 allows lines of 998 characters.
HEADERS = policy.SMTP.clone(max_line_length=900)


def as_text(digest: Digest) -> str:
    """For people who read mail as text, and for terminals."""
    text = render_to_string("email/digest.txt", {"digest": digest})
    # Sections that are not there leave blank lines.
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"


def as_html(digest: Digest) -> str:
    """A whole page. Light styles are inlined; the rules for dark mode stay a style sheet and are `!important`, because
    an inlined style would win otherwise.
    """
    import css_inline  # a compiled library that only mails need

    inliner = css_inline.CSSInliner(keep_at_rules=True, load_remote_stylesheets=False)
    return inliner.inline(render_to_string("email/digest.html", {"digest": digest}))


def as_mail(digest: Digest, *, to: str, message_id: str, at: datetime) -> EmailMessage:
    """The mail to the address `to`. The same `message_id` and `at` make it the same mail once more."""
    mail = EmailMessage(policy=policy.SMTP)
    mail["Subject"] = " ".join(digest.subject.split())
    mail["From"] = settings.DEFAULT_FROM_EMAIL
    mail["To"] = Address(addr_spec=to)
    mail["Date"] = format_datetime(at)
    mail["Message-ID"] = message_id
    mail["List-Id"] = f"RuneRogue weekly digest <weekly-digest.{urlsplit(settings.PUBLIC_URL).hostname}>"
    if digest.unsubscribe_url:
        mail["List-Unsubscribe"] = f"<{digest.unsubscribe_url}>"
        mail["List-Unsubscribe-Post"] = "List-Unsubscribe=One-Click"
    mail["Auto-Submitted"] = "auto-generated"
    mail["X-Auto-Response-Suppress"] = "All"
    # Quoted-printable passes every server, however long a line is and whatever alphabet it is in.
    mail.set_content(as_text(digest), cte="quoted-printable")
    mail.add_alternative(as_html(digest), subtype="html", cte="quoted-printable")
    mail.policy = HEADERS  # now, because the bodies would take their longest line from it too
    return mail
