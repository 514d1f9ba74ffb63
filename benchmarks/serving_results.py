"""What `serving.py` measured: medians over its rounds, the goals, and the page."""

import math
import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

BARE = "openvino"
"""The engine of tlray, by whose rate the open loops are set."""

ENGINES = (BARE, "tensorflow")


@dataclass(frozen=True, slots=True)
class Load:
    """One kind of load.

    Attributes:
        name: As in the results.
        clients: Of the closed loop; 0: open loop.
        factor: Of the open loop: its rate in those of the bare model.
    """

    name: str
    clients: int = 0
    factor: float = 0.0

    def arguments(self, bare_per_s: float) -> list[str]:
        """Returns what `load.py` is told."""
        if self.clients:
            return ["--clients", str(self.clients)]
        return ["--rate-per-s", f"{self.factor * bare_per_s:.3f}"]


LOADS = (
    Load("1 client", clients=1),
    Load("8 clients", clients=8),
    Load("64 clients", clients=64),
    Load("half the bare rate", factor=0.5),
    Load("twice the bare rate", factor=2.0),
)
ONE, SATURATED = LOADS[0].name, LOADS[2].name

PEERS, SAME_ENGINE = ("litserve", "bentoml", "fastapi"), "litserve_openvino"
"""The peers with TensorFlow, and the one that shows what tlray's server, and not its engine, is worth."""


DISTURBED = 0.5
"""Largest number of tasks for each CPU that may run before a server is started; with more its round is disturbed."""

LEAST_CPU_MS = 0.05
"""Processes below this CPU time an image, in every load, are not shown."""


class Figures:
    """Medians over rounds."""

    def __init__(self, rounds: Sequence[dict[str, Any]]) -> None:
        self._rounds = rounds

    def bare(self, key: str, engine: str = BARE) -> float:
        """Returns a figure of a bare engine."""
        return statistics.median(found[engine][key] for found in self._rounds)

    def of(self, system: str, load: str, key: str) -> float:
        """Returns a figure of a load's answer, such as `images_per_s`, or a latency, such as `p99`; inf: none."""
        values: list[float] = []
        for found in self._rounds:
            one = found[system]["loads"][load]
            values.append((one["latency_ms"] or {}).get(key, math.inf) if key not in one else one[key])
        return statistics.median(values)

    def refused(self, system: str, load: str) -> str:
        """Returns what was answered but 200, in all rounds."""
        outcomes: Counter[str] = Counter()
        for found in self._rounds:
            outcomes.update(found[system]["loads"][load]["outcomes"])
        total = sum(outcomes.values())
        others = [f"{outcome}: {count / total:.0%}" for outcome, count in sorted(outcomes.items()) if outcome != "200"]
        return ", ".join(others) or "-"

    def cpu_ms(self, system: str, load: str) -> dict[str, float]:
        """Returns a system's CPU time in ms an answered image, by process; empty if it answered none."""
        loads = [found[system]["loads"][load] for found in self._rounds]
        loads = [each for each in loads if each["num_answered"]]
        names = dict.fromkeys(name for each in loads for name in each["server_cpu_s_by_part"])
        return {
            name: statistics.median(
                each["server_cpu_s_by_part"].get(name, 0.0) / each["num_answered"] * 1e3 for each in loads
            )
            for name in names
        }

    def memory_gib(self, system: str) -> float:
        """Returns a system's memory after all loads."""
        return statistics.median(found[system]["memory_bytes"] for found in self._rounds) / 2**30


def goals(figures: Figures, systems: Sequence[str]) -> list[str]:
    """Returns a line for each goal: what it is, what was measured, and whether that is enough."""
    if "tlray" not in systems:
        return []
    peers = [name for name in systems if name in PEERS]
    rate = figures.of("tlray", SATURATED, "images_per_s")
    bare = rate / figures.bare("images_per_s")
    lines = [_goal("of the bare engine's images/s at 64 clients", bare, at_least=0.75)]
    if SAME_ENGINE in systems:
        ratio = rate / figures.of(SAME_ENGINE, SATURATED, "images_per_s")
        lines.append(_goal("times LitServe's images/s with the same engine, at 64 clients", ratio, at_least=1.0))
    if peers:
        rates = {name: figures.of(name, SATURATED, "images_per_s") for name in peers}
        best = max(peers, key=rates.__getitem__)
        what = f"times the images/s of the best peer with TensorFlow ({best}), at 64 clients"
        lines.append(_goal(what, rate / rates[best], at_least=2.0))
    for load, key in ((SATURATED, "p99"), (ONE, "p50")) if peers else ():
        of_peers = {name: figures.of(name, load, key) for name in peers}
        quickest = min(peers, key=of_peers.__getitem__)
        what = f"times the best peer's {key} ({quickest}), {load}"
        lines.append(_goal(what, figures.of("tlray", load, key) / of_peers[quickest], at_most=1.0))
    return lines


def _goal(what: str, found: float, *, at_least: float | None = None, at_most: float | None = None) -> str:
    is_met = found >= at_least if at_least is not None else found <= (at_most or 0.0)
    wanted = f"at least {at_least:g}" if at_least is not None else f"at most {at_most:g}"
    return f"| {what} | {wanted} | **{found:.2f}** | {'yes' if is_met else 'no'} |"


