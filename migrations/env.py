"""Run the migrations on the connection that `app.db.migrate` hands over, while older processes may still be up.

One migrates at a time: the others wait and then find nothing left to do. On PostgreSQL no statement may wait long
for a lock, since everybody behind it would wait too. On SQLite tables are rebuilt in batch mode, which loses their
triggers: a migration that rebuilds a table makes them again.
"""

from alembic import context

from app.db.tables import Base
from app.errors import HilumError

MIGRATION_LOCK = 0x48494C554D02  # PostgreSQL advisory lock, beside the writers' in app.db.session

connection = context.config.attributes.get("connection")
if connection is None or context.is_offline_mode():
    message = "migrations run through `hilum db upgrade`, which opens the database with its locks"
    raise HilumError(message)

if connection.dialect.name == "postgresql":
    # The lock is taken before the revision is read; waiting for it may take as long as another's whole upgrade.
    connection.exec_driver_sql("SET LOCAL lock_timeout = '300s'")
    connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({MIGRATION_LOCK})")
    connection.exec_driver_sql("SET LOCAL lock_timeout = '5s'")
    connection.exec_driver_sql("SET LOCAL statement_timeout = '600s'")

context.configure(
    connection=connection,
    target_metadata=Base.metadata,
    compare_type=True,
    render_as_batch=connection.dialect.name == "sqlite",
    transactional_ddl=True,
)
context.run_migrations()
