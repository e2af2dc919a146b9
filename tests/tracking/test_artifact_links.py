"""The description of an MLflow run leads to its artifacts."""

from fedpgp.tracking.artifact_links import linked


def test_links_stand_below_the_first_paragraph_and_curves_at_the_end():
    files = ["prompt.safetensors", "figures/curves.png", "clients.csv", "checkpoint.safetensors"]
    assert linked("What it is.\n\n| a table |\n\nRows: `x`", "7", "abc", files) == (
        "What it is.\n\n"
        "Artifacts: "
        "[accuracies of each client](#/experiments/7/runs/abc/artifacts/clients.csv?workflowType=machine_learning), "
        "[curves](#/experiments/7/runs/abc/artifacts/figures/curves.png?workflowType=machine_learning), "
        "[learned prompt](get-artifact?path=prompt.safetensors&run_uuid=abc)\n\n"
        "| a table |\n\nRows: `x`\n\n"
        "![curves](get-artifact?path=figures%2Fcurves.png&run_uuid=abc)"
    )


def test_a_description_without_artifacts_stays_as_it_is():
    assert linked("What it is.\n\nMore.", "7", "abc", []) == "What it is.\n\nMore."
    assert linked("What it is.", "7", "abc", ["other.txt"]) == "What it is."
