"""`schedules.AutoWU`: the controller's rates at every step, in the graph and out of it; its config and its state."""

import json
import warnings

import numpy as np
import pytest

from keras_lsb.scaling import AutoWUController, autowu
from keras_lsb.schedules import AutoWU
from tests.support import TENSORFLOW, keras, ops, tensorflow_only, to_numpy

TOTAL, LIMIT, CHECK = 200, 100, 10
VALLEY = [2.3 - 3 * (t / 100) + 3 * (t / 100) ** 2 for t in range(LIMIT)]  # ends the warm-up at step 80
FALL = [2.3 * np.exp(-t / 60) for t in range(LIMIT)]  # never does
PRECISION = 1e-6  # of a power in float32


def made(**arguments):
    return AutoWU(**{"total_steps": TOTAL, "steps_per_check": CHECK, **arguments})


def linear_decay():
    """Falls to a tenth: not the same as another decay anywhere."""
    return keras.optimizers.schedules.PolynomialDecay(1.0, decay_steps=1, end_learning_rate=0.1)


def fed(schedule, losses, count):
    """The schedule after `count` losses."""
    schedule.start()
    for start in range(0, count, CHECK):
        schedule.update(losses[start : start + CHECK], start + CHECK)
    return schedule


def values(schedule, steps=range(TOTAL + 1)):
    return to_numpy(schedule(ops.convert_to_tensor(np.array(steps, "int32"))))


def expected(losses, count, **options):
    """Rates of a controller that was given `count` losses; beyond what it knows, as if its limit ended the warm-up."""
    controller = AutoWUController(TOTAL, CHECK, **options)
    controller.replay(losses[:count])
    rates, limit = controller.rates, controller.rates.limit
    if controller.phase == "decay":
        return np.array([controller.learning_rate(step) for step in range(TOTAL + 1)])
    decay = [float(rates.during_decay(step, limit, rates.limit_peak)) for step in range(limit, TOTAL + 1)]
    return np.array([controller.learning_rate(step) for step in range(limit)] + decay)


DECAYS = ["cosine", "half-cosine", "constant-cosine", linear_decay()]


@pytest.mark.parametrize("decay", DECAYS, ids=["cosine", "half-cosine", "constant-cosine", "schedule"])
@pytest.mark.parametrize("warmup", ["exponential", "linear"])
def test_values_are_the_controller_s(warmup, decay):
    options = {"warmup": warmup, "decay": decay}
    for losses, count in ((VALLEY, 0), (VALLEY, 70), (VALLEY, 80), (FALL, 100)):
        schedule = fed(made(**options), losses, count)
        wanted = expected(losses, count, **options)
        np.testing.assert_allclose(values(schedule), wanted, rtol=PRECISION, atol=1e-7, err_msg=f"after {count}")
        copy = made(**options)
        copy.load_state(schedule.state())
        np.testing.assert_array_equal(values(copy), values(schedule))
    assert schedule.controller.reason == "limit"


def test_oracle():
    schedule = fed(made(), VALLEY, 80)
    assert schedule.controller.switch_step == 80
    np.testing.assert_allclose(values(schedule, (79, 80, 81)), [0.08912509, 0.002949439, 0.002948934], rtol=1e-5)


def test_no_warmup():
    schedule = made(warmup_fraction=0, max_learning_rate=0.5)
    np.testing.assert_allclose(values(schedule, (0, 100, 200)), [0.5, 0.25, 0], atol=1e-7)


def test_decay_counts_from_the_updates_that_were_done_when_it_began():
    """With several steps per execution that is later than the losses of the decision."""
    schedule = fed(made(), VALLEY, 70)
    schedule.update(VALLEY[70:80], 84)
    rates = schedule.rates
    np.testing.assert_allclose(values(schedule, (83, 84)), [rates.during_warmup(83), 0.002949439], rtol=1e-5)
    np.testing.assert_allclose(values(schedule, [85]), rates.during_decay(85, 84, 0.002949439), rtol=1e-5)