def disturbed(rounds: Sequence[dict[str, Any]], num_cpus: int) -> list[str]:
    """Returns a warning if other work ran on the machine just before a system was started in a round; else nothing.

    Args:
        rounds: What `serving.measure` found in each round.
        num_cpus: Number of the machine's CPUs.
    """
    named = [
        f"{name} in round {number} ({found['running_before']:.1f})"
        for number, round_ in enumerate(rounds, start=1)
        for name, found in round_.items()
        if found["running_before"] > DISTURBED * num_cpus
    ]
    if not named:
        return []
    return [
        f"**Disturbed by other work: {', '.join(named)}.** In brackets: tasks that ran or waited for one of the "
        f"{num_cpus} CPUs just before it was started; above {DISTURBED * num_cpus:g} its figures are worth little."
    ]


def _cpu_table(figures: Figures, systems: Sequence[str]) -> list[str]:
    """Returns a Markdown table of the CPU time by process, of each system the busiest at 64 clients first."""
    lines = [
        "## CPU ms an image, by process",
        "",
        f"| server | process | {' | '.join(load.name for load in LOADS)} |",
        f"| --- | --- |{' ---: |' * len(LOADS)}",
    ]
    for system in systems:
        by_load = {load.name: figures.cpu_ms(system, load.name) for load in LOADS}
        names = dict.fromkeys(name for found in by_load.values() for name in found)
        for name in sorted(names, key=lambda each: -by_load[SATURATED].get(each, 0.0)):
            if max(found.get(name, 0.0) for found in by_load.values()) < LEAST_CPU_MS:
                continue
            cells = [f"{found.get(name, 0.0):.1f}" if found else "-" for found in by_load.values()]
            lines.append(f"| {system} | {name} | {' | '.join(cells)} |")
    return lines


def to_markdown(about: dict[str, Any], measured: dict[str, Any]) -> str:
    """Returns the results as a page.

    Args:
        about: What `serving.describe` tells.
        measured: What `serving.measure` found.
    """
    figures, systems, sent = Figures(measured["rounds"]), about["systems"], about["sent"]
    computer, load_average = about["machine"], about["load_1_min"]
    own_cpus = [
        load["own_cpus"] for found in measured["rounds"] for name in systems for load in found[name]["loads"].values()
    ]
    lines = [
        f"# The endpoint beside its peers, {about['date']}",
        "",
        f"    {about['command']}",
        "",
        *(line for warning in disturbed(measured["rounds"], computer["num_cores"]) for line in (warning, "")),
        *(
            f"Bare {engine} ({measured['rounds'][0][engine]['precision']}): "
            f"**{figures.bare('images_per_s', engine):.1f} images/s** in batches of 32, "
            f"{figures.bare('single_ms', engine):.1f} ms for a single image."
            for engine in ENGINES
        ),
        f"Decoding takes {figures.bare('decode_ms'):.1f} ms.",
        "",
        "| goal: tlray | wanted | measured | met |",
        "| --- | --- | --- | --- |",
        *goals(figures, list(systems)),
    ]
    for load in LOADS:
        rate = f" ({load.factor * measured['rate_per_s']:.1f} images/s are sent)" if load.factor else ""
        lines += [
            "",
            f"## {load.name}{rate}",
            "",
            "| server | images/s | p50, ms | p95, ms | p99, ms | other answers | its CPU time an image, ms |",
            "| --- | --- | --- | --- | --- | --- | --- |",
            *(_row(figures, name, load.name) for name in systems),
        ]
    lines += ["", *_cpu_table(figures, list(systems))]
    lines += [
        "",
        f"- Medians of {len(measured['rounds'])} rounds, in which all take turns in another order; each load counts "
        f"for {sent['duration_s']:g} s after {sent['warmup_s']:g} s that do not. The bare model is measured at the "
        "beginning of each round.",
        "- Images/s are those answered with 200 in that time, latencies those of the requests due in it, by 200s only; "
        f"other answers are in percent of these requests, and after {sent['timeout_s']:g} s a request is given up "
        "(`timed_out`). In the open loop latency counts from the time at which an image was to be sent.",
        f"- What is sent: {sent['num_images']} slices as grey JPEGs (quality {sent['jpeg_quality']}), one a request, "
        f"as a form. The load generator shares the machine and takes {min(own_cpus):.2f} to {max(own_cpus):.2f} CPUs.",
        "- CPU time by process: `replica Ingress` answers requests, and decodes and predicts where no other replica "
        "does; `main process` is what was started, `rest of Ray` its dashboard, agents and logs. A server's children "
        f"without a name are numbered in the order of their start. What stays below {LEAST_CPU_MS:g} ms is left out.",
        "- The same model, on OpenVINO in tlray and serve_batch; in TensorFlow its variables are constants. Decoding "
        "by `tlray.data.decoding`, and batches of at most 32 everywhere; threads and access logs as each server and "
        "engine have them by default; all share the machine's CPUs. Before any load a server must say of an image what "
        "its bare engine says.",
        *(f"- `{name}`: {how}; {figures.memory_gib(name):.1f} GiB." for name, how in systems.items()),
        f"- Machine: {computer['cpu']}, {computer['num_cores']} cores, {computer['memory_gib']} GiB; load average over "
        f"a minute {load_average['before']} before, {load_average['after']} at the end.",
        f"- Model: {about['model']}. Versions: "
        f"{', '.join(f'{name} {version}' for name, version in about['versions'].items())}.",
    ]
    return "\n".join(lines) + "\n"


def _row(figures: Figures, name: str, load: str) -> str:
    cells = [f"**{figures.of(name, load, 'images_per_s'):.1f}**"]
    cells += [f"{figures.of(name, load, key):.0f}" for key in ("p50", "p95", "p99")]
    cells.append(figures.refused(name, load))
    num_answered = figures.of(name, load, "num_answered")
    cells.append(f"{figures.of(name, load, 'server_cpu_s') / num_answered * 1e3:.0f}" if num_answered else "-")
    return f"| {name} | {' | '.join(cells)} |"
