"""The database's own promises about the audit log: it only grows, and only at its head.

ENABLE ALWAYS: the triggers fire for every role, also under session_replication_role = replica.
"""

from django.db import migrations

FORWARDS = """
CREATE FUNCTION approvals_audit_refuse() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'The audit log is append-only: % on % is refused.', TG_OP, TG_TABLE_NAME
        USING ERRCODE = 'restrict_violation';
END $$;

CREATE FUNCTION approvals_audit_append() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    head approvals_audithead%ROWTYPE;
BEGIN
    SELECT * INTO head FROM approvals_audithead WHERE id = 1 FOR UPDATE;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'The audit log has no head row: run "manage.py migrate", then "manage.py verify_audit".'
            USING ERRCODE = 'restrict_violation';
    END IF;
    IF NEW.sequence <> head.sequence + 1 OR NEW.prev_hash <> head.hash THEN
        RAISE EXCEPTION 'Audit entry % does not continue the log, which ends at %.', NEW.sequence, head.sequence
            USING ERRCODE = 'restrict_violation';
    END IF;
    IF NEW.hash <> encode(sha256(convert_to(NEW.prev_hash || NEW.payload, 'UTF8')), 'hex') THEN
        RAISE EXCEPTION 'Audit entry % does not have the hash of its payload.', NEW.sequence
            USING ERRCODE = 'restrict_violation';
    END IF;
    UPDATE approvals_audithead SET sequence = NEW.sequence, hash = NEW.hash WHERE id = 1;
    RETURN NULL;
END $$;

CREATE FUNCTION approvals_audit_guard_head() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    -- Depth 1 is somebody's own statement; the update made by approvals_audit_append comes at depth 2.
    IF TG_OP = 'UPDATE' AND pg_trigger_depth() > 1 THEN
        RETURN NEW;
    END IF;
    RAISE EXCEPTION 'The head of the audit log moves only with an appended entry: % is refused.', TG_OP
        USING ERRCODE = 'restrict_violation';
END $$;

CREATE TRIGGER audit_append AFTER INSERT ON approvals_auditentry
    FOR EACH ROW EXECUTE FUNCTION approvals_audit_append();
CREATE TRIGGER audit_refuse_change BEFORE UPDATE OR DELETE ON approvals_auditentry
    FOR EACH ROW EXECUTE FUNCTION approvals_audit_refuse();
CREATE TRIGGER audit_refuse_truncate BEFORE TRUNCATE ON approvals_auditentry
    FOR EACH STATEMENT EXECUTE FUNCTION approvals_audit_refuse();
CREATE TRIGGER audit_head_guard BEFORE UPDATE OR DELETE ON approvals_audithead
    FOR EACH ROW EXECUTE FUNCTION approvals_audit_guard_head();
CREATE TRIGGER audit_head_refuse_truncate BEFORE TRUNCATE ON approvals_audithead
    FOR EACH STATEMENT EXECUTE FUNCTION approvals_audit_refuse();
ALTER TABLE approvals_auditentry ENABLE ALWAYS TRIGGER audit_append;
ALTER TABLE approvals_auditentry ENABLE ALWAYS TRIGGER audit_refuse_change;
ALTER TABLE approvals_auditentry ENABLE ALWAYS TRIGGER audit_refuse_truncate;
ALTER TABLE approvals_audithead ENABLE ALWAYS TRIGGER audit_head_guard;
ALTER TABLE approvals_audithead ENABLE ALWAYS TRIGGER audit_head_refuse_truncate;
"""

BACKWARDS = """
DROP TRIGGER audit_append ON approvals_auditentry;
DROP TRIGGER audit_refuse_change ON approvals_auditentry;
DROP TRIGGER audit_refuse_truncate ON approvals_auditentry;
DROP TRIGGER audit_head_guard ON approvals_audithead;
DROP TRIGGER audit_head_refuse_truncate ON approvals_audithead;
DROP FUNCTION approvals_audit_append();
DROP FUNCTION approvals_audit_refuse();
DROP FUNCTION approvals_audit_guard_head();
"""


class Migration(migrations.Migration):
    dependencies = [("approvals", "0001_initial")]
    operations = [migrations.RunSQL(FORWARDS, BACKWARDS)]
