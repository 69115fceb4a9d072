"""What `efficient-rollout serve` serves: its counters on `/metrics`, a client's requests, its end."""

import json
import math
import re
import shutil
import signal
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from job_support import is_alive
from server_support import API_KEY, MODEL, Server, free_port, serving, streamed

from efficient_rollout.cleanup import descendants
from efficient_rollout.metrics.names import all_exported
from efficient_rollout.metrics.rollout_stats import RolloutStats
from efficient_rollout.tasks.policy import ensure_policy

pytestmark = pytest.mark.engine

SETTINGS = ("drafter.scheme=int8", "controller.rule=batch_threshold", "controller.max_running_requests=2")
MAX_DRAFT_TOKENS = 4
# Debian's package `prometheus` brings both.
PROMETHEUS, PROMTOOL = shutil.which("prometheus"), shutil.which("promtool")
# Of a rule that predicts nothing.
WITHOUT_DATA = {"Measured speed-up of ticks that drafted", "Predicted and measured speed-up"}
SAMPLE = re.compile(r"(?P<name>[a-zA-Z_:]+)\{(?P<labels>[^}]*)\} (?P<value>\S+)")
LABEL = re.compile(r'(\w+)="([^"]*)"')

Samples = dict[tuple[str, str], float]


@pytest.fixture(scope="module")
def policy() -> Path:
    return ensure_policy("nano")


@pytest.fixture(scope="module")
def server(policy, tmp_path_factory) -> Iterator[Server]:
    """As docs/vllm.md starts it; vLLM's development mode lets the test call its workers."""
    log = tmp_path_factory.mktemp("server") / "log"
    with serving(["-m", "efficient_rollout", "serve", str(policy), *SETTINGS, "--"], log) as server:
        yield server


@pytest.fixture(scope="module")
def address(server) -> str:
    return server.address


def get(url: str, **headers: str) -> str:
    """The body, as text."""
    request = urllib.request.Request(url, headers={name.replace("_", "-"): value for name, value in headers.items()})
    with urllib.request.urlopen(request, timeout=60) as answer:
        return answer.read().decode()


def post(url: str, body: dict[str, Any]) -> Any:
    """The answer's JSON."""
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {API_KEY}"}
    request = urllib.request.Request(url, json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request, timeout=120) as answer:
        return json.loads(answer.read())


def call(address: str, method: str, **kwargs: Any) -> Any:
    """What the engine's one rank answers."""
    (answer,) = post(f"{address}/collective_rpc", {"method": method, "kwargs": kwargs})["results"]
    return answer


def generate(address: str, *, num_responses: int, max_tokens: int) -> None:
    """Responses to one prompt, together."""
    post(
        f"{address}/v1/completions",
        {"model": MODEL, "prompt": [5, 7, 9, 11], "n": num_responses, "max_tokens": max_tokens, "ignore_eos": True,
         "temperature": 1.0, "seed": 3},
    )  # fmt: skip


def samples(text: str) -> Samples:
    """Value by name and by what labels there are beside model and engine; those must be this server's."""
    found = {}
    for line in text.splitlines():
        if (match := SAMPLE.fullmatch(line)) and match["name"].startswith(("efficient_rollout_", "vllm:spec_decode")):
            labels = dict(LABEL.findall(match["labels"]))
            assert (labels.pop("model_name"), labels.pop("engine")) == (MODEL, "0")
            found[match["name"], ",".join(labels.values())] = float(match["value"])
    return found


def totals(address: str) -> RolloutStats:
    """The engine's own counts since it started."""
    return RolloutStats.from_dict(call(address, "rollout_totals"))


@pytest.fixture(scope="module")
def worked(address) -> RolloutStats:
    """The engine's record after ticks above the threshold and below it, responses that end within a draft included."""
    generate(address, num_responses=4, max_tokens=30)
    for max_tokens in (23, 41, 58):
        generate(address, num_responses=1, max_tokens=max_tokens)
    # An engine runs one more, empty tick after its last request, which brings the rest of the counts.
    for _ in range(50):
        stats = totals(address)
        if stats.num_generated_tokens == 4 * 30 + 23 + 41 + 58:
            return stats
        time.sleep(0.1)
    pytest.fail(f"counted {stats.num_generated_tokens} tokens")


