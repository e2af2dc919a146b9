"""The errors of the project: what went wrong, where, and what to do."""

from __future__ import annotations


class FedPGPError(Exception):
    """A failure of ours, told in one line. The command line exits with 1."""

    exit_code = 1


class UserError(FedPGPError):
    """Something the user gave cannot be used, and was refused before work on it began. Exit code 2."""

    exit_code = 2


class ConfigError(UserError):
    """A setting is unknown, of the wrong kind, or contradicts another."""


class DataError(UserError):
    """An image, a folder, a table or a label cannot be used."""


class BackboneError(UserError):
    """A model or its weights cannot be used."""


class CacheError(UserError):
    """A feature cache is torn or belongs to something else."""


class RunError(UserError):
    """A run directory is missing, torn, foreign or already taken."""


class ResourceError(UserError):
    """The plan does not fit the cluster."""


class Interrupted(FedPGPError):
    """The run was asked to stop. What was committed stays; exit code as after Ctrl-C."""

    exit_code = 130


class ClientError(FedPGPError):
    """A client failed. Says which client, in which round and stage.

    Built from plain fields, so that it survives the way from an actor to the driver.
    """

    def __init__(self, stage: str, round: int, client: int, what: str) -> None:
        super().__init__(stage, round, client, what)
        self.stage, self.round, self.client, self.what = stage, round, client, what

    def __str__(self) -> str:
        return f"client {self.client}, round {self.round}, {self.stage}: {self.what}"
