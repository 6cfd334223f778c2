"""Exit codes and output of commands, as a user sees them: in a separate process."""

from __future__ import annotations

import importlib
import json
import math
import os
import pickle
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

import dreamprvr_ray
from dreamprvr_ray.command_line import Parser, exit_code, print_json
from dreamprvr_ray.errors import UserError, did_you_mean

ROOT = Path(__file__).parent.parent
FILES = sorted(file for package in ("dreamprvr_ray", "benchmarks") for file in (ROOT / package).rglob("*.py"))
COMMANDS = [
    ".".join(file.relative_to(ROOT).with_suffix("").parts) for file in FILES if file.read_text().endswith("run(main)\n")
]


def run_main(body: str, reader: str = "cat") -> tuple[int, str, str]:
    """Return exit code, stdout and stderr of a command whose `main` is `body`; `reader` reads its stdout in a shell."""
    imports = (
        "import time\nfrom dreamprvr_ray.command_line import Parser, run\nfrom dreamprvr_ray.errors import UserError"
    )
    program = f"{imports}\ndef main(arguments):\n  {body}\nrun(main)\n"
    words = [sys.executable, "-c", program, "one", "two"]
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}  # as by default
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=buffered) as command:
        assert command.stderr is not None
        read = subprocess.run(["sh", "-c", reader], stdin=command.stdout, capture_output=True, text=True)
        assert command.stdout is not None
        command.stdout.close()
        errors = command.stderr.read()
        return command.wait(timeout=60), read.stdout, errors


def test_exit_codes() -> None:
    assert run_main("print(arguments)") == (0, "['one', 'two']\n", "")
    assert run_main("return 1") == (1, "", "")
    assert run_main("raise KeyboardInterrupt") == (130, "", "interrupted\n")
    assert run_main("import os, signal; os.kill(os.getpid(), signal.SIGTERM); time.sleep(30)") == (
        130,
        "",
        "interrupted\n",
    )


def test_user_errors_are_one_line_each_without_a_traceback() -> None:
    assert run_main("raise UserError('a: wrong', 'b: too large')") == (2, "", "error: a: wrong\nerror: b: too large\n")


def test_a_path_that_cannot_be_written_is_a_one_line_error_that_names_it() -> None:
    body = "import pathlib; from dreamprvr_ray.storage.files import write_json, writing"
    body = f"{body}\n  with writing(pathlib.Path('/proc/x')): write_json(pathlib.Path('/proc/x/a.json'), dict())"
    assert run_main(body) == (2, "", "error: /proc/x: cannot be written: No such file or directory\n")


def in_process(capsys: pytest.CaptureFixture[str], error: BaseException) -> tuple[int, str]:
    """Return exit code and stderr of a command that raises `error`."""

    def main(arguments: list[str]) -> None:
        raise error

    code = exit_code(main, [])
    return code, capsys.readouterr().err


@pytest.mark.parametrize(
    ("body", "code", "line"),
    [
        ("open('/nowhere/at/all')", 2, "error: /nowhere/at/all: No such file or directory"),
        ("open('/tmp/' + 'x' * 300)", 2, f"error: /tmp/{'x' * 300}: File name too long"),
        ("import pathlib; pathlib.Path('/').write_text('')", 2, "error: /: Is a directory"),
        ("raise OSError(28, 'No space left on device', 'a')", 1, "failed: a: No space left on device"),
        ("raise MemoryError", 1, "failed: out of memory"),
        ("Parser('train', 'Trains.').parse_args(['a\\0b'])", 2, r"error: 'a\x00b': an argument must not contain NUL"),
    ],
)
def test_what_the_system_refuses_is_one_line(body: str, code: int, line: str) -> None:
    assert run_main(body) == (code, "", f"{line}\n")


