"""A search in sentences: what was searched, how it ended, which parameters matter, and the test results."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Sequence

from dreamprvr_ray.report.formatting import (
    format_count,
    format_difference,
    format_duration,
    format_list,
    format_sumr,
    format_value,
)
from dreamprvr_ray.report.importance import Importance, typical_range, win_rate_by_choice
from dreamprvr_ray.report.search_record import SearchRecord
from dreamprvr_ray.search.final_result import Candidate, Comparison, FinalResult
from dreamprvr_ray.search.results import TrialRecord

PROTOCOLS = {
    "own splits": "Models are trained on the collection's own train split, selected on val, and tested once.",
    "dev": "Val was split off from train, by video. Models are selected on it and tested once, on the distributed test"
    " split.",
    "paper": "Val is the test split itself, as in the authors' release: these results were selected on test and are too"
    " optimistic. Compare them only with results obtained in the same way.",
}
OVERLAPS = {
    "val overlaps test": "Val shares videos or queries with test: models were partly selected on test.",
    "val is mostly test": "Val is mostly test: these results were selected on test and are too optimistic.",
    "train overlaps test": "Models were trained on some of the test queries: these results are too optimistic.",
}
_COUNTED = {  # by state: singular, plural
    "finished": ("finished", "finished"),
    "pruned": ("was pruned", "were pruned"),
    "failed": ("failed", "failed"),
    "running": ("is running or was interrupted", "are running or were interrupted"),
    "waiting": ("is waiting", "are waiting"),
}
_REASON_WIDTH = 90  # characters


def describe_protocol(protocol: str) -> str:
    """Return in sentences how val and test were chosen, and what makes the results less than honest."""
    base, *overlaps = protocol.split(", ")
    sentences = [PROTOCOLS.get(base, ""), *(OVERLAPS.get(overlap, f"{overlap}.") for overlap in overlaps)]
    return " ".join(sentence for sentence in sentences if sentence)


def summarize(search: SearchRecord, found: Sequence[Importance]) -> list[str]:
    """Return the summary as paragraphs of plain text."""
    paragraphs = (
        _describe_trials(search),
        _describe_best(search),
        describe_importances(search, found),
        describe_test(search),
    )
    return [paragraph for paragraph in paragraphs if paragraph]


def describe_status(search: SearchRecord) -> str:
    """Return whether the search has ended or, if not, how far it is and how long it will take."""
    ended = len(search.in_state("finished", "pruned", "failed"))
    planned = int(search.settings.get("trials") or 0)
    if search.in_state("running", "waiting") or (
        search.final is None and search.final_stage is None and ended < planned
    ):
        left = f"; about {format_duration(search.seconds_left)} left at this pace" if search.seconds_left else ""
        after = ", then the final stage" if search.settings.get("final") else ""
        return (
            f"{ended} of {planned} trials ended so far; the search is running or was interrupted"
            f"{f'{left}{after}' if left else ''}."
        )
    if ended < planned:
        text = f"{ended} of {planned} trials ended."
    else:
        text = f"All {ended} trials have ended." if ended > 1 else "The only trial has ended."
    return f"{text} {_describe_final_stage(search)}".rstrip()


def _describe_final_stage(search: SearchRecord) -> str:
    """Return how far the retraining is; nothing if it has ended or none is planned."""
    stage = search.final_stage
    if stage is None:
        return "The final stage has not begun." if search.settings.get("final") and search.final is None else ""
    if stage.is_evaluated:
        return ""
    runs = f"Final stage: {stage.finished} of {format_count(stage.planned, 'run')} finished"
    if stage.finished == stage.planned:
        return f"{runs}; the evaluation on test is running or was interrupted."
    left = f"; about {format_duration(stage.seconds_left)} left at this pace" if stage.seconds_left else ""
    before = " The results below are those of an earlier final stage." if search.final is not None else ""
    return f"{runs}; it is running or was interrupted{left}.{before}"


def _describe_trials(search: SearchRecord) -> str:
    trials, epochs = search.trials, search.epochs
    length = f" of up to {format_count(epochs, 'epoch')}" if epochs else ""
    names = format_list([parameter.name for parameter in search.parameters])
    count = format_count(len(search.parameters), "parameter")
    sentences = [
        f"{format_count(len(trials), 'trial')}{length} searched {count} around {search.baseline_name}: {names}."
    ]
    counts = []
    for state, (singular, plural) in _COUNTED.items():
        number = len(search.in_state(state))
        if number or state == "finished":
            counts.append(f"{number} {singular if number == 1 else plural}")
    sentences.append(f"{format_list(counts)}.")
    reasons = Counter(
        textwrap.shorten(trial.error or "no reason recorded", _REASON_WIDTH, placeholder=" ...")
        for trial in search.in_state("failed")
    )
    if reasons:
        listed = "; ".join(f"{reason} ({format_count(number, 'trial')})" for reason, number in reasons.most_common(3))
        sentences.append(f"Reasons for failure: {listed}.")
    if search.infeasible:
        verb = "was" if search.infeasible == 1 else "were"
        sentences.append(f"{format_count(search.infeasible, 'proposal')} violated a constraint and {verb} not trained.")
    trained_epochs = sum(trial.epochs for trial in trials)
    seconds = sum(trial.seconds or 0 for trial in trials)
    if trained_epochs:
        took = f", which took {format_duration(seconds)}" if seconds else ""
        sentences.append(f"In total, {format_count(trained_epochs, 'epoch')} were trained{took}.")
        pruned = search.in_state("pruned")
        if epochs and pruned:
            saved = sum(epochs - trial.epochs for trial in pruned)
            sentences.append(f"Pruning saved up to {format_count(saved, 'epoch')}.")
    return " ".join(sentences)


def _describe_best(search: SearchRecord) -> str:
    best, baseline, name = search.best, search.baseline, search.baseline_name
    if best is None or best.best_sumr is None:
        return "No epoch has finished yet."
    at = f" at epoch {best.best_epoch}" if best.best_epoch else ""
    if best is baseline:
        return f"No trial has beaten {name} (trial 0), whose best val SumR is {format_sumr(best.best_sumr)}{at}."
    text = f"The best is trial {best.number}, with a val SumR of {format_sumr(best.best_sumr)}{at}."
    if baseline is not None and baseline.best_sumr is not None:
        subject = f"Trial 0 ({name})"
        if search.finished_baseline:
            gain = format_sumr(best.best_sumr - baseline.best_sumr)
            text += f" {subject} reached {format_sumr(baseline.best_sumr)}, so the gain on val is {gain}."
        else:
            text += f" {subject} {describe_stop(baseline)}{_compare_at_common_epoch(baseline, best)}."
        text += " The best of many trials is partly luck; expect a retrained model to score lower."
    return text


def describe_stop(trial: TrialRecord) -> str:
    """Return how far a trial got that has not finished."""
    how = {"pruned": "was stopped after", "failed": "failed after"}.get(trial.state, "has reached")
    return f"{how} epoch {trial.epochs}"


def _compare_at_common_epoch(baseline: TrialRecord, best: TrialRecord) -> str:
    """Compare two trials at the last epoch that both reached; return nothing if their epochs are not recorded."""
    if not baseline.curve or not best.curve:
        return ""
    epoch = min(baseline.curve[-1][0], best.curve[-1][0])
    sumr, best_sumr = baseline.best_until(epoch), best.best_until(epoch)
    if sumr is None or best_sumr is None:
        return ""
    values = f"its val SumR was {format_sumr(sumr)} and that of the best trial {format_sumr(best_sumr)}"
    if epoch == baseline.epochs:
        return f"; by then, {values}"
    return f"; at epoch {epoch}, the last that both reached, {values}"


def describe_importances(search: SearchRecord, found: Sequence[Importance]) -> str:
    """Return which parameters matter, in numbers; nothing if the importances are not known."""
    if not found:
        return ""
    important = [importance for importance in found if importance.stands_out]
    if not important:
        return "No parameter stands out from chance: more trials are needed to tell which ones matter."
    sentences = []
    for place, importance in enumerate(important[:3]):
        parameter, share = importance.parameter, f"{importance.share:.0%}"
        sentences.append(
            f"The most important parameter is {parameter.name}: it explains {share} of the differences between trials."
            if place == 0
            else f"Next is {parameter.name}, with {share}."
        )
        typical = typical_range(search, parameter)
        if typical is not None:
            low, high = map(format_value, typical)
            between = f"it is {low}" if low == high else f"it is between {low} and {high}"
            searched = " to ".join(map(format_value, parameter.ends))
            baseline = ""
            if parameter.baseline is not None:
                baseline = f"; {search.baseline_name}: {format_value(parameter.baseline)}"
            sentences.append(f"In the best quarter of the trials, {between} (searched: {searched}{baseline}).")
        elif parameter.choices is not None:
            (best, rate), *others = win_rate_by_choice(search, parameter)
            rest = "".join(f"; trials with {format_value(choice)} beat {other:.0%}" for choice, other in others)
            sentences.append(f"Trials with {format_value(best)} beat {rate:.0%} of all other trials{rest}.")
    rest_count = len(found) - len(important)
    if rest_count:
        rest = "The other parameter does" if rest_count == 1 else f"The other {rest_count} parameters do"
        sentences.append(f"{rest} not stand out from chance.")
    if search.final is None or not search.final.result.ablations:
        sentences.append(
            "These are correlations, since good trials share several values: use final.ablate to isolate one"
            " parameter's effect."
        )
    return " ".join(sentences)


def describe_test(search: SearchRecord) -> str:
    """Return the test results, compared with the baseline's."""
    if search.final is None or not search.final.result.candidates:
        return "Nothing has been evaluated on test yet."
    result = search.final.result
    if not result.retrained:
        return (
            f"The checkpoint of the best trial has a test SumR of {format_sumr(result.candidates[0].mean)}. This is a"
            " single training with a single seed, and no other configuration was tested."
        )
    means = [
        f"{format_sumr(candidate.mean)} for {candidate_name(search, candidate)}{_deviation(candidate)}"
        for candidate in result.candidates
    ]
    seed_counts = {len(candidate.runs) for candidate in result.candidates}
    seeds = f"{format_count(seed_counts.pop(), 'seed')} each" if len(seed_counts) == 1 else "several seeds"
    data = " on train and val" if result.with_val else ""
    sentences = [
        f"After retraining{data} with {seeds}, the mean test SumR is {format_list(means)}.",
        describe_comparison(search, result),
        describe_shared_seeds(search),
        *(_describe_ablation(search, result, comparison) for comparison in result.ablations),
        _describe_chosen(search, result),
    ]
    return " ".join(sentence for sentence in sentences if sentence)


