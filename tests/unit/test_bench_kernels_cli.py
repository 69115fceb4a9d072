"""`bench kernels` times every kernel that runs here, and shows each of them at each number of rows."""

import json

import pytest

from efficient_rollout.__main__ import main
from efficient_rollout.bench.kernels_cli import table
from efficient_rollout.tables import spread

pytest.importorskip("vllm", reason="the stock kernel is vLLM's")


def test_every_kernel_is_timed_at_every_number_of_rows(tmp_path, capsys):
    out = tmp_path / "kernels.json"
    arguments = ["--outputs", "256", "--inputs", "128", "--rows", "1,3", "--rounds", "2", "--dtype", "float32"]
    assert main(["bench", "kernels", *arguments, "--json", str(out)]) == 0
    document = json.loads(out.read_text())
    cells = {(row["kernel"], row["rows"]): row for row in document["kernels"]}
    names = {name for name, _ in cells}
    assert len(cells) == 2 * len(names)
    assert "policy, stock" in names
    assert {name.split(",")[0] for name in names} == {"policy", "int8", "int4"}
    assert all(
        0.0 < row["seconds"]["min"] <= row["seconds"]["median"] <= row["seconds"]["max"] for row in cells.values()
    )
    printed = capsys.readouterr().out
    assert all(name in printed for name in names)
    assert document["provenance"]["packages"]


def test_the_table_keeps_kernels_and_rows_apart():
    timed = [
        {"kernel": name, "rows": rows, "seconds": spread([rows * scale / 2, rows * scale, rows * scale * 3])}
        for name, scale in (("a", 1e-3), ("b", 2e-3))
        for rows in (1, 4)
    ]
    lines = table(timed, (1, 4)).splitlines()
    assert lines[1].split() == ["a", "1.000", "[0.500,", "3.000]", "4.000", "[2.000,", "12.000]"]
    assert lines[2].split() == ["b", "2.000", "[1.000,", "6.000]", "8.000", "[4.000,", "24.000]"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--outputs", "100"], "multiples of 128"),
        (["--rounds", "0"], "at least 1"),
        (["--rows", "0"], "--rows must be positive"),
    ],
)
def test_wrong_arguments_are_one_line(arguments, message, capsys):
    assert main(["bench", "kernels", *arguments]) != 0
    assert message in capsys.readouterr().err
