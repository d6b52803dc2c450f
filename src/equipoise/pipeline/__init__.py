"""A recipe is a list of steps; each step's output lies in a folder named after its content key.

    name: quickstart
    settings: {seed: 0}                    # what `--set seed=1` overrides
    steps:
      guard:                               # `${steps.guard}` is the place of its output
        run: train.guard                   # a key of STEPS
        with: {exchanges: [...], optim: {seed: "${settings.seed}"}}
    publish: {report.html: "${steps.report}/report.html"}

`${builtin.exchanges}`, `.pairs`, `.prompts`, `.look_alikes`, `.requests` and `.questions` are the files of
the built-in corpus. A finished step with the same inputs is skipped, a half-done one is resumed, and changed
settings make new folders beside the old ones, so nothing that was done is lost.

`steps` names what a recipe can do, `recipe` reads one, `references` resolves `${...}`, `run` runs it
and `summary` writes what the whole run was.
"""