def test_every_exported_number_is_the_engine_s_own(address, worked):
    found = samples(get(f"{address}/metrics"))
    expected = {
        (name, label): value for name, one in all_exported().items() for label, value in one.values(worked).items()
    }
    ours = {key: value for key, value in found.items() if key[0].startswith("efficient_rollout_")}
    assert ours == pytest.approx(expected)
    assert ours["efficient_rollout_speculative_ticks_total", ""] > 20
    assert ours["efficient_rollout_draft_seconds_total", ""] > 0.0
    assert ours["efficient_rollout_drafter_bytes", ""] > 1e5
    assert {label for name, label in ours if name == "efficient_rollout_ticks_total"} >= {
        "batch_above_threshold",
        "batch_below_threshold",
    }


def test_vllm_s_counters_of_drafts_are_right_for_this_engine(address, worked):
    found = samples(get(f"{address}/metrics"))
    assert found["vllm:spec_decode_num_drafts_total", ""] == worked.num_verify_passes
    assert found["vllm:spec_decode_num_draft_tokens_total", ""] == worked.num_draft_tokens
    assert found["vllm:spec_decode_num_accepted_tokens_total", ""] == worked.num_accepted_tokens
    by_position = [
        found["vllm:spec_decode_num_accepted_tokens_per_pos_total", str(position)]
        for position in range(MAX_DRAFT_TOKENS)
    ]
    assert by_position == worked.accepted_per_position
    # What vLLM has no number of: drafts were cut at the ends of responses, so fewer are at later positions.
    assert worked.drafted_per_position[-1] < worked.num_verify_passes


def test_counters_only_grow_whoever_takes_the_statistics(address, worked):
    taken = call(address, "take_rollout_stats")
    assert RolloutStats.from_dict(taken).num_generated_tokens == worked.num_generated_tokens
    after = samples(get(f"{address}/metrics"))
    assert after["efficient_rollout_speculative_ticks_total", ""] == worked.num_speculative_ticks
    assert after["efficient_rollout_draft_seconds_total", ""] == pytest.approx(worked.draft_seconds)


def test_a_weight_sync_is_counted(address, worked, policy):
    before = samples(get(f"{address}/metrics"))
    for _ in range(2):
        call(address, "reload_weights", weights_path=str(policy))
    after = samples(get(f"{address}/metrics"))
    assert before["efficient_rollout_weight_syncs_total", ""] == 0
    assert after["efficient_rollout_weight_syncs_total", ""] == 2
    assert (
        after["efficient_rollout_weight_sync_seconds_total", ""]
        > after["efficient_rollout_requantize_seconds_total", ""]
    )
    assert after["efficient_rollout_requantize_seconds_total", ""] > 0.0


def test_the_answer_is_whole_for_whoever_asks(address, worked):
    """As Prometheus asks: for another text format, and for a packed answer."""
    asked = get(
        f"{address}/metrics",
        Accept="application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5",
        Accept_Encoding="gzip",
    )
    assert "# EOF" not in asked
    assert asked.count("# TYPE efficient_rollout_ticks_total counter") == 1
    assert "vllm:num_requests_running" in asked
    assert asked.endswith("\n")
    assert "# TYPE" not in get(f"{address}/v1/models", Authorization=f"Bearer {API_KEY}")


def test_a_client_streams_the_same_text_with_drafts_and_without(server):
    client = server.client()
    given = {"prompt": "12+7+9+30=", "seed": 4, "temperature": 1.0, "max_tokens": 40, "stop": ["3"]}
    at_once = client.completions.create(model=MODEL, **given).choices[0]
    before = totals(server.address).num_draft_tokens
    never = streamed(client, **given, extra_body={"vllm_xargs": {"efficient_rollout_max_draft_tokens": 0}})
    assert totals(server.address).num_draft_tokens == before > 0
    assert streamed(client, **given) == never == [(at_once.text, at_once.finish_reason)]


