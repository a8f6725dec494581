"""A short run of dev/fuzz_predictions.py, and a proof that it sees a wrong number."""

from tests.scripts import load_script

fuzzer = load_script("dev/fuzz_predictions.py")


def test_damaged_files_end_in_an_error_or_a_correct_number(tmp_path):
    outcomes, failures = fuzzer.fuzz(150, 1, tmp_path)
    assert not failures, failures[:3]
    assert outcomes["refused"] > 50 and outcomes["scored"] > 3


def test_a_wrong_number_is_seen(tmp_path, monkeypatch):
    # Expecting another number is as good as computing one.
    right = fuzzer.expected_numbers
    monkeypatch.setattr(
        fuzzer, "expected_numbers", lambda *args: tuple(x + 1.0 for x in right(*args))
    )
    outcomes, failures = fuzzer.fuzz(40, 1, tmp_path)
    assert outcomes["wrong"] == len(failures) > 0 and "gIoU" in failures[0]
    assert len(list(tmp_path.glob("failure_*.json"))) == len(failures)
