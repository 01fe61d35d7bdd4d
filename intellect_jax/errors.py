"""Errors after which starting again would not help."""

from __future__ import annotations


class Hopeless(Exception):
    """The run found a fault that it would only meet again: shown without a traceback, and nothing is restarted."""


class UserError(ValueError):
    """The configuration or an input is wrong: shown as one clear line without a traceback, exit code 2."""
