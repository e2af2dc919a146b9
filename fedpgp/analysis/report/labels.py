"""Titles of the metrics and readings."""

METRIC_TITLES = {
    "local": "Local",
    "base": "Base",
    "novel": "Novel",
    "hm": "HM",
    "all": "All",
    "held_out": "Held-out domain",
    "local_global": "Local, global model",
    "base_global": "Base, global model",
    "novel_global": "Novel, global model",
    "all_global": "All, global model",
    "held_out_global": "Held-out, global model",
    "local_before_aggregation": "Local before aggregation",
}
READING_TITLES = {"last": "last", "mean_last_5": "mean of last 5", "max": "max"}
READING_SENTENCES = {
    "last": "after the last round",
    "mean_last_5": "mean of the last 5 evaluated rounds",
    "max": "maximum over rounds, chosen on the images that it reports",
}
