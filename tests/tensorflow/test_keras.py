"""A Keras model to ONNX and TFLite, and the twin of machine_state: ./inv test --tensorflow."""

from pathlib import Path

import keras
import numpy as np
import pytest

from gateway.errors import ModelError
from models.machine_state import data, keras_twin
from sdk.optimise import keras as convert
from sdk.optimise.keras import from_keras
from sdk.optimise.parity import parity
from sdk.optimise.quantise import onnx_int8
from sdk.optimise.variants import Built
from sdk.recordings import load

pytestmark = [pytest.mark.timeout(600), pytest.mark.filterwarnings("ignore")]  # TensorFlow's own


def test_a_keras_model_answers_the_same_on_every_runtime_and_twice_gives_the_same_bytes() -> None:
    keras.utils.set_random_seed(1)
    network = keras_twin.build_network()
    files, again = (from_keras(network, inputs=("window",), outputs=("logits",)) for _ in range(2))
    assert [one.digest for one in files] == [one.digest for one in again]
    windows = [np.random.default_rng(i).random((1, 2, data.LENGTH), np.float32) for i in range(20)]
    right = [[np.asarray(network(window))] for window in windows]
    files.append(Built.onnx(onnx_int8(files[0].data, windows, ops=("Conv",)), "int8"))
    found = parity(files, windows, reference=right)
    assert {one.built.variant.file: one.fault for one in found if not one.ran} == {}
    assert {one.backend for one in found} == {"onnx", "openvino", "litert"}
    for one in found:
        assert one.worst is not None
        assert one.worst < (1e-4 if one.built.variant.precision == "fp32" else 0.1), str(one)


def test_names_must_fit_the_model() -> None:
    with pytest.raises((ModelError, ValueError)):
        from_keras(keras_twin.build_network(), inputs=("a", "b"))


def test_the_twin_learns_the_states() -> None:
    recordings = load()
    files = keras_twin.train(recordings, epochs=8, plays=2)
    known = data.windows(data.select(recordings, "validation"), seed=0)
    [onnx] = [one for one in parity(files, [data.relative(known.x[:1])]) if one.backend == "onnx"]
    from sdk.optimise.parity import runner

    run = runner(onnx.built, "onnx")
    said = np.array([run((x,))[0].argmax() for x in data.relative(known.x)[:, None]])
    assert data.f1(data.confusion(known.y, said)).mean() > 0.9


def test_a_saved_file_is_converted_and_what_is_none_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    keras.utils.set_random_seed(1)
    network = keras.Sequential(
        [keras.Input((1, 64)), keras.layers.Permute((2, 1)), keras.layers.Conv1D(4, 5), keras.layers.Flatten()]
    )
    network.save(tmp_path / "press.keras")
    monkeypatch.setattr("sys.argv", ["keras", str(tmp_path / "press.keras"), "--output", str(tmp_path / "out")])
    convert.main()
    assert "model.tflite" in capsys.readouterr().out
    x = np.random.default_rng(1).random((1, 1, 64), np.float32)
    made = [
        Built.onnx((tmp_path / "out/model.onnx").read_bytes(), "fp32"),
        Built.tflite((tmp_path / "out/model.tflite").read_bytes(), "fp32"),
    ]
    for one in parity(made, [x], reference=[[np.asarray(network(x))]]):
        assert one.worst is not None and one.worst < 1e-5, one.fault
    with pytest.raises(ModelError, match="no such file"):
        convert.read_keras(tmp_path / "none.keras")
    (tmp_path / "bad.keras").write_bytes(b"no zip")
    with pytest.raises(ModelError, match="Keras cannot read it"):
        convert.read_keras(tmp_path / "bad.keras")
