"""`equipoise train ...`: one command for each kind of model, all alike."""

from pathlib import Path
from typing import Annotated

import typer

from equipoise.cli.common import ConfigOption, ForceFlag, JsonFlag, OutOption, SetOption, emit, gather
from equipoise.extras import require

app = typer.Typer(help="Train a guard, a scorer or a policy.", no_args_is_help=True)

Data = Annotated[list[Path] | None, typer.Option("--data", help="Files to train on. Repeatable.")]


def _add(name: str, data_setting: str, about: str) -> None:
    """Add the command of the step `train.NAME`, where - is _; `--data` gives its setting `data_setting`."""

    @app.command(name, help=about)
    def train(
        *,
        out: OutOption,
        data: Data = None,
        config: ConfigOption = None,
        set_: SetOption = None,
        force: ForceFlag = False,
        as_json: JsonFlag = False,
    ) -> None:
        require(f"equipoise train {name}", "train")
        from equipoise.pipeline.steps import step_of
        from equipoise.training.processes import produce_together

        step = step_of(f"train.{name.replace('-', '_')}")
        settings = gather(step, {data_setting: data}, config=config, overrides=set_)
        outcome = produce_together(out, step, settings, force=force)
        if outcome is None:  # one of several processes, of which the first speaks
            return
        manifest = outcome.manifest
        state = "was done before" if outcome.skipped else f"took {manifest.wall_seconds:.0f} s"
        notes = "".join(f"\n  {note}: {value}" for note, value in manifest.notes.items())
        result = {"out": str(out), "skipped": outcome.skipped, "key": manifest.key, "notes": manifest.notes}
        emit(result, as_json, f"{step.name} {state}{notes}\nwrote {out}")


_add("guard", "exchanges", "Train a guard on exchanges: harm, 19 categories, severity and refusal.")
_add(
    "scorer",
    "pairs",
    "Train reward and cost on pairs, and on single answers; each trains what it has labels for.",
)
_add("sft", "exchanges", "Fine-tune a policy on the responses of exchanges that are not labelled unsafe.")
_add(
    "preference", "pairs", "Align a policy on pairs by a preference objective, SafeDPO unless said otherwise."
)
_add("ppo-lag", "prompts", "Align a policy online under constraints, with critics (PPO-Lag, Safe RLHF).")
_add("group-lag", "prompts", "Align a policy online under constraints, without critics: GRPO, RLOO, RePO.")
_add("mixture", "pairs", "Train the rewards of groups that want different things, by EM on pairs.")
_add("rules", "exchanges", "Train a reward made of rules: graders of propositions, and what each is worth.")
