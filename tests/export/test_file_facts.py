import onnx
import pytest
from onnx import TensorProto, helper

from repquant.errors import InputError
from repquant.export.file_facts import FileFacts, read_file_facts


def model(shape=("n", 3, 24, 24)):
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in ("x", "y")]
    return helper.make_model(helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", ends[:1], ends[1:]))


ALL = FileFacts(
    image_size=160, crop_ratio=0.875, mean=(0.5, 0.4, 0.3), std=(0.1, 0.2, 0.3), classes=("h\u00e9ron", "1"),
    calibrator="mse", target="openvino", version="0.1.0",
)  # fmt: skip


@pytest.mark.parametrize("facts", [ALL, FileFacts(), FileFacts(version="2")])
def test_what_is_written_is_read_back(facts):
    file = model()
    file.metadata_props.add(key="author", value="somebody")
    facts.write(file)
    assert FileFacts.read(file) == facts


def test_keys_are_those_that_other_programs_can_rely_on():
    file = model()
    ALL.write(file)
    entries = {entry.key: entry.value for entry in file.metadata_props}
    assert entries["repquant.mean"] == "[0.5, 0.4, 0.3]"
    assert entries["repquant.classes"] == '["h\u00e9ron", "1"]'
    assert entries["repquant.calibrator"] == "mse"


@pytest.mark.parametrize(
    ("shape", "size"), [(("n", 3, 24, 24), 24), (("n", 3, 24, 32), None), (("n", 3, "h", "h"), None)]
)
def test_the_size_of_other_tools_files_is_that_of_their_input(shape, size, tmp_path):
    onnx.save(model(shape), tmp_path / "m.onnx")
    assert read_file_facts(tmp_path / "m.onnx") == FileFacts(image_size=size)


@pytest.mark.parametrize(
    ("key", "value"), [("mean", "[1, 2]"), ("mean", "{"), ("image_size", "large"), ("classes", "7")]
)
def test_damaged_entries_are_refused(key, value):
    file = model()
    file.metadata_props.add(key=f"repquant.{key}", value=value)
    with pytest.raises(InputError, match=r"entries repquant\.\* are damaged"):
        FileFacts.read(file)
