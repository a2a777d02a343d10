"""Errors that are the user's to mend."""


class UserError(Exception):
    """One line for the user: which file or option, what is wrong with it, and the mend."""
