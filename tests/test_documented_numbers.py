"""Numbers in README.md and docs/results/*.md are those of the result files beside them."""

import json
import re
import statistics
from itertools import takewhile
from pathlib import Path

import pytest

from benchmarks import adversarial_targets, arm_targets, screen_search, student_targets
from rl.training import seed_intervals

REPO = Path(__file__).resolve().parents[1]
RESULTS = REPO / "docs" / "results"
NUMBER = re.compile(r"[+-]?\d+\.\d+")


def measured(name: str) -> dict:
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def rows_after(text: str, start: str) -> list[list[str]]:
    """Cells of the first table after the line that begins with `start`."""
    lines = iter(text.splitlines())
    assert any(line.startswith(start) for line in lines), f"no line begins with '{start}'"
    table = takewhile(lambda line: line.startswith("|"), (line for line in _from_table(lines)))
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table][2:]


def _from_table(lines):
    for line in lines:
        if line.startswith("|"):
            yield line
            yield from lines


def shown(printed: str, value: float) -> bool:
    """Whether `printed` is `value`, rounded to as many digits."""
    digits = len(printed.partition(".")[2])
    return abs(float(printed) - value) <= 0.5 * 10**-digits + 1e-9


def arm_runs(name: str = "arm_targets") -> dict[str, list[dict]]:
    """The run of every seed, in their order, by algorithm, as of the last time the whole command was through."""
    found: dict[str, dict[int, dict]] = {}
    for run in runs_of(name):
        found.setdefault(run["algorithm"], {})[run["seed"]] = run
    return {algorithm: [seeds[s] for s in sorted(seeds)] for algorithm, seeds in found.items()}


def named(cell: str, algorithms: dict[str, list[dict]]) -> str:
    """The algorithm a cell speaks of."""
    words = re.findall(r"\w+", cell.upper())
    names = [name for name in algorithms if name in words]
    assert len(names) == 1, f"'{cell}' names none of {list(algorithms)}"
    return names[0]


def check_arm_rows(rows: list[list[str]], mean: int, interval: int, seeds: int, runs: dict[str, list[dict]]) -> None:
    """`mean`, `interval` and `seeds`: columns of the mean, of the cell that ends with low and high, of each seed."""
    assert sorted(named(row[0], runs) for row in rows) == sorted(runs), "a row an algorithm that was measured"
    for row in rows:
        own = runs[named(row[0], runs)]
        rates, over = [r["success_rate"] for r in own], seed_intervals.of_success(own)
        assert shown(NUMBER.findall(row[mean])[0], sum(rates) / len(rates)), row
        assert all(map(shown, NUMBER.findall(row[interval])[-2:], (over.low, over.high))), row
        each = NUMBER.findall(row[seeds])
        assert len(each) == len(rates) and all(map(shown, each, rates)), row


def test_the_readme_shows_the_measured_success_of_every_algorithm_and_seed() -> None:
    readme = (REPO / "README.md").read_text(encoding="utf-8")
    check_arm_rows(rows_after(readme, "ArmReach-v1 after 100,000"), 1, 2, 3, arm_runs())


@pytest.mark.parametrize("name", ["arm_targets", "arm_targets_vision"])
def test_the_table_of_arm_targets_is_that_of_its_runs(name: str) -> None:
    if not (RESULTS / f"{name}.md").is_file():
        pytest.skip(f"{name} has not been measured")
    text = (RESULTS / f"{name}.md").read_text(encoding="utf-8")
    check_arm_rows(rows_after(text, "# "), 2, 2, 4, arm_runs(name))
    targets = arm_targets.VISION_TARGETS if "vision" in name else arm_targets.TARGETS
    assert text == arm_targets.table(runs_of(name), targets)  # also of results from before a key was added


def test_the_readme_shows_the_measured_numbers_of_the_teacher() -> None:
    measures = json.loads((RESULTS / "teacher_tiny_evaluation.json").read_text(encoding="utf-8"))["measures"]
    triples = [(m["mean"], m["low"], m["high"]) for m in measures.values()]
    rows = rows_after((REPO / "README.md").read_text(encoding="utf-8"), "Teacher, `tiny`")
    assert rows
    for label, value in rows:
        printed = NUMBER.findall(value)
        assert len(printed) == 3 and any(all(map(shown, printed, t)) for t in triples), f"{label}: {value}"


