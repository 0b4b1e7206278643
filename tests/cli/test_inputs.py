from repquant.cli.inputs import open_calibration
from repquant.cli.options import CalibrationOptions, DataOptions
from repquant.data.datasets import open_split
from repquant.train.held_back import hold_back


def test_no_image_that_is_held_back_calibrates(photographs):
    data = DataOptions(data=str(photographs), image_size=32)
    options = CalibrationOptions(calibration_images=16)
    source = open_split(photographs, "train")
    rest, held = hold_back(source, 8)
    calibration = open_calibration(options, data, str(photographs), 4, held_back_images=8)
    names = {rest.name(index) for index in calibration.subset.indices}
    assert len(names) == 16
    assert names.isdisjoint(held.name(index) for index in range(len(held)))
    assert calibration.ranges.images == 16
    assert calibration.rounding is not None
    assert calibration.rounding.images == 4
