"""Methods that were run with several settings: the tables of those that validation images choose."""

from fedpgp.analysis.comparison import METRIC_TITLES, Comparison, chosen, families, measured
from fedpgp.analysis.report.tables import Table, ranked, titled


def of_scenarios(comparison: Comparison) -> list[Table]:
    """For each scenario, the test accuracies of every method with the settings that validation images choose."""
    if not comparison.is_tuned:
        return []
    main, found = comparison.main or "", []
    for scenario, groups in comparison.scenarios.items():
        own, tried = chosen(groups, main), families(groups)
        metrics = measured(groups)
        names = [(family, group.label.removeprefix(family).lstrip(", ") or "-") for family, group in own.items()]
        columns = [ranked([group.statistic(metric) for group in own.values()]) for metric in metrics]
        counts = (str(len(tried[family])) for family in own)
        found.append(
            Table(
                titled("Settings chosen on validation images, test accuracy in percent", scenario),
                ("", "chosen", "of", *(METRIC_TITLES[metric] for metric in metrics)),
                ((*name, count, *row) for name, count, *row in zip(names, counts, *columns, strict=True)),
                text_columns=2,
                caption=f"of each method the settings with the highest {METRIC_TITLES[main]} on validation images",
            )
        )
    return found
