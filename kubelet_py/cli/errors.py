"""What a subcommand raises for its user."""


class CommandError(Exception):
    """The command could not be done; the message is the one line on stderr, the exit code is 1."""


class AddressRefused(CommandError):
    """The cluster has another node with this machine's address; the node will not register with it."""
