"""The one exception that a subcommand raises for its user."""


class CommandError(Exception):
    """The command could not be done; the message is the one line on stderr, the exit code is 1."""
