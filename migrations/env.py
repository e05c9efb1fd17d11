"""Run the migrations on the connection that `app.db.migrate` hands over, while older processes may still be up.

It holds the locks under which one migrates at a time, and PostgreSQL's timeouts. On SQLite tables are rebuilt in
batch mode, which loses their triggers: a migration that rebuilds a table makes them again, and `hilum db check`
names those that are missing.
"""

from alembic import context

from app.db.work import Base
from app.errors import HilumError

connection = context.config.attributes.get("connection")
if connection is None or context.is_offline_mode():
    message = "migrations run through `hilum db upgrade`, which opens the database with its locks"
    raise HilumError(message)

context.configure(
    connection=connection,
    target_metadata=Base.metadata,
    compare_type=True,
    render_as_batch=connection.dialect.name == "sqlite",
    transactional_ddl=True,
)
context.run_migrations()