@pytest.mark.parametrize(
    ("error", "start"),
    [
        (RuntimeError("broken"), "failed: bug in dreamprvr_ray: RuntimeError: broken"),
        (RecursionError(), "failed: bug in dreamprvr_ray: RecursionError"),
        (OSError(28, "No space left on device"), "failed: No space left on device"),  # `write` does not know the path
    ],
)
def test_a_bug_is_one_line_that_names_the_file_with_its_traceback(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, error: Exception, start: str
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    assert in_process(capsys, error)[0] == 1
    code, printed = in_process(capsys, error)
    first, second = sorted(tmp_path.iterdir(), key=lambda path: path.stat().st_mtime_ns)
    assert code == 1 and printed == f"{start} (traceback: {second})\n"
    assert second.stat().st_mode & 0o777 == 0o600 and second.read_text().startswith("Traceback")
    assert first != second  # another command's file is never overwritten


def test_the_traceback_of_a_bug_holds_no_password(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    in_process(capsys, RuntimeError("cannot reach postgresql://me:canary@host/db"))
    (path,) = tmp_path.iterdir()
    assert "canary" not in path.read_text() and "host/db" in path.read_text()


def test_the_traceback_of_a_bug_can_be_printed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("DREAMPRVR_RAY_DEBUG", "1")
    code, printed = in_process(capsys, RuntimeError("broken"))
    assert code == 1 and printed.startswith("Traceback") and list(tmp_path.iterdir()) == []
    monkeypatch.delenv("DREAMPRVR_RAY_DEBUG")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "missing"))
    assert in_process(capsys, RuntimeError("broken"))[1] == (
        "failed: bug in dreamprvr_ray: RuntimeError: broken (set DREAMPRVR_RAY_DEBUG=1 to see the traceback)\n"
    )


def test_a_mistake_is_one_line_of_bounded_length(capsys: pytest.CaptureFixture[str]) -> None:
    code, printed = in_process(capsys, UserError("key 'a\nb\x1b[2J' is unknown", "x" * 100_000))
    assert code == 2 and printed.splitlines()[0] == r"error: key 'a\nb\x1b[2J' is unknown"
    assert len(printed.splitlines()) == 2 and len(printed) < 3000


@pytest.mark.parametrize("lines", [1, 100_000])
def test_a_closed_pipe_does_not_end_the_work(lines: int) -> None:
    body = f"time.sleep(0.5); [print('x' * 50) for _ in range({lines})]; return 7"
    assert run_main(body, reader="exec <&-")[::2] == (7, "")
    assert run_main("time.sleep(0.5); print('x')", reader="exec <&-")[::2] == (0, "")


@pytest.mark.parametrize(
    ("redirection", "errors"),
    [
        (">/dev/full", "warning: stdout cannot be written: No space left on device; its text is lost\n"),
        (">&-", ""),
        ("<&- >&-", ""),
    ],
)
def test_work_that_was_done_is_no_failure_because_stdout_is_full_or_closed(
    redirection: str, errors: str, tmp_path: Path
) -> None:
    body = "open('work', 'w').write('done'); print('x' * 100); os.system('echo from a child')"
    code, printed = run_in_shell(body, redirection, tmp_path)
    assert (code, printed) == (0, errors)
    assert (tmp_path / "work").read_text() == "done"  # and not what was printed: the file could have got number 1


@pytest.mark.parametrize("redirection", ["2>/dev/full", "2>&-"])
def test_work_that_was_done_is_no_failure_because_stderr_is_full_or_closed(redirection: str, tmp_path: Path) -> None:
    body = "print_progress('x' * 100); open('work', 'w').write('done'); print_progress('y')"
    assert run_in_shell(body, redirection, tmp_path)[0] == 0
    assert (tmp_path / "work").read_text() == "done"


@pytest.mark.parametrize(
    "environment", [{"PYTHONIOENCODING": "ascii"}, {"LC_ALL": "POSIX", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}]
)
def test_an_ascii_terminal_shows_escapes(environment: dict[str, str], tmp_path: Path) -> None:
    body = r"print('sh\u00fc/\udcff'); print_progress('sh\u00fc'); raise UserError('\u00fc')"
    code, printed = run_in_shell(body, "2>&1", tmp_path, **environment)
    assert code == 2 and sorted(printed.splitlines()) == [r"error: \xfc", r"sh\xfc", r"sh\xfc/\udcff"]


@pytest.mark.parametrize("trap", ["", "trap '' INT; "])
def test_sigterm_interrupts_also_where_sigint_is_ignored(trap: str, tmp_path: Path) -> None:
    """A shell starts each `command &` of a script with SIGINT ignored."""
    body = "os.kill(os.getpid(), 15); time.sleep(30)"
    assert run_in_shell(body, "2>&1", tmp_path, trap) == (130, "interrupted\n")


def test_sigterm_does_what_the_handler_of_sigint_does(tmp_path: Path) -> None:
    """Ray Tune and Ray Train install their own for the time of a run."""
    body = "import signal; signal.signal(2, lambda *_: print('stopping')); os.kill(os.getpid(), 15); time.sleep(0.1)"
    assert run_in_shell(body, "2>&1", tmp_path, "trap '' INT; ") == (0, "stopping\n")


