"""The first tables: studies, receptions, predictions and the audit trail, all append-only.

Revision: 0001_initial, after nothing
"""

import sqlalchemy as sa
from alembic import op

revision = "0001_initial"
down_revision = None
branch_labels = None
depends_on = None

# SQLite counts ids up by itself only in INTEGER columns, and keeps times as text that sorts.
WHOLE = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
TIME = sa.DateTime(timezone=True).with_variant(sa.Text(), "sqlite")

TABLES = (
    "study",
    "series",
    "instance",
    "reception",
    "prediction",
    "finding",
    "withheld",
    "audit_event",
    "audit_subject",
)


def upgrade() -> None:
    create_what_is_received()
    create_what_is_said()
    create_audit_trail()
    refuse_changes()


def downgrade() -> None:
    for table in reversed(TABLES):
        op.drop_table(table)
    if op.get_bind().dialect.name == "postgresql":
        op.execute("DROP FUNCTION refuse_change()")


def create_what_is_received() -> None:
    op.create_table(
        "study",
        sa.Column("id", WHOLE, nullable=False),
        sa.Column("study_instance_uid", sa.Text(), nullable=False),
        sa.Column("patient_name", sa.Text(), nullable=True),
        sa.Column("patient_id", sa.Text(), nullable=True),
        sa.Column("patient_birth_date", sa.Date(), nullable=True),
        sa.Column("patient_sex", sa.Text(), nullable=True),
        sa.Column("study_date", sa.Date(), nullable=True),
        sa.Column("description", sa.Text(), nullable=True),
        sa.Column("accession_number", sa.Text(), nullable=True),
        sa.Column("received_at", TIME, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_study"),
        sa.UniqueConstraint("study_instance_uid", name="uq_study_study_instance_uid"),
    )
    op.create_index("ix_study_received_at", "study", ["received_at"])
    op.create_table(
        "series",
        sa.Column("id", WHOLE, nullable=False),
        sa.Column("study_id", WHOLE, nullable=False),
        sa.Column("series_instance_uid", sa.Text(), nullable=False),
        sa.Column("modality", sa.Text(), nullable=True),
        sa.Column("body_part", sa.Text(), nullable=True),
        sa.Column("number", WHOLE, nullable=True),
        sa.Column("description", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("id", name="pk_series"),
        sa.ForeignKeyConstraint(["study_id"], ["study.id"], name="fk_series_study_id_study"),
        sa.UniqueConstraint("series_instance_uid", name="uq_series_series_instance_uid"),
    )
    op.create_index("ix_series_study_id", "series", ["study_id"])
    op.create_table(
        "instance",
        sa.Column("id", WHOLE, nullable=False),
        sa.Column("series_id", WHOLE, nullable=False),
        sa.Column("sop_instance_uid", sa.Text(), nullable=False),
        sa.Column("sop_class_uid", sa.Text(), nullable=False),
        sa.Column("transfer_syntax_uid", sa.Text(), nullable=False),
        sa.Column("sha256", sa.Text(), nullable=False),
        sa.Column("size_bytes", WHOLE, nullable=False),
        sa.Column("rows", WHOLE, nullable=True),
        sa.Column("columns", WHOLE, nullable=True),
        sa.Column("number_of_frames", WHOLE, nullable=False),
        sa.Column("instance_number", WHOLE, nullable=True),
        sa.Column("patient_age_years", sa.Float(53), nullable=True),
        sa.Column("view_position", sa.Text(), nullable=True),
        sa.Column("photometric_interpretation", sa.Text(), nullable=True),
        sa.Column("received_at", TIME, nullable=False),
        sa.Column("received_from", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_instance"),
        sa.ForeignKeyConstraint(["series_id"], ["series.id"], name="fk_instance_series_id_series"),
        sa.UniqueConstraint("sop_instance_uid", name="uq_instance_sop_instance_uid"),
    )
    op.create_index("ix_instance_series_id", "instance", ["series_id"])
    op.create_index("ix_instance_sha256", "instance", ["sha256"])
    op.create_table(
        "reception",
        sa.Column("id", WHOLE, nullable=False),
        sa.Column("at", TIME, nullable=False),
        sa.Column("actor", sa.Text(), nullable=False),
        sa.Column("outcome", sa.Text(), nullable=False),
        sa.Column("source_name_sha256", sa.Text(), nullable=True),
        sa.Column("sha256", sa.Text(), nullable=True),
        sa.Column("size_bytes", WHOLE, nullable=True),
        sa.Column("sop_instance_uid", sa.Text(), nullable=True),
        sa.Column("instance_id", WHOLE, nullable=True),
        sa.Column("error_code", sa.Text(), nullable=True),
        sa.Column("message", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("id", name="pk_reception"),
        sa.ForeignKeyConstraint(["instance_id"], ["instance.id"], name="fk_reception_instance_id_instance"),
    )
    op.create_index("ix_reception_instance_id", "reception", ["instance_id"])


def create_what_is_said() -> None:
    op.create_table(
        "prediction",
        sa.Column("id", WHOLE, nullable=False),
        sa.Column("uid", sa.Text(), nullable=False),
        sa.Column("instance_id", WHOLE, nullable=False),
        sa.Column("frame_number", WHOLE, nullable=False),
        sa.Column("started_at", TIME, nullable=False),
        sa.Column("created_at", TIME, nullable=False),
        sa.Column("actor", sa.Text(), nullable=False),
        sa.Column("model_name", sa.Text(), nullable=False),
        sa.Column("model_version", sa.Text(), nullable=False),
        sa.Column("model_sha256", sa.Text(), nullable=False),
        sa.Column("threshold_set", sa.Text(), nullable=False),
        sa.Column("provider", sa.Text(), nullable=False),
        sa.Column("precision", sa.Text(), nullable=False),
        sa.Column("runtime_version", sa.Text(), nullable=False),
        sa.Column("hilum_version", sa.Text(), nullable=False),
        sa.Column("file_sha256", sa.Text(), nullable=False),
        sa.Column("transfer_syntax_uid", sa.Text(), nullable=False),
        sa.Column("decoder", sa.Text(), nullable=False),
        sa.Column("preprocessing", sa.Text(), nullable=False),
        sa.Column("input_sha256", sa.Text(), nullable=False),
        sa.Column("stated_age_years", sa.Float(53), nullable=True),
        sa.Column("route", sa.Text(), nullable=True),
        sa.Column("route_probability", sa.Float(53), nullable=True),
        sa.Column("logits", sa.Text(), nullable=False),
        sa.Column("ood", sa.Text(), nullable=False),
        sa.Column("embedding_sha256", sa.Text(), nullable=True),
        sa.Column("latency_ms", sa.Text(), nullable=False),
        sa.Column("warnings", sa.Text(), nullable=False),
        sa.Column("abstained_code", sa.Text(), nullable=True),
        sa.Column("abstained_reason", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("id", name="pk_prediction"),
        sa.ForeignKeyConstraint(["instance_id"], ["instance.id"], name="fk_prediction_instance_id_instance"),
        sa.UniqueConstraint("uid", name="uq_prediction_uid"),
    )
    op.create_index("ix_prediction_instance_id_frame_number_id", "prediction", ["instance_id", "frame_number", "id"])
    op.create_table(
        "finding",
        sa.Column("id", WHOLE, nullable=False),
        sa.Column("prediction_id", WHOLE, nullable=False),
        sa.Column("task", sa.Text(), nullable=False),
        sa.Column("label", sa.Text(), nullable=False),
        sa.Column("display", sa.Text(), nullable=False),
        sa.Column("code_scheme", sa.Text(), nullable=True),
        sa.Column("code_value", sa.Text(), nullable=True),
        sa.Column("code_meaning", sa.Text(), nullable=True),
        sa.Column("normal", sa.Boolean(), nullable=False),
        sa.Column("logit", sa.Float(53), nullable=False),
        sa.Column("probability", sa.Float(53), nullable=False),
        sa.Column("threshold", sa.Float(53), nullable=False),
        sa.Column("positive", sa.Boolean(), nullable=False),
        sa.Column("in_prediction_set", sa.Boolean(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_finding"),
        sa.ForeignKeyConstraint(["prediction_id"], ["prediction.id"], name="fk_finding_prediction_id_prediction"),
        sa.UniqueConstraint("prediction_id", "task", "label", name="uq_finding_prediction_id_task_label"),
    )
    op.create_table(
        "withheld",
        sa.Column("id", WHOLE, nullable=False),
        sa.Column("prediction_id", WHOLE, nullable=False),
        sa.Column("task", sa.Text(), nullable=True),
        sa.Column("code", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("ood_score", sa.Float(53), nullable=True),
        sa.Column("ood_threshold", sa.Float(53), nullable=True),
        sa.PrimaryKeyConstraint("id", name="pk_withheld"),
        sa.ForeignKeyConstraint(["prediction_id"], ["prediction.id"], name="fk_withheld_prediction_id_prediction"),
    )
    op.create_index("ix_withheld_prediction_id", "withheld", ["prediction_id"])


def create_audit_trail() -> None:
    op.create_table(
        "audit_event",
        sa.Column("sequence", WHOLE, autoincrement=False, nullable=False),
        sa.Column("at", TIME, nullable=False),
        sa.Column("actor", sa.Text(), nullable=False),
        sa.Column("actor_kind", sa.Text(), nullable=False),
        sa.Column("action", sa.Text(), nullable=False),
        sa.Column("detail", sa.Text(), nullable=False),
        sa.Column("previous_hash", sa.Text(), nullable=False),
        sa.Column("hash", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("sequence", name="pk_audit_event"),
    )
    op.create_index("ix_audit_event_action_sequence", "audit_event", ["action", "sequence"])
    op.create_table(
        "audit_subject",
        sa.Column("sequence", WHOLE, nullable=False),
        sa.Column("position", WHOLE, autoincrement=False, nullable=False),
        sa.Column("table_name", sa.Text(), nullable=False),
        sa.Column("row_id", WHOLE, nullable=False),
        sa.Column("sha256", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("sequence", "position", name="pk_audit_subject"),
        sa.ForeignKeyConstraint(["sequence"], ["audit_event.sequence"], name="fk_audit_subject_sequence_audit_event"),
    )
    op.create_index("ix_audit_subject_table_name_row_id", "audit_subject", ["table_name", "row_id"])


def refuse_changes() -> None:
    """On both engines; a table's owner can still take the trigger away, which is what the audit trail is for."""
    if op.get_bind().dialect.name == "sqlite":
        for table in TABLES:
            for change in ("UPDATE", "DELETE"):
                op.execute(
                    f"CREATE TRIGGER {table}_refuses_{change.lower()} BEFORE {change} ON {table} "
                    f"BEGIN SELECT RAISE(ABORT, '{table} is append-only: {change} refused'); END"
                )
        return
    op.execute(
        """
        CREATE FUNCTION refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            RAISE EXCEPTION '% is append-only: % refused', TG_TABLE_NAME, TG_OP;
        END
        $$
        """
    )
    for table in TABLES:
        op.execute(
            f"CREATE TRIGGER {table}_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON {table} "
            "FOR EACH STATEMENT EXECUTE FUNCTION refuse_change()"
        )
        # Also in sessions that play a replica, where ordinary triggers rest.
        op.execute(f"ALTER TABLE {table} ENABLE ALWAYS TRIGGER {table}_append_only")
