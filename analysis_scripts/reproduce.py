"""Do the published effects show here? All studies, their figures, and an index of verdicts.

`python analysis_scripts/reproduce.py --scale small` runs every study of this folder, writes the
figures (PDF, and PNG for the index), `README.md`, which says for each figure what was claimed and
what came, and `claims.csv`, a line for each claim. With `--first-seed 1 101` everything is done
with two sets of seeds; the figures are those of the first. What is done is not done again.
"""

import argparse
import csv
import io
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from landscape.experiments.records import written
from shared import INTERRUPTED, SCALES, Claim, explained, interval, p_value, show

STUDIES = (  # those that take longest first
    "critical_periods",
    "lottery_tickets",
    "early_phase",
    "warm_starts",
    "mode_connectivity",
    "training_heuristics",
    "regularisation_in_time",
)
MARK = "<!-- What follows is written by analysis_scripts/reproduce.py. -->"
Summary = dict[str, Any]


def main(argv: Sequence[str] | None = None) -> None:
    """Run the studies side by side, then write the index."""
    options = _parsed(argv)
    with explained("reproduce.py"):
        _reproduce(options)


def _reproduce(options: argparse.Namespace) -> None:
    jobs = [(study, first) for first in options.first_seed for study in options.only]
    started = time.perf_counter()
    with ThreadPoolExecutor(options.workers) as pool:
        codes = list(pool.map(lambda job: run(job[0], job[1], options), jobs))
    failed = [
        f"{study}, seeds from {first}" for (study, first), code in zip(jobs, codes, strict=True)
        if code
    ]  # fmt: skip
    known = [
        json.loads(path.read_text())
        for study in STUDIES
        for first in options.first_seed
        if (path := place(options, study, first) / "summary.json").exists()
    ]
    if known:  # an index of nothing would take the place of an earlier one
        options.figures.mkdir(parents=True, exist_ok=True)
        write_claims(known, options.figures / "claims.csv")
        write_index(known, options.figures / "README.md")
        show(f"{options.figures}/README.md, claims.csv: {time.perf_counter() - started:.0f} s")
    if failed:
        raise SystemExit(f"not finished: {'; '.join(failed)}. The same command goes on")


def run(study: str, first: int, options: argparse.Namespace) -> int:
    """Run one study as a command of its own; returns its exit code."""
    script = Path(__file__).with_name(f"{study}.py")
    command = [sys.executable, str(script), "--scale", options.scale, "--first-seed", str(first),
               "--folder", str(options.folder), "--quiet"]  # fmt: skip
    command += ["--data", options.data] if options.data else []
    command += ["--force"] if options.force else []
    command += ["--only", "figure"] if options.only_figures else []
    command += ["--figures", str(options.figures)] if first == options.first_seed[0] else []
    log = place(options, study, first).with_suffix(".log")
    log.parent.mkdir(parents=True, exist_ok=True)
    started = time.perf_counter()
    threads = {"OMP_NUM_THREADS": "1"} if options.scale != "full" else {}
    with log.open("w") as out:
        code = subprocess.run(
            command, stdout=out, stderr=subprocess.STDOUT, env=os.environ | threads, check=False
        ).returncode
    seconds = time.perf_counter() - started
    ended = {0: "", INTERRUPTED: "interrupted, "}.get(code, "failed, ")
    words = log.read_text().splitlines()[-8:] if ended == "failed, " else []
    show("\n    ".join([f"{study}, seeds from {first}: {ended}{seconds:.0f} s", *words]))
    return code


def place(options: argparse.Namespace, study: str, first: int) -> Path:
    """The folder in which a study keeps its runs, results and summary."""
    return options.folder / options.scale / f"{study}-seeds-{first}"


def write_claims(summaries: Sequence[Summary], path: Path) -> None:
    """One line for each claim of each study and set of seeds."""
    names = ["study", "scale", "first_seed", *Claim.__dataclass_fields__, "command"]
    table = io.StringIO(newline="")
    writer = csv.DictWriter(table, names)
    writer.writeheader()
    for one in summaries:
        common = {name: one[name] for name in ("study", "scale", "first_seed", "command")}
        writer.writerows(common | claim for claim in one["claims"])
    written(path, lambda new: new.write_text(table.getvalue(), newline=""))


def write_index(summaries: Sequence[Summary], path: Path) -> None:
    """The index of figures; what stands above its mark is kept."""
    above = path.read_text().split(MARK)[0] if path.exists() else "# Figures\n\n"
    text = [above.rstrip(), "", MARK, "", *_in_short(summaries), ""]
    for study in dict.fromkeys(one["study"] for one in summaries):
        sets = [one for one in summaries if one["study"] == study]
        text += _of_study(sets)
    whole = "\n".join(text).rstrip() + "\n"
    written(path, lambda new: new.write_text(whole))