def runs_of(name: str) -> list[dict]:
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))["runs"]


def check_seeds(row: list[str], values: list[dict[str, float]], keys: tuple[str, ...]) -> None:
    """A label, then one cell a seed that prints these keys."""
    assert len(row) == len(values) + 1
    for cell, value in zip(row[1:], values, strict=True):
        printed = NUMBER.findall(cell)
        assert len(printed) == len(keys) and all(map(shown, printed, (value[k] for k in keys))), row


def test_the_readme_shows_the_measured_numbers_of_the_student() -> None:
    runs = [run["explorer"] for run in runs_of("student_targets")]
    rows = rows_after((REPO / "README.md").read_text(encoding="utf-8"), "Student, 480 episodes")
    measures = ("explore/objects_moved", "explore/wrist_voxels")
    for row, measure in zip(rows[:2], measures, strict=True):
        check_seeds(row, [r["against_random"][measure]["ratio"] for r in runs], ("mean", "low", "high"))
    check_seeds(rows[2], [r["risen"]["return_raw_disagreement"] for r in runs], ("low", "high"))


def test_the_readme_shows_what_training_added_to_the_student_and_what_its_memory_knows() -> None:
    data = measured("student_targets")
    readme = (REPO / "README.md").read_text(encoding="utf-8")
    words, runs = " ".join(readme.split()), [run["explorer"] for run in data["runs"]]
    before = data["untrained"]["against_random"]["explore/objects_moved"]["ratio"]
    assert f"moves {before['mean']:.2f} [{before['low']:.2f}, {before['high']:.2f}] as many objects" in words
    rows = rows_after(readme, "actions. Against it, in the same scenes:")
    measures = ("frame/disagreement", "explore/distance_moved_m", "explore/objects_moved")
    for row, measure in zip(rows, measures, strict=True):
        check_seeds(row, [r["against_untrained"][measure]["ratio"] for r in runs], ("mean", "low", "high"))
    for name in ("memory", "observation"):
        assert ", ".join(f"{r['measures'][f'probe/{name}']['mean']:.3f}" for r in runs) in words


def test_the_tables_of_student_targets_are_those_of_its_runs() -> None:
    """Files of before there was the explorer before training hold the first table alone."""
    text = (RESULTS / "student_targets.md").read_text(encoding="utf-8")
    data = json.loads((RESULTS / "student_targets.json").read_text(encoding="utf-8"))
    explorers = {str(run["seed"]): run["explorer"] for run in data["runs"]}
    before = {student_targets.BEFORE: data["untrained"]} if "untrained" in data else {}
    tables = {"Explorer / random actions": {s: e["against_random"] for s, e in (explorers | before).items()}}
    if before:
        tables["The explorer / itself before"] = {s: e["against_untrained"] for s, e in explorers.items()}
        probed = [[s, *(e["measures"].get(p) for p in student_targets.PROBES)] for s, e in explorers.items()]
        check_intervals(rows_after(text, "Balanced accuracy"), probed)
    for start, comparisons in tables.items():
        ratios = [[s, *(c[m]["ratio"] for m in student_targets.MEASURES)] for s, c in comparisons.items()]
        check_intervals(rows_after(text, start), ratios)


def check_intervals(rows: list[list[str]], expected: list[list]) -> None:
    """Rows of a label and intervals, `-` for one that there is not."""
    for row, (label, *intervals) in zip(rows, expected, strict=True):
        assert row[0] == label and len(row) == 1 + len(intervals)
        for cell, interval in zip(row[1:], intervals, strict=True):
            printed = NUMBER.findall(cell)
            wanted = [] if interval is None else [interval[k] for k in ("mean", "low", "high")]
            assert len(printed) == len(wanted) and all(map(shown, printed, wanted)), row


def test_the_readme_shows_the_measured_numbers_of_the_game() -> None:
    runs = [run["control"] for run in runs_of("adversarial_targets")]
    rows = rows_after((REPO / "README.md").read_text(encoding="utf-8"), "Adversarial, a short game")
    kinds = (("explorer", "frame/nll"), ("explorer", "robust/nll_worst_frames"), ("random", "frame/nll"))
    for row, (whose, measure) in zip(rows, kinds, strict=True):
        check_seeds(row[:-1], [r[whose][measure]["ratio"] for r in runs], ("mean", "low", "high"))
        over = adversarial_targets.over_seeds(runs_of("adversarial_targets"), "control", whose, measure)
        assert all(map(shown, NUMBER.findall(row[-1]), (over.mean, over.low, over.high)))


