"""The search in plain words: what was searched, how it ended, what mattered, and what test says."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Sequence

from dreamprvr_ray.report.experiment import Candidate, Comparison, Final, SearchRecord, Trial
from dreamprvr_ray.report.formatting import counted, duration, listed, short, signed, sumr
from dreamprvr_ray.report.importance import Importance, beaten_by_choice, usual_range

PROTOCOLS = {
    "own splits": "The collection's own splits: train learns, val chooses, test is read once.",
    "dev": "Val was carved from train by video; test is as distributed, and was read once.",
    "paper": "Val is test itself, as in the authors' release: these figures were chosen on test, and are too favourable. Compare them with"
    " figures made the same way only.",
}


def summary(search: SearchRecord, found: Sequence[Importance]) -> list[str]:
    """Paragraphs of plain text."""
    return [text for text in (_searched(search), _winner(search), mattered(search, found), on_test(search)) if text]


def status(search: SearchRecord) -> str:
    """Whether the search is over, in a line."""
    over = len(search.in_state("finished", "pruned", "failed"))
    planned = int(search.settings.get("trials") or 0)
    if search.final is None and (search.in_state("running", "waiting") or over < planned):
        return f"{over} of {planned} trials ended; the search is running, or was stopped."
    return f"All {counted(over, 'trial')} ended." if over >= planned else f"{over} of {planned} trials ended."


def _searched(search: SearchRecord) -> str:
    trials, epochs = search.trials, search.epochs
    length = f" of up to {counted(epochs, 'epoch')}" if epochs else ""
    names = listed([axis.name for axis in search.axes])
    what = counted(len(search.axes), "value")
    sentences = [f"{counted(len(trials), 'trial')}{length} searched {what} around {search.own_setting}: {names}."]
    counts = [f"{len(search.in_state('finished'))} finished"]
    for state, words in (
        ("pruned", "were pruned early"),
        ("failed", "failed"),
        ("running", "are running or were cut off"),
        ("waiting", "wait"),
    ):
        number = len(search.in_state(state))
        if number:
            counts.append(
                f"{number} {words if number > 1 else words.replace('were', 'was').replace('are', 'is').replace('wait', 'waits')}"
            )
    reasons = Counter(
        textwrap.shorten(trial.reason or "no reason recorded", 90, placeholder=" ...")
        for trial in search.in_state("failed")
    )
    why = f" ({'; '.join(f'{reason}: {number}' for reason, number in reasons.most_common(3))})" if reasons else ""
    sentences.append(f"{listed(counts)}{why}.")
    if search.refused:
        sentences.append(
            f"{counted(search.refused, 'proposal')} broke a constraint and {'was' if search.refused == 1 else 'were'} not trained."
        )
    spent, seconds = sum(trial.epochs for trial in trials), sum(trial.seconds or 0 for trial in trials)
    if spent:
        took = f" and took {duration(seconds)} of training" if seconds else ""
        saved = ""
        if epochs and search.in_state("pruned"):
            left = sum(epochs - trial.epochs for trial in search.in_state("pruned"))
            saved = f"; pruning spared up to {counted(left, 'epoch')}"
        sentences.append(f"Together they trained {counted(spent, 'epoch')}{took}{saved}.")
    return " ".join(sentences)


def _winner(search: SearchRecord) -> str:
    best, first = search.best, search.first
    if best is None:
        return "No epoch has ended yet."
    at = f" at epoch {best.best_epoch}" if best.best_epoch else ""
    if best is first:
        return f"Nothing beat {search.own_setting} (trial 0) so far: its best val SumR is {sumr(best.sumr)}{at}."
    text = f"The best is trial {best.number}: val SumR {sumr(best.sumr)}{at}."
    if first is not None and first.sumr is not None and best.sumr is not None:
        own = f"{search.own_setting.capitalize()} (trial 0)"
        if search.first_finished:
            text += f" {own} reached {sumr(first.sumr)}: a gain of {sumr(best.sumr - first.sumr)} on val."
        else:
            text += f" {own} {cut_off(first)}{_at_one_epoch(first, best)}."
        text += " A best of many trials is lucky too: its val SumR promises more than a new training will keep."
    return text


def cut_off(trial: Trial) -> str:
    """How far a trial came that was not trained to its end."""
    how = {"pruned": "was stopped after", "failed": "failed after"}.get(trial.state, "has come to")
    return f"{how} epoch {trial.epochs}"


def _at_one_epoch(first: Trial, best: Trial) -> str:
    """Both trials' SumR at the last epoch that both reached; empty where their epochs are not recorded."""
    if not first.curve or not best.curve:
        return ""
    epoch = min(first.curve[-1][0], best.curve[-1][0])
    one, other = first.best_until(epoch), best.best_until(epoch)
    if one is None or other is None:
        return ""
    where = ", where" if epoch == first.epochs else f"; at epoch {epoch}, the last that both reached,"
    return f"{where} it had {sumr(one)} and the best trial {sumr(other)}"


