"""What entries say of their occasion; one call that appends; tombstones, and removal of what they name; a search index."""

from django.db import migrations, models

FORWARDS = """
-- One call and one round trip for what must happen one writer after the other. The columns are read from the very text
-- that is hashed. The triggers below check what it writes, as they do with every other INSERT; it has no rights of its own.
CREATE FUNCTION approvals_audit_write(
    before_sequence text, after_sequence text, OUT sequence bigint, OUT prev_hash text, OUT hash text
) LANGUAGE plpgsql AS $$
DECLARE
    said record;
    head approvals_audithead%ROWTYPE;
    payload text;
BEGIN
    SELECT * INTO said FROM json_to_record((before_sequence || '0' || after_sequence)::json -> 'columns') AS (
        at timestamptz, actor_id bigint, actor text, action text, subject_kind text, subject_id text, subject text,
        because text, on_behalf_of text, origin text, correlation text, outcome text
    );
    -- Writers queue up here rather than at the head's row: whoever waits for a row has to find its new version afterwards.
    PERFORM pg_advisory_xact_lock('approvals_audithead'::regclass::oid::integer, 1);
    SELECT * INTO head FROM approvals_audithead WHERE id = 1;
    IF NOT FOUND THEN
        INSERT INTO approvals_audithead (id, sequence, hash) VALUES (1, 0, repeat('0', 64)) ON CONFLICT DO NOTHING;
        SELECT * INTO head FROM approvals_audithead WHERE id = 1;
    END IF;
    sequence := head.sequence + 1;
    prev_hash := head.hash;
    payload := before_sequence || sequence || after_sequence;
    hash := encode(sha256(convert_to(prev_hash || payload, 'UTF8')), 'hex');
    INSERT INTO approvals_auditentry (
        sequence, prev_hash, hash, at, actor_id, actor, action, subject_kind, subject_id, subject, because,
        on_behalf_of, origin, correlation, outcome, payload
    ) VALUES (
        sequence, prev_hash, hash, said.at, said.actor_id, said.actor, said.action, said.subject_kind, said.subject_id,
        said.subject, said.because, said.on_behalf_of, said.origin, said.correlation, said.outcome, payload
    );
END $$;

-- The checks are those it always made, with the head found and moved in one go: every writer waits for this.
CREATE OR REPLACE FUNCTION approvals_audit_append() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    ends_at bigint;
BEGIN
    UPDATE approvals_audithead SET sequence = NEW.sequence, hash = NEW.hash
    WHERE id = 1 AND sequence = NEW.sequence - 1 AND hash = NEW.prev_hash;
    IF NOT FOUND THEN
        SELECT sequence INTO ends_at FROM approvals_audithead WHERE id = 1;
        IF NOT FOUND THEN
            RAISE EXCEPTION 'The audit log has no head row: run "manage.py migrate", then "manage.py verify_audit".'
                USING ERRCODE = 'restrict_violation';
        END IF;
        RAISE EXCEPTION 'Audit entry % does not continue the log, which ends at %.', NEW.sequence, ends_at
            USING ERRCODE = 'restrict_violation';
    END IF;
    IF NEW.hash <> encode(sha256(convert_to(NEW.prev_hash || NEW.payload, 'UTF8')), 'hex') THEN
        RAISE EXCEPTION 'Audit entry % does not have the hash of its payload.', NEW.sequence
            USING ERRCODE = 'restrict_violation';
    END IF;
    RETURN NULL;
END $$;

-- Removal is for what a tombstone of this very transaction names. pg_current_xact_id is the outermost transaction's.
CREATE FUNCTION approvals_audit_remove() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF EXISTS (
        SELECT FROM approvals_audittombstone
        WHERE transaction = pg_current_xact_id()::text AND OLD.sequence BETWEEN first AND through
    ) THEN
        RETURN OLD;
    END IF;
    RAISE EXCEPTION 'The audit log is append-only: DELETE on % is refused.', TG_TABLE_NAME
        USING ERRCODE = 'restrict_violation';
END $$;

CREATE FUNCTION approvals_audit_bury() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NEW.first IS DISTINCT FROM (SELECT min(sequence) FROM approvals_auditentry)
        OR NOT EXISTS (SELECT FROM approvals_auditentry WHERE sequence = NEW.first AND prev_hash = NEW.prev_hash)
        OR NOT EXISTS (SELECT FROM approvals_auditentry WHERE sequence = NEW.through AND hash = NEW.hash)
    THEN
        RAISE EXCEPTION 'The tombstone does not name the beginning of the audit log.'
            USING ERRCODE = 'restrict_violation';
    END IF;
    IF NOT EXISTS (
        SELECT FROM approvals_auditentry e JOIN approvals_audithead h ON e.sequence = h.sequence
        WHERE e.action = 'audit.tombstone' AND e.sequence > NEW.through AND strpos(e.payload, NEW.statement) > 0
    ) THEN
        RAISE EXCEPTION 'A tombstone needs an audit entry of its own, written just before it.'
            USING ERRCODE = 'restrict_violation';
    END IF;
    NEW.transaction := pg_current_xact_id()::text;
    RETURN NEW;
END $$;

DROP TRIGGER audit_refuse_change ON approvals_auditentry;
CREATE TRIGGER audit_refuse_change BEFORE UPDATE ON approvals_auditentry
    FOR EACH ROW EXECUTE FUNCTION approvals_audit_refuse();
CREATE TRIGGER audit_remove BEFORE DELETE ON approvals_auditentry
    FOR EACH ROW EXECUTE FUNCTION approvals_audit_remove();
CREATE TRIGGER audit_bury BEFORE INSERT ON approvals_audittombstone
    FOR EACH ROW EXECUTE FUNCTION approvals_audit_bury();
CREATE TRIGGER audit_refuse_change BEFORE UPDATE OR DELETE ON approvals_audittombstone
    FOR EACH ROW EXECUTE FUNCTION approvals_audit_refuse();
CREATE TRIGGER audit_refuse_truncate BEFORE TRUNCATE ON approvals_audittombstone
    FOR EACH STATEMENT EXECUTE FUNCTION approvals_audit_refuse();
ALTER TABLE approvals_auditentry ENABLE ALWAYS TRIGGER audit_refuse_change;
ALTER TABLE approvals_auditentry ENABLE ALWAYS TRIGGER audit_remove;
ALTER TABLE approvals_audittombstone ENABLE ALWAYS TRIGGER audit_bury;
ALTER TABLE approvals_audittombstone ENABLE ALWAYS TRIGGER audit_refuse_change;
ALTER TABLE approvals_audittombstone ENABLE ALWAYS TRIGGER audit_refuse_truncate;

-- One index for whatever is looked for in the log (approvals.leafing): words and how they begin, who, what, the kind of
-- subject, and the part of the log. Not trigrams: those need an extension, and an entry has ten times as many of them as it
-- has words. Of a reason its beginning: to_tsvector refuses texts with a megabyte of words, and an entry must never fail
-- because of its length.
CREATE INDEX audit_found ON approvals_auditentry USING gin ((
    to_tsvector('simple'::regconfig, translate(
        actor || ' ' || action || ' ' || subject || ' ' || left(because, 10000), './_-:#@', '       '
    )) || array_to_tsvector(ARRAY[
        '#' || (sequence / 16384)::text, '#who:' || actor, '#did:' || action, '#on:' || subject_kind
    ])
));
"""

