"""What this package does in a run: its drafts, the controller's decisions, what both cost, and the engines' health."""

import numpy as np

from efficient_rollout.dashboards import figures
from efficient_rollout.dashboards.figures import Panel, Section, line_panel
from efficient_rollout.metrics import names
from efficient_rollout.training_runs.run import Run, Values

# Of a position: no draft is longer, and a name in a foreign file may be anything.
_MOST_DIGITS = 3
_MOST_REASONS = 8
_BYTES_PER_MIB = 2**20
_SPEEDUPS = {"predicted": names.PREDICTED_SPEEDUP, "measured": names.MEASURED_SPEEDUP}
_SECONDS = {"weight sync": names.WEIGHT_SYNC_SECONDS, "requantizing in it": names.REQUANTIZE_SECONDS}
_COUNTS = {
    "engines that reported": names.NUM_ENGINES,
    "faults of a drafter": names.DRAFTER_FAULTS,
    "stale drafters": names.STALE_DRAFTER,
}
# Of `names.PER_ENGINE`, those that a reader sees a sick engine in at a glance; the others stand in the file.
_SPREAD = {
    "Generated tokens per second of an engine": names.TOKENS_PER_SECOND,
    "Mean accepted length of an engine": names.MEAN_ACCEPTED_LENGTH,
}
_OF_ENGINES = {
    "smallest engine": names.ENGINE_MIN_PREFIX,
    "mean": names.ENGINE_MEAN_PREFIX,
    "largest engine": names.ENGINE_MAX_PREFIX,
}


def drafting_section(own: Run) -> Section:
    """Show acceptance by position of the draft, and the mean accepted length over the steps."""
    lengths = own.reported({"mean accepted length": names.MEAN_ACCEPTED_LENGTH})
    answer = "No step of this run drafted."
    if lengths:
        (of_steps,) = lengths.values()
        answer = (
            f"A request gains {np.nanmedian(of_steps):.2f} tokens per verify pass in the median step, where 1 is no "
            f"gain; the policy accepts {np.nanmedian(own.values(names.ACCEPTANCE_RATE)):.0%} of the drafts."
            f"{_passes(own)}"
        )
    panels = [
        _by_position(own),
        line_panel(
            "Mean accepted length", own.steps, lengths, y_title="per verify pass (tokens)", unit="tokens",
            because="No step of this run drafted.",
        ),
    ]  # fmt: skip
    metrics = (
        names.ACCEPTANCE_RATE_AT_PREFIX, names.MEAN_ACCEPTED_LENGTH, names.ACCEPTANCE_RATE, names.DRAFT_PASSES,
        names.COPIES, names.COPIES_KEPT,
    )  # fmt: skip
    return Section("drafting", "Is drafting good?", answer, panels, metrics)


def _passes(own: Run) -> str:
    with np.errstate(all="ignore"):  # a step may say anything of itself
        num_ticks = own.values(names.ENGINE_TICKS) * own.values(names.SPECULATIVE_TICK_SHARE)
        passes = own.values(names.DRAFT_PASSES) / num_ticks
        kept = own.values(names.COPIES_KEPT) / own.values(names.COPIES)
    passes, kept = passes[np.isfinite(passes)], kept[np.isfinite(kept)]
    if not len(passes):
        return ""
    of_copies = f"; of the copied tokens that they check {np.median(kept):.0%} stand" if len(kept) else ""
    return f" The drafter takes {np.median(passes):.1f} passes a tick{of_copies}."