@pytest.mark.parametrize("wrong", [MAX_DRAFT_TOKENS + 1, -1, "2"])
def test_a_word_that_is_none_is_a_bad_request(server, wrong):
    from openai import BadRequestError

    word = {"vllm_xargs": {"efficient_rollout_max_draft_tokens": wrong}}
    with pytest.raises(BadRequestError, match=rf"from 0 \(no drafts\) to 4, .* got {wrong!r}"):
        server.client().completions.create(model=MODEL, prompt="1+2=", extra_body=word)
    assert server.client().completions.create(model=MODEL, prompt="1+2=", max_tokens=2).choices


def _wait_until_healthy(url: str) -> None:
    for _ in range(60):
        try:
            get(url)
        except (urllib.error.URLError, ConnectionError):
            time.sleep(0.5)
        else:
            return
    pytest.fail(f"{url} does not answer")


@pytest.fixture
def prometheus(address, repository, tmp_path) -> Iterator[str]:
    """A real one that scrapes the server each second, with this package's rules."""
    rules = repository / "docs" / "grafana" / "efficient_rollout_rules.yaml"
    config = {
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"}, "rule_files": [str(rules)],
        "scrape_configs": [{"job_name": "vllm", "static_configs": [{"targets": [address.removeprefix("http://")]}]}],
    }  # fmt: skip
    (tmp_path / "prometheus.yml").write_text(json.dumps(config))
    subprocess.run([PROMTOOL, "check", "config", tmp_path / "prometheus.yml"], check=True)
    url = f"127.0.0.1:{free_port()}"
    options = {"config.file": tmp_path / "prometheus.yml", "storage.tsdb.path": tmp_path / "data",
               "web.listen-address": url}  # fmt: skip
    with (tmp_path / "log").open("w") as log:
        command = [PROMETHEUS, *(f"--{name}={value}" for name, value in options.items())]
        server = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        _wait_until_healthy(f"http://{url}/-/healthy")
        yield f"http://{url}/api/v1"
    finally:
        server.terminate()
        server.wait(timeout=30)


@pytest.mark.skipif(PROMETHEUS is None or PROMTOOL is None, reason="apt-get install prometheus")
def test_every_panel_s_query_has_data_in_a_real_prometheus(address, prometheus, policy, repository):
    text = get(f"{address}/metrics")
    ours = text[text.index("# HELP efficient_rollout_") :]
    subprocess.run([PROMTOOL, "check", "metrics"], input=ours.encode(), check=True)
    for max_tokens in (40, 60, 40, 60):
        generate(address, num_responses=1, max_tokens=max_tokens)
        generate(address, num_responses=4, max_tokens=20)
        call(address, "reload_weights", weights_path=str(policy))
        time.sleep(1.5)

    dashboard = json.loads((repository / "docs" / "grafana" / "efficient_rollout.json").read_text())
    empty = set()
    for panel in dashboard["panels"]:
        for target in panel.get("targets", []):
            query = target["expr"].replace("$__rate_interval", "30s").replace("$model", ".*")
            result = json.loads(get(f"{prometheus}/query?{urllib.parse.urlencode({'query': query})}"))["data"]["result"]
            values = [float(one["value"][1]) for one in result]
            if not any(map(math.isfinite, values)):
                empty.add(panel["title"])
    assert empty == WITHOUT_DATA
    (group,) = json.loads(get(f"{prometheus}/rules"))["data"]["groups"]
    assert {rule["health"] for rule in group["rules"]} == {"ok"}
    assert {rule["state"] for rule in group["rules"]} == {"inactive"}


def test_the_key_is_vllm_s_own(server):
    from openai import AuthenticationError

    with pytest.raises(AuthenticationError):
        server.client().with_options(api_key="another").models.list()


def test_ctrl_c_ends_every_process_and_is_told_by_the_exit_code(server):
    started = descendants(server.process.pid)
    assert len(started) >= 2, "the server's, and the engine's"
    server.process.send_signal(signal.SIGINT)
    assert server.process.wait(60) == 130
    assert [pid for pid in started if is_alive(pid)] == []
    assert server.log.read_text().rstrip().endswith("serve: interrupted; every process of the run has ended")