BACKWARDS = """
DROP INDEX audit_found;
DROP TRIGGER audit_bury ON approvals_audittombstone;
DROP TRIGGER audit_refuse_change ON approvals_audittombstone;
DROP TRIGGER audit_refuse_truncate ON approvals_audittombstone;
DROP TRIGGER audit_remove ON approvals_auditentry;
DROP TRIGGER audit_refuse_change ON approvals_auditentry;
CREATE TRIGGER audit_refuse_change BEFORE UPDATE OR DELETE ON approvals_auditentry
    FOR EACH ROW EXECUTE FUNCTION approvals_audit_refuse();
ALTER TABLE approvals_auditentry ENABLE ALWAYS TRIGGER audit_refuse_change;
DROP FUNCTION approvals_audit_bury();
DROP FUNCTION approvals_audit_remove();
DROP FUNCTION approvals_audit_write(text, text);
"""


class Migration(migrations.Migration):
    dependencies = [
        ("approvals", "0008_holds"),
    ]

    operations = [
        migrations.CreateModel(
            name="AuditTombstone",
            fields=[
                ("through", models.BigIntegerField(primary_key=True, serialize=False)),
                ("first", models.BigIntegerField()),
                ("prev_hash", models.CharField(max_length=64)),
                ("hash", models.CharField(max_length=64)),
                ("statement", models.CharField(help_text="The digest of the signed statement.", max_length=64)),
                ("archive", models.CharField(help_text="The digest of the archive's manifest.", max_length=64)),
                ("at", models.DateTimeField()),
                ("transaction", models.CharField(blank=True, db_default="", default="", max_length=24)),
            ],
            options={
                "ordering": ["-through"],
            },
        ),
        migrations.AddField(
            model_name="auditentry",
            name="correlation",
            field=models.CharField(blank=True, db_default="", default="", max_length=64),
        ),
        migrations.AddField(
            model_name="auditentry",
            name="on_behalf_of",
            field=models.CharField(blank=True, db_default="", default="", max_length=150),
        ),
        migrations.AddField(
            model_name="auditentry",
            name="origin",
            field=models.CharField(blank=True, db_default="", default="", max_length=80, verbose_name="where from"),
        ),
        migrations.AddField(
            model_name="auditentry",
            name="outcome",
            field=models.CharField(blank=True, db_default="", default="", max_length=10),
        ),
        migrations.AddIndex(
            model_name="auditentry",
            index=models.Index(
                condition=models.Q(("correlation", ""), _negated=True), fields=["correlation"], name="audit_correlation"
            ),
        ),
        # The hash before is unique, so each hash is too, save the last. As `unique=True` both cost an index for LIKE more.
        migrations.AlterField(
            model_name="auditentry",
            name="hash",
            field=models.CharField(max_length=64),
        ),
        migrations.AlterField(
            model_name="auditentry",
            name="prev_hash",
            field=models.CharField(max_length=64),
        ),
        migrations.AddConstraint(
            model_name="auditentry",
            constraint=models.UniqueConstraint(fields=("prev_hash",), name="audit_continues_once"),
        ),
        migrations.RunSQL(FORWARDS, BACKWARDS),
    ]
