"""`calibrate --from-csv`, as a user calls it."""

import argparse
import json
from pathlib import Path

from efficient_rollout.cost_model.cli import add_calibrate_arguments, run_calibrate

DATA = Path(__file__).parent.parent / "data"


def test_calibrate_writes_provenance_and_held_out_error(tmp_path, capsys):
    parser = argparse.ArgumentParser()
    add_calibrate_arguments(parser)
    table, out = DATA / "sweep_a100_tp1_qwen257b.csv", tmp_path / "p.json"
    assert run_calibrate(parser.parse_args(["--from-csv", str(table), "--out", str(out)])) == 0
    data = json.loads(out.read_text())
    assert data["provenance"]["num_points"] == 30
    assert data["provenance"]["source"] == "sweep_a100_tp1_qwen257b.csv"
    assert data["held_out_error"]["plain"]["num_points"] > 30
    assert f"wrote {out}: fitted on 30 points" in capsys.readouterr().out
