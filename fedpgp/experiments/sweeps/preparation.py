"""Turn trials into work: fill in their settings, and plan their folds."""

from dataclasses import dataclass, field, replace

from fedpgp import config
from fedpgp.core.plugins import to_send
from fedpgp.data.protocol import held_out_names
from fedpgp.experiments import placement, planning
from fedpgp.experiments.planning import Library, Plan
from fedpgp.experiments.sweeps import sampling
from fedpgp.experiments.sweeps.measured import check_images
from fedpgp.experiments.sweeps.sampling import Trial
from fedpgp.experiments.sweeps.sweep_settings import Sweep
from fedpgp.experiments.sweeps.trial_runner import FoldWork, TrialWork
from fedpgp.experiments.tracker import Tracker
from fedpgp.storage.objectives import Objectives
from fedpgp.storage.sweep_folder import Fold, SweepFolder

Plans = dict[Fold, Plan]
"""The plans of a trial, by fold."""


@dataclass(frozen=True)
class Preparation:
    """What all trials of a sweep have in common before they run."""

    sweep: Sweep
    objectives: Objectives
    tracker: Tracker
    force: bool
    """repeat finished folds, too"""
    library: Library = field(default_factory=Library)

    def settled(self, trial: Trial) -> Trial:
        """Fill in what the tracking service knows of a trial's settings, and make its paths absolute."""
        return replace(trial, experiment=config.absolute(self.tracker.settled(trial.experiment)))

    def plans(self, trial: Trial) -> Plans:
        """Plan every fold of a trial; raise `UserError` if one cannot be run."""
        domains = held_out_names(self.library.manifest(trial.experiment.data))
        folds = sampling.folds(self.sweep, trial, domains)
        planned = [planning.plan(trial.fold(fold), self.library).without_text() for fold in folds]
        plans = dict(zip(folds, placement.of_trial(planned), strict=True))
        sampling.check_splits(trial, {fold: plan.manifest.digest for fold, plan in plans.items()})
        for plan in plans.values():
            for metric in self.objectives.metrics:
                check_images(metric, plan.data)
        return plans

    def work(self, folder: SweepFolder, trial: Trial, plans: Plans) -> TrialWork:
        """What is sent to the process that runs a trial."""
        return TrialWork(
            sweep=folder.path,
            id=trial.id,
            label=trial.label,
            folds=tuple(FoldWork(fold, plan.experiment, plan.digest, plan.content) for fold, plan in plans.items()),
            objectives=self.objectives,
            report_every=None if self.sweep.tune.scheduler == "fifo" else self.sweep.tune.grace_rounds,
            force=self.force,
            tracker=self.tracker,
            code=to_send(),
        )