@pytest.mark.parametrize("jit_compile", [False, True])
@tensorflow_only("a graph with variables")
def test_graph_that_is_traced_sees_the_switch(jit_compile):
    import tensorflow as tf

    schedule, traces = fed(made(), VALLEY, 70), []

    @tf.function(jit_compile=jit_compile)
    def compiled(step):
        traces.append(1)
        return schedule(step)

    steps = [tf.constant(step, "int64") for step in (79, 80, 120)]
    rates = schedule.rates
    np.testing.assert_allclose([compiled(step) for step in steps[:2]], rates.during_warmup(np.array([79, 80])), 1e-6)
    schedule.update(VALLEY[70:80], 80)
    peak = schedule.controller.peak
    after = [rates.during_warmup(79), peak, rates.during_decay(120, 80, peak)]
    np.testing.assert_allclose([compiled(step) for step in steps], after, rtol=1e-6)
    assert len(traces) == 1


@pytest.mark.skipif(TENSORFLOW, reason="the compilation of JAX, which has no variables")
def test_compiled_anew_sees_the_switch():
    import jax

    schedule, steps = fed(made(), VALLEY, 70), (0, 79, 80, 120)
    before = [float(jax.jit(lambda step: schedule(step))(step)) for step in steps]
    schedule.update(VALLEY[70:80], 80)
    after = [float(jax.jit(lambda step: schedule(step))(step)) for step in steps]
    np.testing.assert_allclose(after, values(schedule, steps), rtol=1e-6)
    assert before[:2] == pytest.approx(after[:2])
    assert before[2] > 10 * after[2]


@pytest.mark.parametrize("count", [0, 70, 80])
@pytest.mark.parametrize("make_decay", [lambda: "constant-cosine", linear_decay], ids=["name", "schedule"])
def test_config_round_trip_with_state(make_decay, count):
    schedule = fed(made(decay=make_decay(), seed=3, cosine_fraction=0.3, name="found"), VALLEY, count)
    schedule.pending = VALLEY[count : count + 4]
    kinds = keras.optimizers.schedules
    config = schedule.get_config()
    optimizer = keras.optimizers.SGD(schedule)
    for copy in (
        AutoWU.from_config(config),
        kinds.deserialize(json.loads(json.dumps(kinds.serialize(schedule)))),
        type(optimizer).from_config(optimizer.get_config())._learning_rate,
    ):
        assert copy.get_config() == config
        np.testing.assert_array_equal(values(copy), values(schedule))
        assert copy.seen == schedule.seen == count + 4
        copy.start()
        decisions = [
            one.update([*one.pending, *VALLEY[count + 4 : count + 10]], count + 10) for one in (copy, schedule)
        ]
        assert repr(decisions[0]) == repr(decisions[1])
        schedule = AutoWU.from_config(config)
    assert type(copy.options["decay"]) is type(make_decay())


def test_state_is_json_to_the_last_digit():
    losses = [*VALLEY[:45], np.float32(np.nan), np.float32(np.inf), *np.float32(VALLEY[47:80])]
    schedule = fed(made(), losses, 70)
    schedule.pending = [float(np.float32(0.1))]
    text = json.dumps(schedule.state())
    copy = made(state=json.loads(text))
    assert json.dumps(copy.state()) == text
    assert copy.controller.non_finite == 2
    assert repr(copy.update(losses[70:80], 80)) == repr(schedule.update(losses[70:80], 80))


def test_state_is_none_before_the_first_loss():
    schedule = made()
    assert schedule.state() is None
    schedule.start()
    assert (schedule.state(), schedule.get_config()["state"], schedule.seen) == (None, None, 0)
    schedule.load_state(None)
    schedule.pending = [1.0]
    assert schedule.state()["pending"] == [1.0]


def test_losses_are_fetched_before_the_state_is_taken():
    schedule = fed(made(), VALLEY, 70)
    schedule.before_save = lambda: schedule.pending.append(2.5)
    assert schedule.get_config()["state"]["pending"] == [2.5]


