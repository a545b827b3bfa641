"""`accord data split` and `accord data contamination`."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from accord.cli.data_options import Format, Source, SplitName, pairs_of, refuse_source, show_nothing_written, shown
from accord.cli.options import Json
from accord.cli.output import plain, print_json, print_line, print_table
from accord.errors import InvalidArgumentError

if TYPE_CHECKING:
    from accord.data.contamination import Contamination

SPLIT_FILE = "split.json"


def split(
    source: Source,
    output: Annotated[Path, typer.Argument(metavar="FOLDER", help="For one file a split, and split.json.")],
    shares: Annotated[str, typer.Option("--shares", metavar="NAME=SHARE,...", help="Share of the prompts of each split.")] = "train=0.9,test=0.1",
    by: Annotated[str, typer.Option("--by", help="prompt, or conversation: all that begin with the same turn stay together.")] = "prompt",
    seed: Annotated[int, typer.Option("--seed", min=0, help="Another seed is another split.")] = 0,
    data_format: Format = "",
    split_name: SplitName = "all",
    as_json: Json = False,
) -> None:
    """Splits preference pairs by prompt, never by pair, and checks that no split stands in another.

    A prompt's split depends on the prompt and the seed alone: a larger file later leaves every prompt where it was.

    \b
    Example:
        accord data split clean.jsonl splits --shares train=0.8,validation=0.1,test=0.1
        accord data split hh.jsonl.gz splits --by conversation --json
    """
    from accord.data.files import shown as shown_source
    from accord.data.records import RunningDigest
    from accord.data.splitting import Shares
    from accord.data.writers import NoRowsError, PairFile, write_text

    if by not in ("prompt", "conversation"):
        raise InvalidArgumentError(f"{by!r} is neither prompt nor conversation", field="--by")
    parts, stream = Shares.parse(shares), pairs_of(source, data_format, split_name)
    for file in (*(f"{name}.jsonl" for name in parts.shares), SPLIT_FILE):
        refuse_source(source, output / file, "FOLDER")
    digests = {name: RunningDigest() for name in parts.shares}
    ids: dict[str, set[str]] = {name: set() for name in parts.shares}
    with contextlib.suppress(NoRowsError), contextlib.ExitStack() as stack:
        files = {name: stack.enter_context(PairFile(output / f"{name}.jsonl")) for name in parts.shares}
        for pair in shown("splitting", stream):
            name = parts.split_of(pair, seed, by)  # type: ignore[arg-type]
            again = pair.pair_id in ids[name]  # an id is of one pair in each of the source's splits, of which several may meet here
            row = replace(pair, split=name, pair_id=f"{pair.pair_id} of {pair.split}" if again else pair.pair_id)
            ids[name].add(row.pair_id)
            files[name].add(row)
            digests[name].add(row)
        if not any(file.rows for file in files.values()):
            raise NoRowsError
    if not any(file.rows for file in files.values()):
        show_nothing_written(output, stream.report)
    found = _each_in_each({name: output / f"{name}.jsonl" for name in sorted(files, key=lambda name: files[name].rows)})
    facts = {
        "source": shown_source(source), "seed": seed, "by": by, "shares": dict(parts.shares), "account": stream.report.account(),
        "rejected": stream.report.rejected,
        "splits": {
            name: {"file": str(file.path), "rows": file.rows, "digest": digests[name].hexdigest(), "sha256": file.digest}
            for name, file in files.items()
        },
        "contamination": found,
    }  # fmt: skip
    write_text(output / SPLIT_FILE, json.dumps(plain(facts), ensure_ascii=False, indent=1))
    if as_json:
        print_json(facts)
        return
    rows = [(name, file.rows, digests[name].hexdigest()[:12], file.path) for name, file in files.items()]
    print_table(("split", "rows>", "digest", "file"), rows)
    _show(found)
    if by == "prompt" and any(each.overlapping_prompts for each in found):
        print_line("note: --by conversation keeps prompts together that begin with the same turn")
    print_line(stream.report.account())
    first, *others = files
    held_out = (
        f" --set 'reward_model.eval_data={{uri: {files[others[-1]].path}, split: {others[-1]}}}'" if others else " --set reward_model.eval_data=null"
    )
    sys.stderr.write(f"next: accord train reward-model --set 'reward_model.data={{uri: {files[first].path}, split: {first}}}'{held_out}\n")


def contamination(
    source: Annotated[str, typer.Argument(metavar="TEST", help="The split that must be new; it is kept in memory.")],
    other: Annotated[str, typer.Argument(metavar="TRAIN", help="The split that it must not stand in.")],
    data_format: Format = "",
    split_name: SplitName = "all",
    as_json: Json = False,
) -> None:
    """Shows how much of one data set stands in another: equal prompts and responses, and those that share most of their word n-grams.

    \b
    Example:
        accord data contamination test.jsonl.gz train.jsonl.gz
    """
    from accord.data.contamination import Split
    from accord.data.contamination import contamination as measured
    from accord.data.files import shown as shown_source

    def part(uri: str) -> Split:
        name = shown_source(uri)
        return Split(name, lambda: shown(f"reading {name}", pairs_of(uri, data_format, split_name)))

    found = measured(part(source), part(other))
    if as_json:
        print_json(found)
    else:
        _show([found])


def _each_in_each(files: dict[str, Path]) -> list[Contamination]:
    """Of each two splits, how much of the smaller one stands in the larger one."""
    from accord.data.contamination import Split
    from accord.data.contamination import contamination as measured

    def part(name: str) -> Split:
        return Split(name, lambda: shown(f"comparing {name}", pairs_of(str(files[name]), "accord", name)))

    names = list(files)
    return [measured(part(first), part(second)) for place, first in enumerate(names) for second in names[place + 1 :]]


def _show(found: Sequence[Contamination]) -> None:
    rows = [
        (
            f"{each.split} in {each.other}", each.pairs, each.equal_prompts, each.overlapping_prompts, each.equal_responses,
            each.overlapping_responses,
        )
        for each in found
    ]  # fmt: skip
    print_table(("contamination", "pairs>", "equal prompts>", "overlapping>", "equal responses>", "overlapping>"), rows)
    for each in found:
        if each.overlapping_prompts:
            pairs = f"{each.overlapping_prompts} pairs of {each.split}"
            print_line(f"note: {pairs} have a prompt that stands in {each.other}: {', '.join(each.examples)}")
