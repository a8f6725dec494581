"""What a user can mend ends in its message; an error that nobody foresaw keeps its traceback."""

import logging

import pytest
import torch

from igvg_d2.engine import train_net
from igvg_d2.engine.output_lock import LOCK
from igvg_d2.engine.setup import setup_config
from igvg_d2.io.atomic import check_writable


def foreseen():
    setup_config("absent.yaml")


def unforeseen():
    torch.zeros(2) + torch.zeros(3)


def kind_of(function):
    try:
        function()
    except Exception as error:
        return train_net.is_explained(error)


def test_which_errors_are_explained(tmp_path):
    (tmp_path / "file").touch()
    assert kind_of(foreseen)
    assert kind_of(lambda: check_writable(str(tmp_path / "file" / "x")))
    assert not kind_of(unforeseen) and not kind_of(lambda: open("absent"))
    with pytest.raises(ValueError) as error:
        raise ValueError("of somebody else")
    assert not train_net.is_explained(error.value)


def test_a_foreseen_error_of_a_run_is_one_message(monkeypatch, caplog):
    monkeypatch.setattr(train_net, "run", lambda *args: foreseen())
    with pytest.raises(SystemExit) as ended:
        train_net._run_and_explain()
    assert ended.value.code == 1
    (record,) = caplog.records
    assert record.getMessage().startswith("no config file 'absent.yaml'") and not record.exc_info


def test_detectron2_logs_tracebacks_of_others_only(caplog):
    logger = logging.getLogger("detectron2.engine.train_loop")
    logger.addFilter(train_net._is_needed)
    for function in (foreseen, unforeseen):
        try:
            function()
        except Exception:
            logger.exception("Exception during training:")
    logger.removeFilter(train_net._is_needed)
    assert len(caplog.records) == 1 and "size of tensor" in caplog.text


def command(folder, *more):
    return ["OUTPUT_DIR", str(folder), "MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", "", *more]


def test_the_command_line_ends_with_messages(monkeypatch, tmp_path):
    for arguments, message in [
        (["SEEDS", "1"], "options KEY VALUE of the command line.*SEEDS"),
        (command(tmp_path, "MODEL.WEIGHTS", "no.pth"), "MODEL.WEIGHTS: no file 'no.pth'"),
        (["--num-gpus", "0", *command(tmp_path)], "--num-gpus: expected 1 or more"),
    ]:
        with pytest.raises(SystemExit, match=message):
            train_net.main(arguments)


@pytest.mark.parametrize("error, code", [(KeyboardInterrupt, 130), (SystemExit(75), 75)])
def test_the_folder_is_locked_while_a_run_lasts(monkeypatch, tmp_path, error, code):
    def run(*args, **kwargs):
        with pytest.raises(SystemExit, match="is in use by process"):
            train_net.main(command(tmp_path))
        raise error

    monkeypatch.setattr(train_net, "launch", run)
    with pytest.raises(SystemExit) as ended:
        train_net.main(command(tmp_path))
    assert ended.value.code == code and not (tmp_path / LOCK).exists()