def run_in_shell(body: str, redirection: str, folder: Path, before: str = "", **environment: str) -> tuple[int, str]:
    """Return exit code and stderr (with `2>&1` also stdout) of a command whose `main` is `body`, run in `folder`."""
    program = (
        "import os, time\nfrom dreamprvr_ray.command_line import print_progress, run\n"
        f"from dreamprvr_ray.errors import UserError\ndef main(arguments):\n  {body}\nrun(main)\n"
    )
    (folder / "main.py").write_text(program, encoding="utf-8")
    words = ["sh", "-c", f"{before}exec {sys.executable} main.py {redirection}"]
    done = subprocess.run(
        words, cwd=folder, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)} | environment
    )
    return done.returncode, done.stdout + done.stderr


def test_version_and_wrong_flags() -> None:
    assert run_main("Parser('train', 'Trains.').parse_args(['--version'])") == (
        0,
        f"dreamprvr_ray {dreamprvr_ray.__version__}\n",
        "",
    )
    message = "error: unrecognized arguments: --wokers 2 (see python -m dreamprvr_ray.train --help)\n"
    assert run_main("Parser('train', 'Trains.').parse_args(['--wokers', '2'])") == (2, "", message)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "the following arguments are required: --config"),
        (["--config"], "argument --config: expected one argument"),
        # Abbreviations are not allowed: a new flag could change their meaning.
        (["--conf", "x"], "unrecognized arguments: --conf; did you mean '--config'?"),
        (["--config", "x", "--jsno", "y"], "unrecognized arguments: --jsno y; did you mean '--json'?"),
        (["--config", "x", "--zzzzzzz=SECRET"], "unrecognized arguments: --zzzzzzz=SECRET"),
    ],
)
def test_parser_errors_are_user_errors(words: list[str], message: str) -> None:
    parser = Parser("train", "Trains.")
    parser.add_argument("--config", required=True)
    with pytest.raises(UserError) as error:
        parser.parse_args(words)
    assert error.value.mistakes == (f"{message} (see python -m dreamprvr_ray.train --help)",)


@pytest.mark.parametrize("module", COMMANDS)
def test_help_and_errors_show_the_command_as_users_call_it(module: str, capsys: pytest.CaptureFixture[str]) -> None:
    main, called = importlib.import_module(module).main, f"python -m {module.removesuffix('.__main__')}"
    with pytest.raises(SystemExit):
        main(["--help"])
    assert " ".join(capsys.readouterr().out.split()).startswith(f"usage: {called} [-h]")
    with pytest.raises(UserError) as error:
        main(["--wrong"])
    assert error.value.mistakes[0].endswith(f" (see {called} --help)")


def test_overrides_are_collected() -> None:
    parser = Parser("train", "Trains.")
    parser.add_overrides()
    assert parser.parse_args(["--set", "a=1", "b=2", "--json", "--set", "c=3"]).set == ["a=1", "b=2", "c=3"]
    assert parser.parse_args([]).set == []
    assert parser.parse_args(["--set", "a=1"]).set == ["a=1"]  # earlier calls have not changed the default


def test_json_is_one_line_without_nan_and_infinities(capsys: pytest.CaptureFixture[str]) -> None:
    print_json(
        {"a": math.nan, "b": [1.5, math.inf, {"c": -math.inf}], "d": (math.nan, 2), "e": None, "f": "NaN", "g": True}
    )
    out = capsys.readouterr().out
    assert out.count("\n") == 1 and out.endswith("\n")

    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is not JSON")

    assert json.loads(out, parse_constant=refuse) == {
        "a": None,
        "b": [1.5, None, {"c": None}],
        "d": [None, 2],
        "e": None,
        "f": "NaN",
        "g": True,
    }


def test_user_errors_survive_pickling() -> None:
    error = pickle.loads(pickle.dumps(UserError("a", "b")))  # noqa: S301
    assert isinstance(error, UserError) and error.mistakes == ("a", "b") and str(error) == "a\nb"


def test_did_you_mean() -> None:
    assert did_you_mean("model.registres", ["model.registers", "model.heads"]) == "; did you mean 'model.registers'?"
    assert did_you_mean("seed", ["training.seed", "sampler.seed"]) == "; did you mean 'training.seed'?"
    assert did_you_mean("zzz", ["training.seed"]) == ""
    assert did_you_mean("zzz", iter(())) == ""
