"""Alembic's entry: migrates over the connection that `accord.trainer.registry.migrate` hands in."""

from alembic import context

from accord.trainer.registry import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata)
with context.begin_transaction():
    context.run_migrations()
