"""Errors that the user can put right."""

from __future__ import annotations


class UserError(ValueError):
    """The configuration or an input is wrong: shown as one clear line without a traceback, exit code 2."""
