"""The folder of a run: who may overwrite it."""

import pytest
import yaml

from conftest import TINY
from uatmc_dist import runs
from uatmc_dist.config import Config
from uatmc_dist.errors import UserError


def test_a_restart_of_the_same_launch_does_not_overwrite(tmp_path, monkeypatch):
    config = Config.model_validate({**TINY, "catalog": "x", "output_dir": str(tmp_path)})
    run = runs.RunFolder(config.run_dir)
    for launch, other in (("first", "second"), ("second", "first")):
        monkeypatch.setenv("TORCHELASTIC_RUN_ID", launch)
        assert not run.is_of_launch(runs.launch_id())
        run.prepare(config, runs.environment("cpu", 1, 0, "digest"), overwrite=True)
        assert run.is_of_launch(launch) and not run.is_of_launch(other)
    # torchrun's default names nothing.
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    assert runs.launch_id() is None and not run.is_of_launch(None)


def test_an_unfinished_run_of_an_earlier_version_goes_on_and_one_of_other_options_does_not(tmp_path):
    config = Config.model_validate({**TINY, "catalog": "x", "output_dir": str(tmp_path)})
    run = runs.RunFolder(config.run_dir)
    run.prepare(config, runs.environment("cpu", 1, 0, "digest"), overwrite=False)
    path = config.run_dir / "config.yaml"
    values = yaml.safe_load(path.read_text())
    del values["content_attack"], values["adversarial"]["budget"]  # which an earlier version did not know
    path.write_text(yaml.safe_dump(values))
    run.check(config, "digest", overwrite=False)
    changed = config.model_copy(update={"seed": 1})
    with pytest.raises(UserError, match="seed was 0, is 1"):
        run.check(changed, "digest", overwrite=False)
    with pytest.raises(UserError, match="x is not the catalog that it began with"):
        run.check(config, "another digest", overwrite=False)


def test_two_processes_do_not_train_into_one_run(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(runs, "_LOCK_WAIT_S", 1)
    config = Config.model_validate({**TINY, "catalog": "x", "output_dir": str(tmp_path)})
    first, second = runs.RunFolder(config.run_dir), runs.RunFolder(config.run_dir)
    environment = runs.environment("cpu", 1, 0, "digest")
    first.prepare(config, environment, overwrite=False)
    (first.path / "mine").mkdir()
    for overwrite in (False, True):
        with pytest.raises(UserError, match="another process trains into it"):
            second.prepare(config, environment, overwrite)
    assert "waiting for it" in caplog.text and (first.path / "mine").exists()
    first.release()
    second.prepare(config, environment, overwrite=True)
    assert not (first.path / "mine").exists()
    second.release()
    second.model.mkdir()
    (second.model / "model.safetensors").touch()
    with pytest.raises(UserError, match="this run is finished"):
        first.prepare(config, environment, overwrite=False)


def test_what_cannot_be_written_is_one_line_and_leaves_what_was_there(tmp_path):
    run = runs.RunFolder(tmp_path)
    run.write_json("evaluation.json", {"a": 1})

    def fails(unfinished):
        unfinished.write_text("half")
        raise OSError(28, "No space left on device")

    with pytest.raises(UserError, match=r"evaluation\.json: cannot be written \(No space left on device\); free space"):
        run.write("evaluation.json", fails)
    assert run.read_json("evaluation.json") == {"a": 1} and [file.name for file in tmp_path.iterdir()] == [
        "evaluation.json"
    ]
