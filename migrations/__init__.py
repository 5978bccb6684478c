"""Alembic migrations of the database schema (``firnline migrate``)."""
