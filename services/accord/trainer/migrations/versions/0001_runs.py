"""The table of runs."""

import sqlalchemy as sql
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Creates the table."""
    op.create_table(
        "runs",
        sql.Column("sequence", sql.Integer, primary_key=True, autoincrement=True),
        sql.Column("name", sql.String(128), nullable=False, unique=True),
        sql.Column("request_id", sql.String(128), nullable=False, unique=True),
        sql.Column("payload_digest", sql.String(64), nullable=False),
        sql.Column("spec", sql.Text, nullable=False),
        sql.Column("state", sql.String(32), nullable=False, index=True),
        sql.Column("message", sql.Text, nullable=False),
        sql.Column("attempts", sql.Integer, nullable=False),
        sql.Column("directory", sql.Text, nullable=False),
        sql.Column("create_time", sql.Float, nullable=False),
        sql.Column("start_time", sql.Float),
        sql.Column("end_time", sql.Float),
        sql.Column("cancel_time", sql.Float),
        sql.Column("exit_code", sql.Integer),
    )


def downgrade() -> None:
    """Drops the table."""
    op.drop_table("runs")