def _by_position(own: Run) -> Panel:
    title = "Acceptance by position of the draft"
    tails = {name.rpartition("/")[2]: name for name in own.names_under(names.ACCEPTANCE_RATE_AT_PREFIX)}
    found = {int(tail): tails[tail] for tail in tails if tail.isdecimal() and len(tail) <= _MOST_DIGITS}
    if not found:
        return Panel(title, None, "No step of this run reports acceptance by position.")
    positions = sorted(found)
    quartiles = [np.nanpercentile(own.values(found[position]), (25, 50, 75)) for position in positions]
    low, middle, high = np.array(quartiles).T
    drawn = figures.figure(x_title="position in the draft (1 is first)", y_title="accepted of verified (ratio)")
    drawn.add_bar(
        x=positions,
        y=middle,
        marker={"color": figures.OWN_COLOUR, "line": {"width": 0}},
        error_y={"type": "data", "symmetric": False, "array": high - middle, "arrayminus": middle - low,
                 "color": figures.GREY},
        showlegend=False,
        hovertemplate="position %{x}: %{y:.1%}<extra></extra>",
    )  # fmt: skip
    drawn.update_yaxes(range=[0, 1.05], tickformat=".0%")
    drawn.update_xaxes(tickmode="array", tickvals=positions)
    note = "Medians over the steps, with their quartiles. A draft behind a rejected one counts as not accepted."
    return Panel(title, drawn, note)


def decisions_section(own: Run) -> Section:
    """Show predicted against measured speed-up, and the shares of the reasons."""
    predicted, measured = (own.values(metric) for metric in _SPEEDUPS.values())
    both = (predicted > 0.0) & (measured > 0.0)
    answer = "This run's rule predicts nothing (only cost_model does), or no step drafted: there is nothing to compare."
    if both.any():
        error = float(np.median(np.abs(predicted[both] / measured[both] - 1.0)))
        answer = (
            f"Drafting ticks were {np.median(measured[both]):.2f} times as fast as plain decoding in the median step, "
            f"and {np.median(predicted[both]):.2f} was predicted; the prediction is off by {error:.0%} in the median, "
            f"and drafting lost time in {int((measured[both] < 1.0).sum())} of {int(both.sum())} steps."
        )
    speed = line_panel(
        "Speed-up of ticks that drafted", own.steps, own.reported(_SPEEDUPS), unit="times as fast", from_zero=False,
        y_title="times as fast as plain decoding (ratio)", said="Below the dotted line, drafting loses time.",
        because="No step reports a predicted speed-up.",
    )  # fmt: skip
    if speed.figure is not None:
        speed.figure.add_hline(y=1.0, line=figures.DOTTED)
    metrics = (*_SPEEDUPS.values(), names.REASON_SHARE_PREFIX, names.SPECULATIVE_TICK_SHARE)
    return Section("controller", "Is the controller right?", answer, [speed, _reasons(own)], metrics)


def _reasons(own: Run) -> Panel:
    title = "Why the controller decided as it did"
    found = own.names_under(names.REASON_SHARE_PREFIX)
    if not found:
        return Panel(title, None, "No step reports the controller's reasons: drafting was off.")
    # A reason that a step does not report is one it had no tick for.
    shares = {name.removeprefix(names.REASON_SHARE_PREFIX): np.nan_to_num(own.values(name)) for name in found}
    ordered = sorted(shares, key=lambda reason: -float(shares[reason].sum()))
    series = {reason: shares[reason] for reason in ordered[:_MOST_REASONS]}
    if ordered[_MOST_REASONS:]:
        series["others"] = np.sum([shares[reason] for reason in ordered[_MOST_REASONS:]], axis=0)
    drawn, note = figures.stacked_bars(own.steps, series, y_title="share of ticks (ratio)", unit="of ticks")
    drawn.update_yaxes(tickformat=".0%", range=[0, 1])
    return Panel(title, drawn, note)


def cost_section(own: Run) -> Section:
    """Show seconds of syncing, requantizing and drafting by step, of one engine; and the drafter's memory."""
    seconds = own.reported(_SECONDS)
    # Reported as a sum over engines, which need not be as many always.
    drafting = own.values(names.DRAFT_SECONDS) / np.maximum(1.0, own.values(names.NUM_ENGINES))
    if np.isfinite(drafting).any():
        seconds["drafting"] = drafting
    size: dict[str, Values] = own.reported({"largest engine": names.DRAFTER_BYTES})
    size = {label: values / _BYTES_PER_MIB for label, values in size.items()}
    told = [f"{label} takes {np.nanmedian(values):.3g} s" for label, values in seconds.items()]
    answer = f"In the median step {', '.join(told)}." if told else "This run reports no seconds of syncing or drafting."
    memory = "".join(f" The drafter takes {np.nanmax(values):.3g} MiB." for values in size.values())
    panels = [
        line_panel(
            "Seconds a step", own.steps, seconds, y_title="seconds of a step (s)", unit="s",
            said="Drafting is the mean over engines; the other two are the slowest engine's.",
            because="No step reports them.",
        ),
        line_panel(
            "Memory of the drafter's own weights", own.steps, size, y_title="memory (MiB)", unit="MiB",
            because="No step reports it.",
        ),
    ]  # fmt: skip
    metrics = (*_SECONDS.values(), names.DRAFT_SECONDS, names.DRAFTER_BYTES)
    return Section("cost", "What does it cost?", f"{answer}{memory}", panels, metrics)


