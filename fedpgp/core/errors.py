"""Exceptions. Each message says what went wrong, where, and what to do, in one line."""


class FedPGPError(Exception):
    """A failure at run time. Exit code 1."""

    exit_code = 1


class UserError(FedPGPError):
    """Invalid input, rejected before work on it starts. Exit code 2."""

    exit_code = 2


class ConfigError(UserError):
    """A setting is unknown, of the wrong kind, or contradicts another."""


class DataError(UserError):
    """An image, a folder, a table or a label is invalid."""


class BackboneError(UserError):
    """A model or its weights are invalid."""


class CacheError(UserError):
    """A feature cache is damaged or belongs to another key."""


class MissingCacheError(CacheError):
    """There is no feature cache. Built from its path, so that it can be sent from an actor to the driver."""

    def __init__(self, filename: str) -> None:
        super().__init__(filename)
        self.filename = filename

    def __str__(self) -> str:
        return f"{self.filename}: no such feature cache; run `fedpgp features CONFIG` first"


class RunError(UserError):
    """A run folder is missing, damaged, in use, or not a run."""


class AccessError(RunError):
    """This user may not read or write a file or a folder. Built by `core.files`."""


class StorageError(FedPGPError):
    """An object store cannot be used now, or another machine writes there. Everything stored before is kept.

    `lasting`: until somebody mends it, such as a wrong password.
    """

    def __init__(self, what: str, lasting: bool = False) -> None:
        super().__init__(what)
        self.lasting = lasting


class ResourceError(UserError):
    """The plan does not fit the cluster."""


class Interrupted(FedPGPError):
    """The run was stopped; committed rounds are kept. Exit code as after Ctrl-C."""

    exit_code = 130


class ClientError(FedPGPError):
    """A client failed. Built from plain fields, so that it can be sent from an actor to the driver."""

    def __init__(self, stage: str, round: int, client: int, what: str) -> None:
        super().__init__(stage, round, client, what)
        self.stage, self.round, self.client, self.what = stage, round, client, what

    def __str__(self) -> str:
        return f"client {self.client}, round {self.round}, {self.stage}: {self.what}"
