"""The command line does what its help says, and answers what it cannot do with one line and the right exit code."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from house import python

import interp
from interp.cli import build, main
from interp.commands.bench import measured
from interp.commands.completion import bash, fish, powershell, words, zsh
from interp.planted.probes import probe_task
from interp.zoo.families import tiny

COMMANDS = sorted(words(build()))


def run(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, str, str]:
    """Exit code, what was printed, what was said beside it."""
    code = main(argv)
    said = capsys.readouterr()
    return code, said.out, said.err


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_shows_an_example_of_the_command(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main([*([command] if command else []), "--help"])
    assert stopped.value.code == 0
    printed = capsys.readouterr().out
    assert f"interp {command}".strip() in printed.partition("example")[2]


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys\nfrom interp.cli import main\n"
        "try: main(['report', '--help'])\nexcept SystemExit: pass\n"
        "print([name for name in ('torch', 'transformers', 'numpy', 'pandas') if name in sys.modules])"
    )
    assert python(code).splitlines()[-1] == "[]"


def test_what_a_command_prints_as_json_is_one_object(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, "patch", "zoo:planted-decoder", "--task", "question", "--top", "2", "--json")
    assert code == 0
    found = json.loads(out)
    assert found["command"] == "patch"
    assert {row["site"] for row in found["rows"]} == {"L0.H1.z", "L1.H2.z"}
    assert err.startswith("cost: about")


def test_estimates_come_with_what_checks_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = [
        "attribute",
        "zoo:planted-decoder",
        "--task",
        "induction",
        "--method",
        "atp",
        "--out",
        str(tmp_path / "atp"),
    ]
    code, out, _ = run(capsys, *argv)
    assert code == 0
    assert "Spearman" in out
    assert f"wrote {tmp_path / 'atp'}" in out
    saved = interp.open(tmp_path / "atp")
    assert len(saved.sites) == 12
    assert str(saved.top(1)["site"].item()) in out


def test_heads_sinks_and_retrieval_print_and_write_their_tables(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = "fox = apple , lake = stone , fox ="
    code, out, _ = run(capsys, "sinks", "zoo:planted-decoder", "--text", text, "--out", str(tmp_path / "s.csv"))
    assert code == 0
    assert "L0.H3" in out.splitlines()[1]
    assert (tmp_path / "s.csv").read_text().startswith("site,")
    code, out, _ = run(capsys, "heads", "zoo:planted-decoder", "--text", text, "--kinds", "previous token", "--json")
    assert code == 0
    assert json.loads(out)["rows"][0]["site"] == "L0.H1"
    code, out, _ = run(capsys, "retrieval", "zoo:needle", "-n", "1", "--lengths", "48", "--depths", "0.5", "--json")
    assert code == 0
    assert len(json.loads(out)["rows"]) == 10


def test_a_config_file_stands_under_the_flags(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "patch.yaml"
    file.write_text("model: zoo:planted-decoder\ntask: question\ntop: 3\ndirection: noise\njson: true\n")
    code, out, _ = run(capsys, "patch", "--config", str(file))
    assert code == 0
    rows = json.loads(out)["rows"]
    assert len(rows) == 3
    assert rows[0]["estimate"] < 0
    code, out, _ = run(capsys, "patch", "--config", str(file), "--top", "1", "--direction", "denoise")
    assert len(json.loads(out)["rows"]) == 1
    assert json.loads(out)["rows"][0]["estimate"] > 0
    (tmp_path / "patch.json").write_text(json.dumps({"model": "zoo:planted-decoder", "task": "question", "json": True}))
    assert run(capsys, "patch", "--config", str(tmp_path / "patch.json"))[0] == 0


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("modle: zoo:ioi", "no option 'modle'"),
        ("direction: sideways", "one of denoise, noise"),
        ("top: many", "top is int"),
        ("json: 3", "json is bool"),
        ("- a\n- b", "expected names and values"),
        ("a: [", "is not YAML"),
    ],
)
def test_a_config_file_that_is_wrong_is_answered(
    text: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "c.yaml").write_text(text)
    code, _, err = run(capsys, "patch", "zoo:ioi", "--config", str(tmp_path / "c.yaml"))
    assert code == 2
    assert said in err


def test_bad_requests_are_one_readable_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    shutil.copytree(Path(interp.__file__).parent / "zoo" / "ioi", tmp_path / "broken")
    (tmp_path / "broken" / "config.json").write_text('{"model_type": "no-such-type"}')
    out = str(tmp_path / "out")
    for argv, said in {
        ("patch", "zoo:iio"): "Did you mean 'ioi'?",
        ("patch", "ioi", "--offline"): "Did you mean 'zoo:ioi'?",
        ("patch",): "model is missing",
        ("patch", str(tmp_path / "empty")): "config.json",
        ("patch", str(tmp_path / "nowhere")): "no directory",
        ("patch", str(tmp_path / "broken")): "no-such-type",
        ("patch", "zoo:shapes-vit", "--task", "ioi"): "expected a model that can say",
        ("patch", "zoo:ioi", "--task", "shapes"): "no vision tower",
        ("patch", "zoo:ioi", "--sites", "L9.z"): "no layer 9",
        ("attribute", "zoo:ioi", "--verify", "some"): "--verify",
        ("sinks", str(tmp_path / "nowhere")): "no directory",
        ("sinks", "zoo:ioi", "--file", str(tmp_path / "file")): "is empty",
        ("report", "zoo:ioi"): "--out is missing",
        ("report", "zoo:ioi", "--out", str(tmp_path / "file" / "x")): "cannot be written to",
        ("report", "zoo:ioi", "--task", "nothing", "--out", out): "no task 'nothing'",
        ("run", str(tmp_path / "none.yaml"), "--out", out): "no file",
        ("diff", str(tmp_path), out): "heads.parquet",
        ("zoo", "export", "ioi", str(tmp_path)): "empty",
        ("doctor",): "one of a model, --families, --all and --denoisers",
    }.items():
        code, _, err = run(capsys, *argv)
        lines = [line for line in err.splitlines() if not line.startswith("cost:")]
        assert (code, len(lines)) == (2, 1), (argv, err)
        assert said in lines[0], (argv, err)
    assert not (tmp_path / "out").exists()


def test_debug_shows_where_an_error_came_from(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(interp.InterpError, match="Did you mean"):
        main(["patch", "zoo:iio", "--debug"])


def test_unknown_commands_and_flags_exit_with_2(capsys: pytest.CaptureFixture[str]) -> None:
    for argv in (["nonsense"], ["patch", "zoo:ioi", "--sights", "a"], ["patch", "-n", "0", "zoo:ioi"], []):
        with pytest.raises(SystemExit) as stopped:
            main(argv)
        assert stopped.value.code == 2


FULL = "import resource, signal\nresource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))\n"


def test_a_full_disk_is_one_line_and_leaves_nothing_half_written(tmp_path: Path) -> None:
    out = tmp_path / "out"
    argv = ["report", "zoo:planted-backup", "--out", str(out), "--draws", "1", "--random", "1", "--no-circuit"]
    code = f"{FULL}from interp.cli import main\nraise SystemExit(main({argv!r}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert "File too large" in done.stderr.splitlines()[-1]
    assert not list(out.rglob("*.part*"))
    assert not (out / "report.html").exists()
    assert main([*argv, "--resume"]) == 0


@pytest.mark.parametrize(
    "argv", [["zoo", "export", "ioi"], ["prune", "zoo:shapes-vit", "--keep-fraction", "0.5", "-n", "4", "--out"]]
)
def test_a_model_that_does_not_fit_the_disk_is_one_line_and_no_directory(argv: list[str], tmp_path: Path) -> None:
    code = f"{FULL}from interp.cli import main\nraise SystemExit(main({[*argv, str(tmp_path / 'out')]!r}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, "Traceback" in done.stderr) == (2, False), done.stderr
    assert "File too large" in done.stderr.splitlines()[-1]
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_is_130_and_no_traceback(tmp_path: Path) -> None:
    out = tmp_path / "out"
    call = [sys.executable, "-m", "interp", "report", "zoo:planted-decoder", "--out", str(out)]
    # a shell that runs the tests in the background lets its children ignore the signal
    listen = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    process = subprocess.Popen(call, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, preexec_fn=listen)
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("checks"):
            break
    process.send_signal(signal.SIGINT)
    _, err = process.communicate()
    assert process.returncode == 130, err
    assert "Traceback" not in err
    assert "stopped" in err
    assert not (out / "run.json").exists()
    assert not list(out.rglob("*.part*"))


def test_offline_is_said_before_transformers_is_imported() -> None:
    code = (
        "import os, sys\nfor name in ('HF_HUB_OFFLINE', 'TRANSFORMERS_OFFLINE'): os.environ.pop(name, None)\n"
        "from interp.cli import main\nprint(main(['patch', 'nobody/nothing', '--offline']))\n"
        "from huggingface_hub import constants\nprint(constants.HF_HUB_OFFLINE)\n"
        "print([room for room in ('reporting', 'explorer', 'circuits', 'heads') if f'interp.{room}' in sys.modules])"
    )
    assert python(code).splitlines()[-3:] == ["2", "True", "[]"]  # nor are rooms that patching does not need


def test_completion_knows_every_command_and_is_a_script(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    known = words(build())
    assert "--resume" in known["report"]
    assert "export" in known["zoo"]
    for script in (bash(known), zsh(known)):
        assert all(f"{name})" in script for name in COMMANDS)
    code, out, _ = run(capsys, "completion", "bash")
    assert code == 0
    (tmp_path / "c.bash").write_text(out + '\nCOMP_WORDS=(interp rep); COMP_CWORD=1; _interp; echo "${COMPREPLY[@]}"')
    found = subprocess.run(["bash", str(tmp_path / "c.bash")], capture_output=True, text=True, check=True)
    assert found.stdout.split() == ["report"]


def test_fish_is_given_every_command_flag_and_word() -> None:
    known = words(build())
    first, *rest = fish(known).splitlines()
    assert first == f"complete -c interp -f -n __fish_use_subcommand -a '{' '.join(known)}'"
    found = [
        re.fullmatch(r"complete -c interp -n '__fish_seen_subcommand_from (\w+)' -([la]) ([\w-]+)", one) for one in rest
    ]
    read = [(one[1], ("--" if one[2] == "l" else "") + one[3]) for one in found if one]
    assert read == [(name, option) for name, options in known.items() for option in options]


def test_powershell_is_given_every_command_flag_and_word() -> None:
    known, script = words(build()), powershell(words(build()))
    rows = dict(re.findall(r"^    '(\w+)' = @\((.*)\)$", script, re.MULTILINE))
    assert {name: re.findall(r"'([\w-]+)'", row) for name, row in rows.items()} == known
    for opened, closed in ("{}", "()", "[]"):
        assert script.count(opened) == script.count(closed)
    assert script.startswith("Register-ArgumentCompleter -Native -CommandName interp -ScriptBlock {\n")


def test_bench_compares_the_same_work() -> None:
    m = interp.load("zoo:planted-backup")
    rows = measured(m, probe_task("planted-backup", model=m), 1)
    assert len(rows) == 3
    assert all(row["ratio"] == row["seconds"] / row["plain_seconds"] > 0 for row in rows)


def test_the_zoo_is_listed_shown_and_exported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "zoo:planted-backup" in run(capsys, "zoo")[1]
    assert "L0.H1" in run(capsys, "zoo", "card", "planted-decoder")[1]
    code, out, _ = run(capsys, "zoo", "export", "planted-backup", str(tmp_path / "own"), "--json")
    assert code == 0
    assert "wrote" in json.loads(out)["text"]
    assert run(capsys, "patch", str(tmp_path / "own"), "--task", "ioi")[0] == 2


def test_pruning_keeps_what_it_says_and_judges_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["prune", "zoo:planted-vit", "-n", "1", "--keep-fraction", "0.5", "--out", str(tmp_path / "half"), "--json"]
    code, out, _ = run(capsys, *argv)
    found = json.loads(out)
    assert code == 0
    assert found["counts"]["heads"] == [8, 4]
    assert "L1.H2" not in found["gone"]
    assert found["before"] == found["after"] == 1
    assert interp.load(tmp_path / "half").ready()


def test_doctor_of_families_prints_one_json_object_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--families", "plain", "--json"]) == 0
    row = json.loads(capsys.readouterr().out)
    assert row["family"] == "plain"
    assert row["checks"]["zero"] == "pass"


def test_doctor_of_a_local_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny("llama").save_pretrained(tmp_path)
    code, out, _ = run(capsys, "doctor", str(tmp_path), "--json")
    found: dict[str, Any] = json.loads(out)
    assert code == 0
    assert found["passed"]
    assert "residual" in {line["name"] for line in found["checks"]}


def test_a_reader_that_goes_away_is_no_error() -> None:
    call = [sys.executable, "-m", "interp", "zoo"]
    with subprocess.Popen(call, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 0
