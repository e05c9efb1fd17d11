"""The working rows of the PACS road: awaited studies, work items, the outbox, storage commitments.

Revision: 0002_pacs, after 0001_initial
"""

import sqlalchemy as sa
from alembic import op

revision = "0002_pacs"
down_revision = "0001_initial"
branch_labels = None
depends_on = None

WHOLE = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
TIME = sa.DateTime(timezone=True).with_variant(sa.Text(), "sqlite")


def upgrade() -> None:
    op.create_table(
        "awaited_study",
        sa.Column("study_id", WHOLE, autoincrement=False, nullable=False),
        sa.Column("last_instance_at", TIME, nullable=False),
        sa.Column("requested_by", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("study_id", name="pk_awaited_study"),
        sa.ForeignKeyConstraint(["study_id"], ["study.id"], name="fk_awaited_study_study_id_study"),
    )
    op.create_index("ix_awaited_study_last_instance_at", "awaited_study", ["last_instance_at"])
    op.create_table(
        "work_item",
        sa.Column("id", WHOLE, nullable=False),
        sa.Column("uid", sa.Text(), nullable=False),
        sa.Column("study_id", WHOLE, nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("requested_by", sa.Text(), nullable=False),
        sa.Column("scheduled_at", TIME, nullable=False),
        sa.Column("transaction_uid", sa.Text(), nullable=True),
        sa.Column("claimed_by", sa.Text(), nullable=True),
        sa.Column("lease_until", TIME, nullable=True),
        sa.Column("attempts", WHOLE, nullable=False),
        sa.Column("ended_at", TIME, nullable=True),
        sa.Column("error_code", sa.Text(), nullable=True),
        sa.Column("error_message", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("id", name="pk_work_item"),
        sa.ForeignKeyConstraint(["study_id"], ["study.id"], name="fk_work_item_study_id_study"),
        sa.UniqueConstraint("uid", name="uq_work_item_uid"),
    )
    op.create_index("ix_work_item_study_id", "work_item", ["study_id"])
    op.create_index("ix_work_item_state_id", "work_item", ["state", "id"])
    op.create_table(
        "publication",
        sa.Column("id", WHOLE, nullable=False),
        sa.Column("work_item_id", WHOLE, nullable=False),
        sa.Column("destination", sa.Text(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("sop_instance_uid", sa.Text(), nullable=False),
        sa.Column("sha256", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("attempts", WHOLE, nullable=False),
        sa.Column("next_attempt_at", TIME, nullable=False),
        sa.Column("sent_at", TIME, nullable=True),
        sa.Column("error_code", sa.Text(), nullable=True),
        sa.Column("error_message", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("id", name="pk_publication"),
        sa.ForeignKeyConstraint(["work_item_id"], ["work_item.id"], name="fk_publication_work_item_id_work_item"),
        sa.UniqueConstraint("destination", "sop_instance_uid", name="uq_publication_destination_sop_instance_uid"),
    )
    op.create_index("ix_publication_work_item_id", "publication", ["work_item_id"])
    op.create_index("ix_publication_state_next_attempt_at", "publication", ["state", "next_attempt_at"])
    op.create_table(
        "commitment",
        sa.Column("id", WHOLE, nullable=False),
        sa.Column("ae_title", sa.Text(), nullable=False),
        sa.Column("transaction_uid", sa.Text(), nullable=False),
        sa.Column("instances", sa.Text(), nullable=False),
        sa.Column("requested_at", TIME, nullable=False),
        sa.Column("attempts", WHOLE, nullable=False),
        sa.Column("next_attempt_at", TIME, nullable=False),
        sa.Column("answered_at", TIME, nullable=True),
        sa.PrimaryKeyConstraint("id", name="pk_commitment"),
        sa.UniqueConstraint("ae_title", "transaction_uid", name="uq_commitment_ae_title_transaction_uid"),
    )
    op.create_index("ix_commitment_next_attempt_at", "commitment", ["next_attempt_at"])


def downgrade() -> None:
    for table in ("commitment", "publication", "work_item", "awaited_study"):
        op.drop_table(table)
