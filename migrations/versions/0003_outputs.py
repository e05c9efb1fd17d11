"""What an outside worker says that it made of a work item.

Revision: 0003_outputs, after 0002_pacs
"""

import sqlalchemy as sa
from alembic import op

revision = "0003_outputs"
down_revision = "0002_pacs"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("work_item", sa.Column("outputs", sa.Text(), nullable=True))


def downgrade() -> None:
    op.drop_column("work_item", "outputs")