def _describe_chosen(search: SearchRecord, result: FinalResult) -> str:
    """Return which run's model is in best/. Its SumR differs from the mean of its candidate."""
    run, candidate = result.chosen, result.candidates[0]
    name = candidate_name(search, candidate)
    how = f"was trained with {name if candidate.is_paper else f'the settings of {name}'}"
    val = "" if result.with_val or run.val_sumr is None else f"val SumR {format_sumr(run.val_sumr)}, "
    text = f"The model in best/ {how}, seed {run.seed}: {val}test SumR {format_sumr(run.test.retrieval.recall.sumr)}."
    if len(candidate.runs) == 1:
        return text
    if result.with_val:
        return f"{text} It is the first of {len(candidate.runs)} seeds, since val was trained on and cannot rank them."
    return f"{text} It has the best val SumR of {len(candidate.runs)} seeds."


def describe_comparison(search: SearchRecord, result: FinalResult) -> str:
    """Return the comparison with the baseline, its interval, and what follows from it."""
    comparison = result.comparison
    if comparison is None:
        return ""
    names = {candidate.name: candidate_name(search, candidate) for candidate in result.candidates}
    better, than = names.get(comparison.better, comparison.better), names.get(comparison.than, comparison.than)
    text = (
        f"{better[0].upper()}{better[1:]} against {than}: {format_difference(comparison.difference)} SumR"
        f" ({_interval(comparison)}, {comparison.coverage})."
    )
    if not comparison.covers_seeds:
        return f"{text} Each was trained with one seed: whether other seeds would agree is not known."
    if comparison.low > 0:
        return f"{text} The interval is above zero: the choice of test videos and of seeds does not explain the gain."
    if comparison.high < 0:
        return f"{text} The interval is below zero: on test, it is worse."
    return f"{text} The interval includes zero: on test, the two cannot be told apart."


