"""launch/slurm: what submit.sh would submit and refuses, and the scripts on a real one-machine cluster of two nodes."""

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import ROOT

SLURM = ROOT / "launch/slurm"
CONFIG = ROOT / "configs/quickstart.yaml"


def run(*command: str | Path, path: str | None = None, **environment: str) -> subprocess.CompletedProcess:
    """A script in the project's folder, without what a SLURM job around the tests may have set."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("SLURM")}
    path = path or f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return subprocess.run(
        [*map(str, command)], cwd=ROOT, env={**inherited, "PATH": path, **environment}, capture_output=True, text=True
    )


def submit(*arguments: str | Path, **options) -> subprocess.CompletedProcess:
    return run(SLURM / "submit.sh", *arguments, **options)


def only_error(done: subprocess.CompletedProcess) -> str:
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ") and not done.stdout
    return line


@pytest.fixture
def bare_path(tmp_path) -> str:
    """A PATH with what submit.sh needs, and without SLURM."""
    for tool in ("bash", "env", "realpath", "dirname", "basename", "cat", "mkdir"):
        (tmp_path / tool).symlink_to(shutil.which(tool))
    return str(tmp_path)


@pytest.fixture
def fake(tmp_path):
    """Puts a command of that name before all others; returns the PATH."""

    def put(name: str, body: str) -> str:
        script = tmp_path / name
        script.write_text(f"#!/bin/sh\n{body}\n")
        script.chmod(0o755)
        return f"{tmp_path}:{os.environ['PATH']}"

    return put


def test_dry_run_prints_the_command_and_the_script_without_slurm(bare_path):
    done = submit("--dry-run", CONFIG, path=bare_path)
    assert done.returncode == 0, done.stderr
    command, _, script = done.stdout.partition("\n\n")
    assert shlex.split(command) == [
        "sbatch", f"--chdir={ROOT}", "--job-name=quickstart", "--nodes=1", f"--output={ROOT}/runs/slurm-%x-%j.out",
        str(SLURM / "train.sbatch"), "1", str(CONFIG),
    ]  # fmt: skip
    assert script == (SLURM / "train.sbatch").read_text()
    for line in ("--requeue", "--open-mode=append", "--signal=B:USR1@120", "--ntasks-per-node=1"):
        assert f"#SBATCH {line}\n" in script


def test_every_option_reaches_sbatch_and_spaces_stay(tmp_path):
    options = ["--nodes", "4", "--gpus-per-node=8", "--cpus-per-node", "64", "--time=1-12:00:00", "--partition", "gpu"]
    overrides = ["name=my shop", "training.lr=3e-4", "attack.seeds=[1, 2]"]
    done = submit("--dry-run", *options, "--seeds", "0-2,7", "--logs", tmp_path, CONFIG, *overrides)
    assert done.returncode == 0, done.stderr
    assert shlex.split(done.stdout.splitlines()[0]) == [
        "sbatch", f"--chdir={ROOT}", "--job-name=my shop", "--nodes=4", "--gpus-per-node=8", "--cpus-per-task=64",
        "--time=1-12:00:00", "--partition=gpu", "--array=0-2,7", f"--output={tmp_path}/slurm-%x-%A_%a.out",
        str(SLURM / "train.sbatch"), "8", str(CONFIG), *overrides,
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "a configuration is missing"),
        (["no-such.yaml"], "no-such.yaml: no such file"),
        (["--nodes", "two", CONFIG], "--nodes two: a whole number from 1"),
        (["--nodes=0", CONFIG], "--nodes 0: a whole number from 1"),
        (["--gpus-per-node=-1", CONFIG], "--gpus-per-node -1: a whole number from 1"),
        (["--ranks-per-node=1.5", CONFIG], "--ranks-per-node 1.5: a whole number from 1"),
        (["--gpus-per-node=8", "--ranks-per-node=4", CONFIG], "one rank a GPU"),
        (["--time=soon", CONFIG], "--time soon: minutes"),
        (["--partition=", CONFIG], "--partition : the name of a partition"),
        (["--seeds=a", CONFIG], "--seeds a: a list such as 0-4"),
        (["--seeds=0-4", CONFIG, "seed=1"], "--seeds sets the seed already"),
        (["--nodes"], "--nodes: a value is missing"),
        (["--nods=2", CONFIG], "--nods: no such option"),
        ([CONFIG, "--nodes=2"], "options come before the configuration"),
        ([CONFIG, "training.lr"], "training.lr: not an override"),
        ([CONFIG, "--overwrite"], "would delete its own work"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(arguments, message):
    done = submit("--dry-run", *arguments)
    assert done.returncode == 2
    assert message in only_error(done)


def test_without_slurm_submitting_says_so(bare_path):
    done = submit(CONFIG, path=bare_path)
    assert done.returncode == 2
    assert "sbatch: not found" in only_error(done)


def test_help():
    done = submit("--help")
    assert done.returncode == 0 and "--seeds LIST" in done.stdout


def test_outside_a_job_there_is_no_silent_localhost():
    done = run(SLURM / "train.sbatch", "1", CONFIG)
    assert done.returncode == 2
    assert "SLURM_JOB_NODELIST is empty" in only_error(done)


def test_nodes_that_would_meet_on_loopback_are_refused(fake):
    job = {"SLURM_JOB_NUM_NODES": "2", "SLURMD_NODENAME": "n2", "SLURM_NODEID": "1", "GLOO_SOCKET_IFNAME": ""}
    done = run(SLURM / "node.sh", "another-machine", "localhost:1", "1", CONFIG, **job)
    assert done.returncode == 1
    assert "n2: localhost is this machine itself here" in only_error(done)
    done = run(
        SLURM / "node.sh", "localhost", "localhost:1", "1", CONFIG, path=fake("hostname", "echo localhost"), **job
    )
    assert done.returncode == 1
    assert "set GLOO_SOCKET_IFNAME" in only_error(done)


def test_address_of_a_node(fake):
    ask = ("bash", "-c", f"source {SLURM}/lib.sh; address_of no-such-node.invalid")
    done = run(*ask, path=fake("scontrol", "echo '   NodeAddr=127.0.0.1 NodeHostName=here Port=1'"))
    assert done.stdout == "127.0.0.1\n"
    done = run(*ask, path=fake("scontrol", "echo '   NodeAddr=no-such-node.invalid NodeHostName=here Port=1'"))
    assert done.returncode == 1
    assert "node no-such-node.invalid: its name does not resolve" in only_error(done)


def test_a_wrong_environment_ends_the_job_with_what_doctor_says(fake):
    path = fake("python", "echo 'error: torch: not what runs together' >&2; exit 2")
    done = run(SLURM / "check.sh", path=path, SLURMD_NODENAME="n7")
    assert done.returncode == 2
    assert done.stderr == "n7: error: torch: not what runs together\n"


@pytest.fixture
def interrupted_job(fake, write_config):
    """train.sbatch as SLURM would start it, with a step that is interrupted; `requeue` says what it asked SLURM for."""
    fake("srun", 'case "$*" in *node.sh*) exit 75 ;; esac')

    def run_job(state: str, start: int) -> subprocess.CompletedProcess:
        path = fake(
            "scontrol", f'case "$1" in hostnames) ;; requeue) echo "asked: $*" ;; *) echo "JobState={state} n1" ;; esac'
        )
        job = {
            "SLURM_JOB_NODELIST": "n1",
            "SLURM_JOB_NUM_NODES": "1",
            "SLURM_JOB_ID": "9",
            "SLURM_RESTART_COUNT": start,
        }
        job |= {"SLURM_ARRAY_JOB_ID": "9", "SLURM_ARRAY_TASK_ID": "3"}
        fake("getent", "echo 10.1.2.3")
        path = f"{path.split(':')[0]}:{Path(sys.executable).parent}:{os.environ['PATH']}"
        return run(
            SLURM / "train.sbatch", "1", write_config(), path=path, **{key: str(value) for key, value in job.items()}
        )

    return run_job


def test_an_interrupted_job_is_requeued_only_while_it_runs(interrupted_job):
    done = interrupted_job("RUNNING", start=0)
    assert done.returncode == 75, done.stdout + done.stderr
    assert "tiny-seed3: the ranks meet at" in done.stdout
    assert "asked: requeue 9_3\n" in done.stdout, "not the number alone: it names all tasks of the array"
    done = interrupted_job("COMPLETING", start=0)
    assert done.returncode == 75 and "asked" not in done.stdout, "cancelled, or requeued by SLURM itself"


def test_a_job_without_progress_ends_some_time(interrupted_job):
    assert "asked: requeue" in interrupted_job("RUNNING", start=4).stdout
    done = interrupted_job("RUNNING", start=5)
    assert done.returncode == 1 and "asked" not in done.stdout
    assert "start 6 of this job wrote no checkpoint; not requeued" in done.stderr


def test_two_nodes_preempted_requeued_and_finished(tmp_path):
    done = run(SLURM / "test-cluster.sh", tmp_path)
    if done.returncode == 77:
        pytest.skip(done.stdout.strip())
    assert done.returncode == 0, done.stdout + done.stderr
    assert "passed: preempted, requeued by hand, went on twice, finished" in done.stdout