def test_state_of_another_version_or_schedule_is_refused_and_changes_nothing(monkeypatch):
    state = fed(made(), VALLEY, 80).state()
    for arguments, name in (
        ({"patience": 2}, "patience"),
        ({"total_steps": 300}, "total_steps"),
        ({"decay": linear_decay()}, "decay"),
        ({"steps_per_check": 20}, "steps_per_epoch"),
    ):
        schedule = made(**arguments)
        before = values(schedule)
        with pytest.raises(ValueError, match=rf"`{name}` differs from that of the saved run: .* here, .* there"):
            schedule.load_state(state)
        np.testing.assert_array_equal(values(schedule), before)
        assert schedule.controller is None
    monkeypatch.setattr(autowu, "_STATE_VERSION", 2)
    with pytest.raises(ValueError, match=r"writes version 2\. Received: version=1"):
        made(state=state)


@pytest.mark.parametrize(
    ("total_steps", "steps_per_epoch", "interval"),
    [(400, 1, 10), (400, 2, 10), (400, 3, 3), (400, 50, 50), (440, 2, 10), (30, 1, 1), (30, 2, 2), (60, 2, 2)],
)
def test_interval_of_the_decisions(total_steps, steps_per_epoch, interval):
    """An epoch; a twentieth of the longest warm-up where that is one or two steps."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert AutoWU(total_steps).start(steps_per_epoch).steps_per_epoch == interval
        assert AutoWU(total_steps, steps_per_check=7).start(steps_per_epoch).steps_per_epoch == 7


def test_interval_cannot_change():
    schedule = AutoWU(TOTAL)
    controller = schedule.start(10)
    assert schedule.start(10) is controller
    with pytest.raises(
        ValueError, match=r"a decision every 10 steps and would go on with one every 20.*None, 20 steps"
    ):
        schedule.start(20)
    schedule.update(VALLEY[:10], 10)
    resumed = AutoWU(TOTAL, state=schedule.state())
    with pytest.raises(ValueError, match=r"a decision every 10 steps and would go on with one every 20"):
        resumed.start(20)
    assert resumed.start(10).steps == 10


def test_unknown_length_of_an_epoch():
    with pytest.raises(ValueError, match=r"`steps_per_check` is needed .* Received: steps_per_check=None"):
        AutoWU(TOTAL).start(None)
    assert AutoWU(TOTAL, steps_per_check=5).start(None).steps_per_epoch == 5


def test_warns_of_rare_decisions_once_they_are_known():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        schedule = AutoWU(TOTAL)
    for rare in (lambda: schedule.start(34), lambda: AutoWU(TOTAL, steps_per_check=34)):
        with pytest.warns(UserWarning, match="3 votes take 102 steps, the limit is 100"):
            rare()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("total_steps", 0),
        ("total_steps", 10.5),
        ("steps_per_check", 0),
        ("warmup_fraction", 1),
        ("min_learning_rate", 0),
        ("max_learning_rate", -1),
        ("warmup", "cosine"),
        ("decay", "linear"),
        ("cosine_fraction", 1),
        ("confidence", 95),
        ("patience", 0),
        ("posteriors", 0),
        ("fit_points", 1),
        ("length_scale", 0),
        ("loss_factor", 0),
        ("seed", -1),
    ],
)
def test_bad_arguments(name, value):
    with pytest.raises(ValueError, match=rf"`{name}` must be .*Received: {name}={value!r}"):
        made(**{name: value})


def test_bad_pairs_of_arguments():
    with pytest.raises(ValueError, match=r"`max_learning_rate` must exceed `min_learning_rate`.*=0\.1.*=0\.1"):
        made(min_learning_rate=0.1, max_learning_rate=0.1)
    with pytest.raises(ValueError, match=r"must be at most 1.*0\.9 \+ 0\.2"):
        made(warmup_fraction=0.9, decay="constant-cosine")
    with pytest.raises(TypeError, match="peak"):
        made(peak=0.1)


def test_value_is_a_float32_scalar():
    for step in (3, ops.cast(3, "int32"), ops.cast(3, "float32")):
        value = ops.convert_to_numpy(made()(step))
        assert (value.shape, value.dtype) == ((), "float32")
