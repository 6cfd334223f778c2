"""python -m benchmarks.fuzz_inputs: give the commands bad inputs of all kinds, and count what happens.

    python -m benchmarks.fuzz_inputs --inputs 2000 --seed 0 --json

Each input starts from correct files (a source tree, shards, a checkpoint, an experiment's directory, a configuration,
a search file), of which one to three are damaged, or from a command line, of which words are replaced. The command's
`main` runs in a separate process, behind the same boundary as for a user. Ray is not started: reaching it counts as
the end. Inputs of the kind "resume" damage the directory of a finished search and resume it, all but trials included.

An input must end within 10 seconds of CPU time, with exit code 0, 1 or 2, one line per mistake, no traceback and no
unexpected error, without changing anything that existed, without executing a canary (a command in a YAML tag, a
pickle, a condition, a name) and without printing one (a password in a location).

Modules: `correct_files` writes what each input starts from, `hostile` holds the values that no file should hold,
`damage` puts them into files, `kinds` makes an input of each kind, and `trying` runs it and sees what it did.
"""
