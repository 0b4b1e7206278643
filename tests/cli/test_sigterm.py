"""A scheduler that takes the machine away."""

import signal
import subprocess
import sys
import time


def test_a_run_that_is_ended_leaves_nothing(weights, photographs, small_options, tmp_path):
    command = [
        sys.executable, "-m", "repquant", "ptq", "--weights", weights, "--data", photographs, *small_options,
        "--calibration-images", "16", "--target", "tensorrt", "--output", tmp_path / "runs" / "one",
    ]  # fmt: skip
    with subprocess.Popen([str(part) for part in command], stderr=subprocess.PIPE, text=True) as process:
        while not list(tmp_path.glob(".one.*")):
            assert process.poll() is None, process.stderr
            time.sleep(0.01)
        process.terminate()
        _, err = process.communicate()
    assert process.returncode == 128 + signal.SIGTERM
    assert "Traceback" not in err
    assert list(tmp_path.iterdir()) == []
