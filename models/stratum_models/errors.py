"""The one error that is the user's to mend."""


class UserError(ValueError):
    """Input that cannot be used: the message is one line that names what was found, where, and the fix.

    Jobs print it without a traceback and exit with code 2.
    """