def test_the_readme_shows_where_a_search_gets_to_beside_the_noisy_screen() -> None:
    runs = runs_of("screen_search")
    rows = rows_after((REPO / "README.md").read_text(encoding="utf-8"), "And where does an optimizer get to?")
    assert [row[0] for row in rows] == list(screen_search.REWARDS)
    for row in rows:
        found = [screen_search.distraction(some)[row[0]] for some in (*([run] for run in runs), runs)]
        check_seeds(row, found, ("mean", "low", "high"))


def test_the_readme_shows_what_the_explorer_trained_beside_the_screen_saw() -> None:
    readme = " ".join((REPO / "README.md").read_text(encoding="utf-8").split())
    data = measured("screen_explorer")
    seen, returns = data["screen_in_view"]["explorer_minus_random"], data["return_raw_entropy"]
    assert f"({seen['mean']:+.3f} [{seen['low']:.3f}, {seen['high']:.3f}] of the view)" in readme
    assert f"entropy rose from {returns[0]:.0f} to {returns[-1]:.0f} nats an episode" in readme
    assert f"in {data['training_episodes']} episodes: its one explorer" in readme


def test_the_readme_shows_the_measured_speed_of_simulator_and_first_command() -> None:
    readme = (REPO / "README.md").read_text(encoding="utf-8")
    speed = json.loads((RESULTS / "sim_speed.json").read_text(encoding="utf-8"))["speed"]
    fastest = next(row for row in speed if row["size"] == 64 and row["num_envs"] == 1)
    assert f"{fastest['steps_per_s']:.0f} environment steps/s" in readme
    first = json.loads((RESULTS / "first_run.json").read_text(encoding="utf-8"))
    assert f"takes {first['wall_seconds']:.0f} s and {first['peak_memory_gib']:.1f} GiB" in readme


def test_the_readme_shows_the_measured_speed_of_phase_2() -> None:
    readme = " ".join((REPO / "README.md").read_text(encoding="utf-8").split())
    rows = {run["envs"]: run for run in runs_of("student_speed")}
    two, eight = (f"{rows[n]['env_steps_per_s']:.0f}" for n in (2, 8))
    assert f"at {two} environment steps/s with two environments and {eight} with eight" in readme
    assert f"takes {rows[2]['seconds']['update']:.1f} s" in readme


def test_the_readme_shows_what_uncertainty_warns_of() -> None:
    found = measured("teacher_heads_evaluation")["measures"]
    unfamiliar = ("action_scale=0.3", "num_objects=24", "domain_randomization.random_appearance=true")
    keys = ["auroc/high_loss", *(f"auroc/unfamiliar/{kind}" for kind in unfamiliar)]
    rows = rows_after((REPO / "README.md").read_text(encoding="utf-8"), "Does the disagreement of the ensemble warn?")
    for key, cells in zip(keys, rows, strict=True):
        for name, cell in zip(("disagreement", "entropy", "nll"), cells[1:], strict=True):
            if f"{key}/{name}" in found:
                m = found[f"{key}/{name}"]
                assert all(shown(p, m[k]) for p, k in zip(NUMBER.findall(cell), ("mean", "low", "high"), strict=True))
            else:
                assert cell == "-"


def test_the_readme_shows_what_the_noisy_screen_pays() -> None:
    words = " ".join((REPO / "README.md").read_text(encoding="utf-8").split())
    (run,) = [r for r in runs_of("noisy_screen") if r["teacher"].endswith("teacher_screen")]
    pays = {k: v["mean"] / v["std"] for k, v in run["measures"].items()}
    assert f"pays {pays['entropy']:.1f} spreads of the entropy reward and {pays['disagreement']:.1f} of the" in words
    (other,) = [r for r in runs_of("noisy_screen") if r is not run and r["teacher"].endswith("teacher_heads")]
    readme = (REPO / "README.md").read_text(encoding="utf-8")
    rows = rows_after(readme, "([noisy_screen.md]")
    for row in rows:
        check_seeds(row, [run["measures"][row[0]]["chosen"]], ("mean", "low", "high"))
    assert [row[0] for row in rows] == ["entropy", "disagreement"] and f"in all episodes ({run['view']:.3f})" in readme
    unknown = other["measures"]["disagreement"]["chosen"]
    assert f"(+{unknown['mean']:.3f} [{unknown['low']:.3f}, {unknown['high']:.3f}])" in words