def describe_shared_seeds(search: SearchRecord) -> str:
    """Return why runs with a seed of the search are biased; nothing if there are no such runs."""
    if not search.shared_seeds:
        return ""
    return (
        f"Seed {format_list(list(map(str, search.shared_seeds)))} was also a seed of the search. Runs with it favour"
        " the trial that the search selected, partly for the luck of that seed: the gain is too optimistic."
    )


def candidate_title(search: SearchRecord, candidate: Candidate) -> str:
    """Return what tables call a candidate. The one named `paper` may have other settings than the paper's."""
    if candidate.ablated:
        return f"trial {candidate.trial} with {_reset(search, candidate.ablated)}"
    return search.baseline_title if candidate.is_paper else candidate.name


def candidate_name(search: SearchRecord, candidate: Candidate) -> str:
    """Return what sentences call a candidate."""
    return search.baseline_name if candidate.is_paper else candidate_title(search, candidate)


def _reset(search: SearchRecord, key: str) -> str:
    parameter = next((parameter for parameter in search.parameters if parameter.key == key), None)
    return f"{parameter.name} reset to {format_value(parameter.baseline)}" if parameter else f"{key} reset"


def _describe_ablation(search: SearchRecord, result: FinalResult, comparison: Comparison) -> str:
    """Return the effect of resetting one parameter of a trial, with the sign of the change that the reset makes."""
    key = next((candidate.ablated for candidate in result.candidates if candidate.name == comparison.than), None)
    trial = f"{comparison.better[0].upper()}{comparison.better[1:]}"
    reset = comparison.reversed()
    text = (
        f"{trial} with {_reset(search, key or comparison.than)}: {format_difference(reset.difference)} SumR"
        f" ({_interval(reset)}{'' if reset.covers_seeds else f', {reset.coverage}'})"
    )
    if not reset.covers_seeds:
        return f"{text}; with one seed, it is not known whether other seeds would agree."
    if reset.high < 0:
        return f"{text}; for this trial, the parameter makes a difference."
    if reset.low > 0:
        return f"{text}; the reset value is better."
    return f"{text}; the difference may be chance."


def _interval(comparison: Comparison) -> str:
    low, high = format_difference(comparison.low), format_difference(comparison.high)
    return f"{comparison.confidence:.0%} interval {low} to {high}"


def _deviation(candidate: Candidate) -> str:
    return "" if candidate.std is None else f" (standard deviation {candidate.std:.1f})"
