"""What DICOMweb searches answer with and by, and work items that another application holds over UPS-RS.

Columns that may be absent are added in place on both engines: no table is rebuilt, and the triggers stay.

Revision: 0003_dicomweb, after 0002_pacs
"""

import sqlalchemy as sa
from alembic import op

revision = "0003_dicomweb"
down_revision = "0002_pacs"
branch_labels = None
depends_on = None

STUDY_TEXTS = ("study_time", "study_id", "referring_physician")
STUDY_INDICES = ("patient_id", "study_date", "accession_number")


def upgrade() -> None:
    for name in STUDY_TEXTS:
        op.add_column("study", sa.Column(name, sa.Text(), nullable=True))
    for name in STUDY_INDICES:
        op.create_index(f"ix_study_{name}", "study", [name])
    op.add_column("work_item", sa.Column("outside", sa.Boolean(), nullable=True))
    op.add_column("work_item", sa.Column("performed", sa.Text(), nullable=True))


def downgrade() -> None:
    op.drop_column("work_item", "performed")
    op.drop_column("work_item", "outside")
    for name in STUDY_INDICES:
        op.drop_index(f"ix_study_{name}", "study")
    for name in STUDY_TEXTS:
        op.drop_column("study", name)