def test_the_readme_shows_the_measured_speed_of_the_rl_core() -> None:
    readme = (REPO / "README.md").read_text(encoding="utf-8")
    words = " ".join(readme.split())
    ppo = {row["name"]: row["steps_per_second"] for row in measured("ppo_speed")["rows"]}
    assert f"makes {ppo['ours']:,.0f} environment steps/s, compiled {ppo['ours_compiled']:,.0f}" in words
    assert f"rsl_rl {ppo['rsl_rl']:,.0f}, Stable-Baselines3 {ppo['stable_baselines3']:,.0f}" in words
    (arm,) = [row for row in measured("arm_speed")["speed"] if row["num_envs"] == 1024]
    assert f"makes {arm['steps_per_second'] / 1e6:.1f} million steps/s" in words
    sac = {(row["hidden"], row["name"]): row["wall_speedup"] for row in measured("sac_speed")["rows"]}
    names = ("SAC", "SAC bf16", "FastSAC", "FastSAC C51", "FastSAC C51 compiled")
    for hidden, cells in zip((256, 128), rows_after(readme, "Gradient steps/s on one core"), strict=True):
        assert all(shown(c, sac[hidden, n]) for c, n in zip(cells[1:], names, strict=True)), cells


def test_a_number_that_drifted_is_noticed() -> None:
    rates = {"PPO": [0.9, 0.7], "SAC": [1.0]}
    runs = {name: [{"success_rate": r, "episodes": 100} for r in of] for name, of in rates.items()}
    # Resamples of two seeds reach from one of them twice to the other one twice; one seed: Wilson, 100 of 100.
    good = [["PPO", "0.800", "[0.700, 0.900]", "0.900 0.700"], ["SAC (soft)", "1.000", "[0.963, 1.000]", "1.000"]]
    check_arm_rows(good, 1, 2, 3, runs)
    for wrong in (
        [["PPO", "0.801", "[0.700, 0.900]", "0.900 0.700"], good[1]],
        [["PPO", "0.800", "[0.739, 0.900]", "0.900 0.700"], good[1]],
        [["PPO", "0.800", "[0.700, 0.850]", "0.900 0.700"], good[1]],
        [["PPO", "0.800", "[0.700, 0.900]", "0.900 0.710"], good[1]],
        [["PPO", "0.800", "[0.700, 0.900]", "0.900"], good[1]],
        good[:1],
    ):
        with pytest.raises(AssertionError):
            check_arm_rows(wrong, 1, 2, 3, runs)


def test_the_documents_show_the_measured_memory_of_gr00t() -> None:
    found = measured("gr00t_memory_cpu")
    taken, planned = found["measured_bytes"] / 1e9, found["planned_bytes"] / 1e9
    words = " ".join((REPO / "docs" / "gr00t.md").read_text(encoding="utf-8").split())
    assert f"on a CPU it takes {taken:.1f} GB, {taken / planned:.2f} of the plan" in words
    assert f"{planned:.1f} GB together" in words
    assert f"which takes {found['plan']['making'] / 1e9:.1f} GB for a moment" in words
    assert 0.9 * planned < taken <= planned  # the plan is an upper bound, and a close one
    assert not found["code_commit"].endswith("-dirty")


def test_the_documents_show_the_measured_comparison_with_rsl_rl() -> None:
    found = measured("isaac_cartpole")
    text = (REPO / "docs" / "isaaclab.md").read_text(encoding="utf-8")
    for row in rows_after(text, "the same environments"):
        own = found[row[0]]
        values = (own["mean_return"], *own["interval"], *own["each_seed"])
        assert all(map(shown, NUMBER.findall(" ".join(row[1:])), values)), row
    for row in rows_after(text, "Steps per second of these runs"):
        rates = [r["steps_per_second"] for r in found["runs"] if r["trainer"] == row[0]]
        own = found[row[0]]
        expected = [*rates, own["steps_per_second"], own["steps_per_cpu_second"]]
        assert " ".join(row[1:]).split() == [f"{x:,.0f}" for x in expected], row
    ratios = found["speed"]["ratios"]
    error = statistics.stdev(ratios) / len(ratios) ** 0.5
    assert f"{statistics.mean(ratios):.3f} +- {error:.3f}" in text
