"""Tables of what the mean accuracy does not say: calibration, F1, worst clients, and single domains."""

from collections.abc import Mapping, Sequence

import pyarrow as pa
import pyarrow.compute as pc

from fedpgp.analysis.comparison import MEASURE_TITLES, METRIC_TITLES, Group, measured
from fedpgp.analysis.report.tables import Cell, Table, mean_std, ranked, titled
from fedpgp.federation.measures import of_counts, smaller_is_better
from fedpgp.federation.metrics import METRICS, TESTED, last_evaluated
from fedpgp.storage.run_folder import RunFolder

TITLE = "Calibration, F1 and worst clients in percent"
DOMAINS_TITLE = "Accuracy on test images by domain in percent, mean over clients"
CAPTION = (
    "ECE: expected calibration error in 15 bins, smaller is better; ECE, macro F1 and balanced accuracy: over all "
    "images of the clients together; worst and 10th percentile: of the clients' accuracies"
)
PER_DOMAIN = ("accuracy", "ece", "f1", "balanced")


def of_groups(groups: Sequence[Group], scenario: str = "") -> Table:
    """The measures of every metric on test images, groups one below the other; no rows if no group has any."""
    rows: list[list[Cell | str]] = []
    for metric in measured(groups):
        names = {measure: f"{metric}_{measure}" for measure in MEASURE_TITLES}
        found = {name: [group.statistic(name) for group in groups] for name in names.values()}
        columns = [ranked(own, smallest_first=smaller_is_better(f"test/{name}")) for name, own in found.items()]
        for number, group in enumerate(groups):
            if any(own[number] for own in found.values()):
                rows.append([METRIC_TITLES[metric], group.label, *(column[number] for column in columns)])
    headings = ("metric", "", *MEASURE_TITLES.values())
    title = titled(f"{TITLE}, test images", scenario)
    return Table(title, headings, rows, text_columns=2, caption=f"after the last round; {CAPTION}")


def domains_of_groups(groups: Sequence[Group], scenario: str = "") -> Table:
    """Accuracy by domain of every metric, groups one below the other; no rows if the data have one domain."""
    names = dict.fromkeys(name for group in groups for run in group.runs.values() for name in run.metrics)
    metrics = measured(groups)
    starts = tuple(f"test/{metric}." for metric in metrics)
    domains = list(dict.fromkeys(name.partition(".")[2] for name in names if name.startswith(starts)))
    rows: list[list[Cell | str]] = []
    for metric in metrics:
        found = {domain: [group.statistic(f"{metric}.{domain}") for group in groups] for domain in domains}
        columns = [ranked(own) for own in found.values()]
        for number, group in enumerate(groups):
            if any(own[number] for own in found.values()):
                rows.append([METRIC_TITLES[metric], group.label, *(column[number] for column in columns)])
    caption = "after the last round; each domain over the clients that have images of it"
    return Table(titled(DOMAINS_TITLE, scenario), ("metric", "", *domains), rows, text_columns=2, caption=caption)


BUILDERS = (of_groups, domains_of_groups)


def of_run(metrics: Mapping[str, Mapping[str, float]]) -> Table:
    """The measures of a run after the last round, from its `selections`; no rows if it has none."""
    rows = []
    for split in TESTED:
        for metric in METRICS:
            names = [f"{split}/{metric}_{measure}" for measure in MEASURE_TITLES]
            if any(name in metrics for name in names):
                values = (mean_std(metrics[name]["last"] if name in metrics else None) for name in names)
                rows.append((split, METRIC_TITLES[metric], *values))
    headings = ("split", "metric", *MEASURE_TITLES.values())
    return Table(TITLE, headings, rows, text_columns=2, caption=f"after the last evaluated round; {CAPTION}")


def domains_of_run(store: RunFolder) -> Table:
    """The test images of a run by domain in the last evaluated round; no rows if the data have one domain."""
    rounds = store.rounds()
    last = last_evaluated(rounds)
    if last is None:
        return Table("", (), ())
    accuracies = next(row.metrics for row in rounds if row.round == last)
    pooled = store.pooled(after=last - 1)
    pooled = pooled.filter(pc.field("round") == last)
    part_of = {domain: title for title, part in store.identity.get("parts", {}).items() for domain in part["domains"]}
    if part_of:  # a union has accuracies of its parts
        names = [part_of[name] for name in pooled["domain"].to_pylist()]
        pooled = pooled.set_column(pooled.schema.get_field_index("domain"), "domain", pa.array(names, pa.string()))
    measures = of_counts(pooled, ("split", "metric", "domain"))
    rows = []
    for metric in METRICS:
        start = f"test/{metric}."
        for name in (name for name in accuracies if name.startswith(start)):
            domain = name.removeprefix(start)
            own = {"accuracy": accuracies[name], **measures.get(("test", metric, domain), {})}
            rows.append((METRIC_TITLES[metric], domain, *(mean_std(own.get(one)) for one in PER_DOMAIN)))
    what = "data set" if part_of else "domain"
    headings = ("metric", what, "accuracy", *(MEASURE_TITLES[one] for one in PER_DOMAIN[1:]))
    title = f"{what.capitalize()}s after round {last}, in percent"
    caption = f"test images; accuracy: mean over the clients that have images of the {what}; the rest: over all images"
    return Table(title, headings, rows, text_columns=2, caption=caption)
