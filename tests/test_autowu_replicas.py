"""AutoWU sees the same losses and decides the same on one device and on several."""

import numpy as np
import pytest

from tests import autowu_run
from tests.autowu_problem import KERNEL, LONG_ENOUGH, STEPS, At, X, Y, batches, by_hand, fit, made, poison
from tests.autowu_run import INTERRUPTED, INTERVAL, REPEATS, ready, summary
from tests.support import TENSORFLOW, assert_all_close, assert_close, tensorflow_only
from tests.workers import EIGHT_DEVICES, one

if TENSORFLOW:
    from tests.test_replicas import mirrored

SAME = 5e-6
replicas_only = tensorflow_only("tf.distribute")


@pytest.fixture(scope="module")
def one_device():
    model, callback = ready()
    fit(model, callback, epochs=LONG_ENOUGH)
    return summary(model, callback)


def assert_same_run(found, expected):
    # Learning rates of almost 3 magnify what sums in another order round differently.
    np.testing.assert_allclose(found["losses"], expected["losses"], rtol=2 * SAME, atol=2 * SAME)
    assert_all_close(found["weights"], expected["weights"], 10 * SAME)
    assert np.abs(np.subtract(found["weights"][0], KERNEL)).max() > 1
    assert found["switch"][:2] == expected["switch"][:2] == [72, "gaussian process"]
    assert found["switch"][2] == pytest.approx(expected["switch"][2], rel=1e-6)
    np.testing.assert_allclose(found["rates"], expected["rates"], rtol=1e-6)


@replicas_only
@pytest.mark.parametrize("replicas", [2, 4])
def test_mirrored(one_device, replicas):
    with mirrored(replicas).scope():
        model, callback = ready()
    autowu_run.fit(model, callback)
    assert_same_run(summary(model, callback), one_device)


@replicas_only
@pytest.mark.parametrize(("replicas", "rest"), [(2, 3), (4, 2)], ids=["2_and_1", "1_1_0_and_0"])
def test_loss_of_shares_of_different_size_is_that_of_the_batch(replicas, rest):
    x, y = X[: 256 + rest], Y[: 256 + rest]
    with mirrored(replicas).scope():
        model, callback = made()
    fit(model, callback, x=x, y=y, epochs=1)
    assert_close(callback.losses, by_hand(1, data=batches(x, y)).losses, SAME)


@replicas_only
def test_weights_are_restored_on_replicas():
    """Those of step 15: with those of step 20, losses had not been computed when weights became NaN."""
    with mirrored(2).scope():
        model, callback = made(callback={"on_divergence": "restore"}, options={"steps_per_check": STEPS})
    with pytest.warns(UserWarning, match="all 5 losses up to step 25 are NaN or infinite"):
        autowu_run.fit(model, At(1, poison), callback, epochs=2)
    assert (callback.schedule.controller.switch_step, callback.schedule.controller.reason) == (35, "guard")
    hand = by_hand(8)
    assert_close(callback.losses[:20], hand.losses[:20], 5e-5)
    assert np.isnan(callback.losses[20:35]).all()
    assert callback.losses[35] == pytest.approx(hand.losses[15], rel=1e-5)  # the same batch
    assert np.isfinite(callback.losses[36:]).all()


def assert_resumed(found):
    """The interrupted run went on as the other did."""
    assert found["whole"]["losses"][INTERRUPTED * REPEATS * STEPS :] == found["resumed"]["losses"]
    for name in ("decisions", "switch", "rates", "weights"):
        assert found["whole"][name] == found["resumed"][name], name


@pytest.mark.skipif(TENSORFLOW, reason="keras.distribution.DataParallel needs JAX")
def test_data_parallel(one_device, tmp_path):
    found = one("tests.autowu_run", tmp_path / "backup", folder=tmp_path, XLA_FLAGS=EIGHT_DEVICES)
    assert found["devices"] == 8
    assert_same_run(found["whole"], one_device)
    assert_resumed(found)


def test_one_device_is_as_by_hand(one_device):
    hand = by_hand(LONG_ENOUGH, interval=INTERVAL)
    assert_close(one_device["losses"], hand.losses, 5e-5)
    assert one_device["switch"][0] == hand.controller.switch_step
