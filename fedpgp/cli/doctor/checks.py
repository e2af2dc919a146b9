"""Run all checks, each after those that it depends on."""

from collections.abc import Iterator, Sequence

from fedpgp.cli.doctor import installation
from fedpgp.cli.doctor.findings import Finding, State, problem
from fedpgp.core.errors import ConfigError
from fedpgp.federation.backends import use_token


def examine(given: str | None = None, overrides: Sequence[str] = ()) -> list[Finding]:
    """Run all checks. Starts no run and no Ray, and leaves nothing on disk.

    Args:
        given: an experiment, as `config.load` takes it; None: only the other checks, of the default root.

    Returns:
        The findings, without credentials.
    """
    found = list(installation.examine())
    try:
        found += _beyond_the_packages(given, overrides)
    except ImportError as error:
        found.append(problem("packages", f"cannot be imported: {error}", "install them as said above, then look again"))
    return [finding.shown() for finding in found]


def _beyond_the_packages(given: str | None, overrides: Sequence[str]) -> Iterator[Finding]:
    """Checks that need the packages."""
    from fedpgp import config, methods

    experiment = config.Experiment()
    if given is not None:
        try:
            experiment = config.absolute(config.load(given, overrides, methods.defaults))
        except ConfigError as error:
            yield from (problem("settings", line) for line in str(error).splitlines())
            given = None
    if experiment.resources.address:
        use_token()  # before ray is imported

    from fedpgp.cli.doctor import experiment_checks, machine, storage_checks
    from fedpgp.experiments.planning import Library

    yield from machine.examine(experiment)
    ray, nodes = machine.ray(experiment.resources)
    yield ray
    yield from storage_checks.examine(experiment)
    library = Library()
    data = experiment_checks.data(experiment.data, library)
    yield data
    if given is not None and data.state is not State.problem:
        yield from experiment_checks.examine(experiment, library, nodes)
