"""Errors that are the user's to mend: one line, the key, the value, and what would be right.

Everything that a person can cause with a recipe, a folder or a full disk is raised as `UserError`;
the command line prints it as one line and exits with code 2. Any other exception is a bug of ours
and keeps its traceback.
"""

from __future__ import annotations


class UserError(Exception):
    """A problem that the user can mend. The message is one line: what is wrong, and the remedy."""


class ConfigError(UserError):
    """A recipe key that is unknown, of the wrong type, or contradicts another.

    Args:
        key: dotted path of the key, as it is written in the recipe (`model.num_heads`).
        problem: what is wrong and what would be right.
    """

    def __init__(self, key: str, problem: str) -> None:
        self.key = key
        super().__init__(f"{key}: {problem}" if key else problem)