def _in_short(summaries: Sequence[Summary]) -> list[str]:
    """How many claims came out as expected, and which did not, for each set of seeds."""
    lines = []
    for scale, first in dict.fromkeys((one["scale"], one["first_seed"]) for one in summaries):
        claims = [
            Claim(**own)
            for one in summaries
            if (one["scale"], one["first_seed"]) == (scale, first)
            for own in one["claims"]
        ]
        judged = [one for one in claims if one.condition]
        failed = [one.criterion for one in judged if one.verdict in ("does not show", "not null")]
        named = f"; not {', '.join(dict.fromkeys(failed))}" if failed else ""
        lines.append(
            f"- {scale.capitalize()} scale, seeds from {first}: {len(judged) - len(failed)} of "
            f"{len(judged)} claims with a criterion came out as expected{named}. "
            f"{len(claims) - len(judged)} more are reported without one."
        )
    return lines


def _of_study(sets: Sequence[Summary]) -> list[str]:
    first, keyed = sets[0], [_keyed(one["claims"]) for one in sets]
    seconds = " and ".join(f"{one['seconds']:.0f}" for one in sets)
    text = [f"## {first['title']}", "", f"`{first['command']}` ({seconds} s)", ""]
    for name, caption in first["figures"].items():
        text += [f"![{name}]({name}.png)", "", f"[{name}.pdf]({name}.pdf): {caption}", ""]
        keys = [key for key, claim in keyed[0].items() if claim.figure == name]
        if keys:
            seeds = [f"seeds from {one['first_seed']}" for one in sets]
            text.append(f"| | claim | measured | criterion | {' | '.join(seeds)} |")
            text.append("|---" * (4 + len(sets)) + "|")
            text += [_row([own.get(key) for own in keyed]) for key in keys]
            text.append("")
    return text


def _keyed(claims: Sequence[dict[str, Any]]) -> dict[tuple[Any, ...], Claim]:
    """Claims by criterion and sentence, and by their number among those of equal ones."""
    found: dict[tuple[Any, ...], Claim] = {}
    for own in claims:
        number = sum(key[:2] == (own["criterion"], own["claim"]) for key in found)
        found[own["criterion"], own["claim"], number] = Claim(**own)
    return found


def _row(claims: Sequence[Claim | None]) -> str:
    """A claim with its verdict for each set of seeds."""
    first = claims[0]
    assert first is not None
    told = [first.criterion, first.claim, first.quantity, first.condition]
    told += [_verdict(one) if one else "" for one in claims]
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in told) + " |"


def _verdict(claim: Claim) -> str:
    p = f", p {p_value(claim.p)}" if p_value(claim.p) else ""
    num = f", {claim.num_seeds} seeds" if claim.num_seeds else ""
    return f"**{claim.verdict}**: {interval(claim)}{p}{num}"


def _parsed(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n")[0])
    add = parser.add_argument
    add("--scale", choices=SCALES, default="small", help="small: digits, on a CPU; full: CIFAR-10, "
        "on a GPU; tiny: a trial whose verdicts mean nothing (default: small)")  # fmt: skip
    add("--first-seed", type=int, nargs="+", metavar="SEED", default=[1],
        help="first seed of each set of seeds; let sets lie apart, as 1 101 (default: 1)"
    )  # fmt: skip
    add("--only", nargs="+", choices=STUDIES, metavar="STUDY", default=list(STUDIES),
        help=f"of {', '.join(STUDIES)} (default: all)")  # fmt: skip
    add("--only-figures", action="store_true", help="draw and judge from the results that exist, "
        "train nothing")  # fmt: skip
    add("--folder", type=Path, default=Path("studies"),
        help="where runs and results are kept and taken up again (default: studies)")  # fmt: skip
    add("--figures", type=Path, metavar="FOLDER", help="of figures and index (default: figures; "
        "in --folder if the scale is tiny or not all studies are asked for)")  # fmt: skip
    add("--data", default="", help="images of the full scale: cifar10:FOLDER, or "
        "synthetic:num_examples=50000 (no default)")  # fmt: skip
    add("--workers", type=int, metavar="NUM", help="studies at a time (default: one for each core; "
        "full: 1)")  # fmt: skip
    add("--force", action="store_true", help="run the full scale even without a GPU")
    options = parser.parse_args(argv)
    if options.workers is None:
        options.workers = 1 if options.scale == "full" else os.cpu_count() or 1
    if options.workers < 1:
        parser.error(f"--workers must be at least 1, got {options.workers}")
    if min(options.first_seed) < 0:
        parser.error(f"--first-seed must be at least 0, got {min(options.first_seed)}")
    if options.data and options.scale != "full":
        parser.error("--data is for --scale full; the other scales bring their own images")
    options.first_seed = list(dict.fromkeys(options.first_seed))
    options.only = list(dict.fromkeys(options.only))
    if options.figures is None:
        whole = options.scale != "tiny" and set(options.only) == set(STUDIES)
        options.figures = Path("figures") if whole else options.folder / "figures"
    return options


if __name__ == "__main__":
    main()