def mattered(search: SearchRecord, found: Sequence[Importance]) -> str:
    """What mattered, with numbers; empty where too little is known."""
    if not found:
        return ""
    out = [importance for importance in found if importance.stands_out]
    if not out:
        return (
            "No single value made a difference that stands out from chance: more trials are needed to say what matters."
        )
    sentences = []
    for place, importance in enumerate(out[:3]):
        name, share = importance.axis.name.capitalize(), f"{importance.share:.0%}"
        sentences.append(
            f"{name} mattered most: it makes {share} of the differences between trials."
            if place == 0
            else f"{name} came next, with {share}."
        )
        where = usual_range(search, importance.axis)
        if where is not None:
            axis = importance.axis
            own = f"; {search.own_setting} has {short(axis.own)}" if axis.own is not None else ""
            between = (
                f"at {short(where[0])}" if where[0] == where[1] else f"between {short(where[0])} and {short(where[1])}"
            )
            searched = f"{short(int(axis.low) if axis.whole else axis.low)} to {short(int(axis.high) if axis.whole else axis.high)}"
            sentences.append(f"The best quarter of the trials has it {between} (searched: {searched}{own}).")
        elif importance.axis.choices is not None:
            (best, beaten), *others = beaten_by_choice(search, importance.axis)
            those = "".join(f", those with {short(choice)} {one:.0%}" for choice, one in others)
            sentences.append(f"Trials with {short(best)} beat {beaten:.0%} of all others{those}.")
    rest = len(found) - len(out)
    if rest:
        sentences.append(
            f"{'The other value does' if rest == 1 else f'The other {rest} values do'} not stand out from chance."
        )
    if search.final is None or not search.final.ablations:
        sentences.append(
            "Good trials share values for more reasons than one: what a value does by itself is told by final.ablate."
        )
    return " ".join(sentences)


def on_test(search: SearchRecord) -> str:
    """What test says, against the configuration's own setting."""
    final = search.final
    if final is None or not final.candidates:
        return "Test has not been read yet."
    if not final.retrained:
        reading = final.candidates[0].runs[0].test
        return (
            f"The winner's own checkpoint has SumR {sumr(reading['SumR'])} on test. That is one training with one seed, and nothing was"
            " trained beside it to compare with."
        )
    parts = [f"{candidate_name(search, one)} {_mean(one)}" for one in final.candidates]
    seeds = {len(one.runs) for one in final.candidates}
    again = f" with {counted(seeds.pop(), 'seed')} each" if len(seeds) == 1 else " with several seeds"
    data = " on train and val together" if search.trained_on_val else ""
    ablations = [_ablated(search, final, comparison) for comparison in final.ablations]
    means = f"Trained again{data}{again}, mean SumR on test: {'; '.join(parts)}."
    return " ".join(filter(None, [means, compared(search, final), *ablations, _kept(search, final)]))


def _kept(search: SearchRecord, final: Final) -> str:
    """Which of the trainings best/ holds: its SumR is not the mean that stands beside it."""
    run, candidate = search.chosen, final.candidates[0]
    if run is None:
        return ""
    val = "" if search.trained_on_val or run.val_sumr is None else f"val SumR {sumr(run.val_sumr)}, "
    text = f"The model in best/ is {candidate_name(search, candidate)} trained with seed {run.seed}: {val}test SumR {sumr(run.test['SumR'])}"
    if len(candidate.runs) == 1:
        return f"{text}."
    why = "the first of them, since val was learnt from" if search.trained_on_val else "the one with the best val SumR"
    return f"{text}; of its {len(candidate.runs)} seeds this is {why}."


def compared(search: SearchRecord, final: Final) -> str:
    """The comparison and its interval, and what may be concluded."""
    comparison = final.comparison
    if comparison is None:
        return ""
    named = {candidate.name: candidate_name(search, candidate) for candidate in final.candidates}
    better, than = named.get(comparison.better, comparison.better), named.get(comparison.than, comparison.than)
    interval = f"{comparison.confidence:.0%} interval {signed(comparison.low)} to {signed(comparison.high)}"
    text = f"{better.capitalize()} against {than}: {signed(comparison.difference)} SumR ({interval}, paired bootstrap over videos and seeds)."
    if comparison.low > 0:
        return f"{text} The interval lies above zero: the gain is not an accident of which videos were tested."
    if comparison.high < 0:
        return f"{text} The interval lies below zero: on test it is worse."
    return f"{text} The interval holds zero: on test the two cannot be told apart."


def candidate_name(search: SearchRecord, candidate: Candidate) -> str:
    """A candidate in words: the one that `tune` calls paper may start from another configuration."""
    if candidate.ablated:
        return f"trial {candidate.trial} with {_put_back(search, candidate.ablated)}"
    return search.own_setting if candidate.trial == 0 or candidate.name == "paper" else candidate.name


def _put_back(search: SearchRecord, key: str) -> str:
    axis = next((axis for axis in search.axes if axis.key == key), None)
    return f"{axis.name} put back to {short(axis.own)}" if axis else f"{key} put back"


def _ablated(search: SearchRecord, final: Final, comparison: Comparison) -> str:
    """What one value does by itself."""
    key = next((candidate.ablated for candidate in final.candidates if candidate.name == comparison.than), None)
    lost, low, high = comparison.difference, comparison.low, comparison.high
    text = f"{comparison.better.capitalize()} with {_put_back(search, key or comparison.than)} has {signed(-lost)} SumR on test"
    interval = f"{comparison.confidence:.0%} interval {signed(-high)} to {signed(-low)}"
    if low > 0:
        return f"{text} ({interval}): in this setting, that value makes the difference."
    return f"{text} ({interval}): " + (
        "it does better so." if high < 0 else "that value makes no difference here that can be told from chance."
    )


def _mean(candidate: Candidate) -> str:
    deviation = candidate.deviation
    return sumr(candidate.mean) + (f" (standard deviation {deviation:.1f})" if deviation is not None else "")
