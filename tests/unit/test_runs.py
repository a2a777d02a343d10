"""The folder of a run: who may overwrite it."""

from conftest import TINY
from uatmc_dist import runs
from uatmc_dist.config import Config


def test_a_restart_of_the_same_launch_does_not_overwrite(tmp_path, monkeypatch):
    config = Config.model_validate({**TINY, "catalog": "x", "output_dir": str(tmp_path)})
    run = runs.RunFolder(config.run_dir)
    for launch, other in (("first", "second"), ("second", "first")):
        monkeypatch.setenv("TORCHELASTIC_RUN_ID", launch)
        assert not run.is_of_launch(runs.launch_id())
        run.prepare(config, runs.environment("cpu", 1, 0), overwrite=True)
        assert run.is_of_launch(launch) and not run.is_of_launch(other)
    # torchrun's default names nothing.
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    assert runs.launch_id() is None and not run.is_of_launch(None)