def health_section(own: Run) -> Section:
    """Show counts by step, and the smallest and the largest engine beside the mean where there are several."""
    panels = [
        line_panel(
            "Engines and their faults", own.steps, own.reported(_COUNTS), y_title="count", unit="",
            said="The metrics are sums over engines: which engine it was stands in the log.",
            because="No step reports its engines.",
        )
    ]  # fmt: skip
    if np.nanmax(np.append(own.values(names.NUM_ENGINES), 1.0)) > 1:
        panels += [_spread(own, title, quantity) for title, quantity in _SPREAD.items()]
    metrics = (*_COUNTS.values(), *_SPREAD.values())
    return Section("engines", "Is an engine sick?", _health(own), panels, metrics)


def _spread(own: Run, title: str, quantity: str) -> Panel:
    series = own.reported({label: names.over_engines(prefix, quantity) for label, prefix in _OF_ENGINES.items()})
    unit = names.declared(quantity).unit
    return line_panel(title, own.steps, series, y_title=unit, unit=unit, because="No step reports it of two engines.")


def _health(own: Run) -> str:
    if not own.reported(_COUNTS):
        return "Cannot tell: no step reports its engines."
    signs = []
    engines, faults, stale = (own.values(metric) for metric in _COUNTS.values())
    if np.nansum(faults) > 0:
        first = own.steps[int(np.flatnonzero(np.nan_to_num(faults) > 0)[0])]
        signs.append(f"faults that turned a drafter off: {np.nansum(faults):.0f}, the first in step {first}")
    if np.nansum(stale) > 0:
        num_steps = int((np.nan_to_num(stale) > 0).sum())
        signs.append(f"a drafter did not follow the policy in {num_steps} of {len(own.steps)} steps")
    if np.isfinite(engines).any() and np.nanmin(engines) < np.nanmax(engines):
        signs.append(f"between {np.nanmin(engines):.0f} and {np.nanmax(engines):.0f} engines reported")
    sick = f"Yes: {'; '.join(signs)}. The run's log says what happened."
    well = "No: no fault, no stale drafter, and the same number of engines in every step."
    return f"{sick if signs else well}{_proof(own)}{_apart(own)}"


def _proof(own: Run) -> str:
    """Tell what weight syncs have shown of the weights; return nothing where no step reports it."""
    shares, sent = own.values(names.PROVEN_WEIGHT_SHARE), own.values(names.WEIGHTS_AS_SENT)
    num_syncs = int(np.isfinite(shares).sum())
    if not num_syncs:
        return ""
    return (
        f" The engines hold what came in {num_syncs} of {len(own.steps)} steps, looked at in turn for at least "
        f"{100 * np.nanmin(shares):.0f} % of the weights; in {int(np.nansum(sent))} it came with the checksums of the "
        f"trainer. The last: {own.values(names.WEIGHTS_CHECKSUM)[np.isfinite(shares)][-1]:.0f}."
    )


def _apart(own: Run) -> str:
    """Tell how far the slowest and the fastest engine are apart; return nothing with one engine."""
    smallest, largest = (
        own.values(names.over_engines(prefix, names.TOKENS_PER_SECOND))
        for prefix in (names.ENGINE_MIN_PREFIX, names.ENGINE_MAX_PREFIX)
    )
    ratios = smallest[largest > 0] / largest[largest > 0]
    ratios = ratios[np.isfinite(ratios)]
    if not ratios.size:
        return ""
    return f" In the median step the slowest engine gives {np.median(ratios):.2f} of the fastest one's tokens a second."
