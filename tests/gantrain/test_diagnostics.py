"""Rows of metrics in, a judgement out: what is wrong is named, what is sound is left in peace."""

import math

import pytest

from gantrain.diagnosis.diagnostics import Diagnosis, diagnose
from gantrain.presets import resolve

LOOK_EVERY = 10  # rows


def settings(**changes):
    return resolve({"data": "digits", "run_dir": "unused", "total_images": 100_000, **changes})


PLAIN = {"loss": "bce", "discriminator": "dcgan"}


OVERWHELMED = {
    "discriminator_accuracy_real": 0.99,
    "discriminator_accuracy_fake": 0.99,
    "energy_distance": 0.1,
}


def make_rows(count=100, every=1000, **values):
    """A sound run whose rows stand `every` images apart; a value may be a function of the run's
    share that is over.
    """
    sound = {
        "discriminator_loss": 0.58,
        "generator_loss": 0.95,
        "discriminator_accuracy_real": lambda share: 0.72 + 0.28 * math.exp(-20 * share),
        "discriminator_accuracy_fake": lambda share: 0.72 + 0.28 * math.exp(-20 * share),
        "real_logits": 1.5,
        "fake_logits": 0.5,
        "logit_size": 1.5,
        "discriminator_gradient": 1.0,
        "generator_gradient": 0.8,
    }
    measured = {
        "diversity": 0.98,
        "feature_diversity": 1.02,
        "duplicates": 0.02,
        "duplicates_data": 0.02,
        "energy_distance": lambda share: 0.003 + 0.15 * math.exp(-20 * share),
        "energy_distance_data": 0.001,
        "class_histogram": [0.25] * 4,
        "class_histogram_data": [0.25] * 4,
        "class_coverage": 1.0,
        "class_coverage_data": 1.0,
        "class_distance": 0.06,
        "class_distance_data": 0.06,
        "training_distance": 1.4,
        "training_distance_data": 1.0,
        "near_training": 0.0,
        "near_training_data": 0.01,
        "far_from_training": 0.1,
        "far_from_training_data": 0.01,
        "copies": 0.0,
        "copies_data": 0.0,
        "dead_pixels": 0.0001,
        "dead_pixels_data": 0.0001,
    }
    unknown = values.keys() - sound.keys() - measured.keys()
    assert not unknown, unknown
    rows = []
    for number in range(1, count + 1):
        names = {**sound, **(measured if number % LOOK_EVERY == 0 else {})}
        row = {name: values.get(name, usual) for name, usual in names.items()}
        share = number / count
        rows.append(
            {"images_seen": number * every}
            | {name: value(share) if callable(value) else value for name, value in row.items()}
        )
    return rows


def names(diagnosis: Diagnosis):
    return [finding.name for finding in diagnosis.findings]


def test_a_sound_run_is_healthy_at_every_moment():
    rows = make_rows()
    states = [diagnose(rows[:end], settings()).state for end in range(len(rows) + 1)]
    assert states[0] == states[5] == "too early to tell"
    assert set(states[20:]) == {"healthy"}
    assert diagnose(rows, settings()).findings == ()


def test_the_start_of_a_run_is_no_alarm():
    at_first = {"discriminator_accuracy_real": 1.0, "discriminator_accuracy_fake": 1.0}
    alike = {"duplicates": 1.0, "diversity": 0.05, "class_coverage": 0.1, "energy_distance": 0.4}
    rows = make_rows(12, 1000, **at_first, **alike)
    assert diagnose(rows, settings()).state == "too early to tell"


@pytest.mark.parametrize(
    ("images", "total_images", "early"),
    [
        pytest.param(15_000, 100_000, True, id="under-250-steps"),
        pytest.param(20_000, 100_000, False, id="a-fifth"),
        pytest.param(20_000, 1_000_000, True, id="a-fiftieth"),
        pytest.param(130_000, 10_000_000, False, id="over-2000-steps"),
    ],
)
def test_it_is_too_early_for_a_twentieth_of_a_run_or_2000_steps(images, total_images, early):
    config = settings(total_images=total_images, batch_size=64)
    state = diagnose(make_rows(images // 1000, **OVERWHELMED), config).state
    assert state == ("too early to tell" if early else "discriminator overwhelms")


def test_a_run_that_ended_so_early_is_told_how_long_it_must_be():
    rows, config = make_rows(12, 1000), settings(total_images=12_000, batch_size=64)
    diagnosis = diagnose(rows, config)
    assert diagnosis.state == "too short to tell"
    (finding,) = diagnosis.findings
    assert "ended after 187 steps; before 250 of them, which are 16000 images" in finding.evidence
    assert finding.advice == (
        "--total-images 12000: give 16000 or more, and give the same command again",
    )
    longer = settings(total_images=16_000, batch_size=64)
    assert diagnose(make_rows(16, 1000), longer).state not in (diagnosis.state, "too early to tell")
    assert diagnose(make_rows(15, 1000), longer).state == "too early to tell"


def test_nothing_wrong_and_not_there_yet_is_still_learning():
    rows = make_rows(energy_distance=lambda share: 0.2 - 0.15 * share)
    assert diagnose(rows, settings()).state == "still learning"


def test_samples_near_the_data_without_some_of_their_classes_are_still_learning():
    assert diagnose(make_rows(class_coverage=0.85), settings()).state == "still learning"
    rare = make_rows(class_coverage=0.48, class_coverage_data=0.5)  # as many reals show no more
    assert diagnose(rare, settings()).state == "healthy"


def test_gradients_that_grow_from_next_to_nothing_are_no_alarm():
    rows = make_rows(generator_gradient=lambda share: 1e-4 if share < 0.6 else 0.1)
    assert diagnose(rows, settings()).state == "healthy"
    rows = make_rows(generator_gradient=lambda share: 0.1 if share < 0.6 else 2.0)
    assert diagnose(rows, settings()).state == "healthy", "twentyfold is little, too"


@pytest.mark.parametrize("loss", ["bce", "hinge", "least-squares", "relativistic"])
def test_a_discriminator_that_is_always_right_overwhelms(loss):
    rows = make_rows(
        discriminator_accuracy_real=0.99, discriminator_accuracy_fake=0.98, energy_distance=0.1
    )
    assert diagnose(rows, settings(loss=loss)).state == "discriminator overwhelms"


def test_accuracy_does_no_harm_to_samples_that_pass_for_the_data():
    rows = make_rows(discriminator_accuracy_real=0.97, discriminator_accuracy_fake=0.97)
    assert diagnose(rows, settings()).state == "healthy"


def test_a_critic_may_be_right_while_samples_improve():
    right = {"discriminator_accuracy_real": 0.99, "discriminator_accuracy_fake": 0.99}
    config = settings(loss="wasserstein", gradient_penalty_weight=10.0)
    improving = make_rows(**right, energy_distance=lambda share: 0.2 - 0.15 * share)
    assert diagnose(improving, config).findings == ()
    assert diagnose(make_rows(energy_distance=0.2), config).findings == (), "nor is it always"


def test_a_critic_that_is_right_about_samples_that_improve_no_more_is_not_blamed():
    right = {"discriminator_accuracy_real": 0.99, "discriminator_accuracy_fake": 0.99}
    config = settings(loss="wasserstein", gradient_penalty_weight=10.0)
    (finding,) = diagnose(make_rows(**right, energy_distance=0.2), config).findings
    assert finding.name == "stalled"
    assert "99 % of the reals" in finding.evidence
    assert finding.advice[0].startswith("--discriminator-updates 1: try 5")
    assert not any("weak" in text or "label-smoothing" in text for text in finding.advice)


def test_a_discriminator_that_is_fooled_is_too_weak():
    rows = make_rows(
        discriminator_accuracy_real=0.9, discriminator_accuracy_fake=0.02, energy_distance=0.3
    )
    assert diagnose(rows, settings(**PLAIN)).state == "discriminator too weak"


def test_guessing_about_bad_samples_is_a_stall_and_about_good_ones_an_equilibrium():
    guessing = {"discriminator_accuracy_real": 0.5, "discriminator_accuracy_fake": 0.5}
    assert diagnose(make_rows(**guessing, energy_distance=0.2), settings()).state == "stalled"
    assert diagnose(make_rows(**guessing), settings()).state == "healthy"
    better = make_rows(**guessing, energy_distance=lambda share: 0.2 - 0.15 * share)
    assert diagnose(better, settings()).state == "still learning"
    once = make_rows(**guessing, energy_distance=lambda share: 0.3 if share < 0.4 else 0.2)
    assert diagnose(once, settings()).state == "stalled", "in the last half nothing has improved"


def test_a_passing_spell_is_no_evidence():
    rows = make_rows(energy_distance=0.1)
    for row in rows[-9:]:
        row |= {"discriminator_accuracy_real": 1.0, "discriminator_accuracy_fake": 1.0}
    assert diagnose(rows, settings()).findings == ()


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"duplicates": 0.9}, id="duplicates"),
        pytest.param({"diversity": 0.2}, id="pixels-alike"),
        pytest.param({"feature_diversity": 0.2}, id="features-alike"),
        pytest.param({"class_coverage": 0.3, "energy_distance": 0.1}, id="most-classes-missing"),
        pytest.param(
            {"duplicates": 0.9, "energy_distance": lambda share: 0.2 - 0.15 * share},
            id="though-they-improve",
        ),
    ],
)
def test_samples_that_are_alike_are_a_collapse(changes):
    assert diagnose(make_rows(**changes), settings()).state == "mode collapse"


def test_near_the_data_even_most_classes_missing_are_a_part():
    assert diagnose(make_rows(class_coverage=0.3), settings()).state == "partial mode collapse"


def test_missing_classes_are_named_once_they_do_not_come():
    missing = {"class_coverage": 0.6, "class_distance": 0.4}
    assert diagnose(make_rows(**missing, energy_distance=0.03), settings()).state == (
        "partial mode collapse"
    )
    coming = make_rows(**missing, energy_distance=lambda share: 0.2 - 0.15 * share)
    assert diagnose(coming, settings()).findings == ()


def test_classes_that_take_turns_are_rotation():
    def histogram(share):
        shown = round(share * 10) % 3
        return [0.8 if place == shown else 0.2 / 3 for place in range(4)]

    rows = make_rows(class_histogram=histogram, class_distance=0.55)
    assert diagnose(rows, settings()).state == "rotating among classes"
    near = make_rows(class_histogram=histogram, class_distance=0.1)
    assert diagnose(near, settings()).findings == ()
    steady = make_rows(class_histogram=[0.05, 0.8, 0.05, 0.1], class_distance=0.55)
    assert diagnose(steady, settings()).findings == ()


def test_a_value_that_is_not_finite_is_named_at_once():
    rows = [*make_rows(3), {"images_seen": 4000, "generator_loss": math.nan}]
    diagnosis = diagnose(rows, settings())
    assert diagnosis.state == "diverged"
    assert diagnosis.findings[0].evidence == "By 4000 images generator_loss became nan."


def test_logits_without_bound_are_divergence_at_once():
    rows = make_rows(3, logit_size=4000.0)
    assert diagnose(rows, settings(**PLAIN)).state == "diverged"


def test_a_common_offset_of_logits_is_none_where_only_differences_count():
    rows = make_rows(logit_size=4000.0, real_logits=-4000.0, fake_logits=-4001.0)
    assert diagnose(rows, settings()).state == "healthy"


@pytest.mark.parametrize(
    ("name", "rate"),
    [("logit_size", 6.5), ("generator_gradient", 8), ("discriminator_gradient", 8)],
)
def test_what_keeps_growing_is_divergence(name, rate):
    rows = make_rows(**{name: lambda share: math.exp(rate * share)})
    assert names(diagnose(rows, settings(**PLAIN))) == ["diverging"]


def test_an_accuracy_that_swings_from_side_to_side_is_oscillation():
    rows = make_rows(
        discriminator_accuracy_real=lambda share: 0.5 + 0.45 * math.sin(150 * share),
        discriminator_accuracy_fake=lambda share: 0.5 - 0.45 * math.sin(150 * share),
        energy_distance=0.02,
    )
    assert names(diagnose(rows, settings(**PLAIN))) == ["oscillating"]


def test_a_loss_that_swings_is_oscillation():
    rows = make_rows(generator_loss=lambda share: 4 + 3.9 * math.sin(150 * share) ** 3)
    rows = [{**row, "generator_loss": row["generator_loss"] ** 3} for row in rows]
    assert names(diagnose(rows, settings(**PLAIN))) == ["oscillating"]
    assert names(diagnose(rows, settings(loss="hinge"))) == [], "it may be near 0 at rest"
    slight = make_rows(generator_loss=lambda share: 1 + 1.8 * max(math.sin(150 * share), 0))
    assert names(diagnose(slight, settings(**PLAIN))) == []


def test_copies_of_training_images_are_memorisation():
    assert diagnose(make_rows(copies=0.4), settings()).state == "memorising"
    assert diagnose(make_rows(near_training=0.5), settings()).state == "memorising"
    repeated = make_rows(copies=0.6, copies_data=0.6, near_training=0.6, near_training_data=0.6)
    assert diagnose(repeated, settings()).state == "healthy"
    of_two_distinct = make_rows()
    for row in of_two_distinct:
        row.pop("copies", None)
    assert diagnose(of_two_distinct, settings()).state == "healthy"


def test_dots_that_stay_are_dead_pixels():
    assert diagnose(make_rows(dead_pixels=0.004), settings()).state == "dead pixels"
    going = make_rows(dead_pixels=lambda share: 0.004 if share < 0.95 else 0.0002)
    assert diagnose(going, settings()).state == "healthy"
    dotted_data = make_rows(dead_pixels=0.004, dead_pixels_data=0.0015)
    assert diagnose(dotted_data, settings()).state == "healthy"


def test_several_findings_make_one_state():
    rows = make_rows(
        discriminator_accuracy_real=0.99,
        discriminator_accuracy_fake=0.99,
        energy_distance=0.3,
        duplicates=1.0,
        copies=0.9,
    )
    state = diagnose(rows, settings()).state
    assert state == "discriminator overwhelms; mode collapse; memorising"


FOOLED = {
    "discriminator_accuracy_real": 0.1,
    "discriminator_accuracy_fake": 0.1,
    "energy_distance": 0.3,
}


@pytest.mark.parametrize(
    ("changes", "values", "first"),
    [
        pytest.param(
            {"discriminator_updates": 10},
            OVERWHELMED,
            "--discriminator-updates 10: use 1",
            id="too-many-updates",
        ),
        pytest.param(
            {"discriminator_lr": 0.02},
            OVERWHELMED,
            "--discriminator-lr 0.02: use --lr's 0.002",
            id="discriminator-too-fast",
        ),
        pytest.param(PLAIN, OVERWHELMED, "--loss bce without a gradient penalty", id="no-penalty"),
        pytest.param(
            {"generator_updates": 5}, FOOLED, "--generator-updates 5: use 1", id="generator-updates"
        ),
        pytest.param(
            {"discriminator_lr": 2e-5},
            FOOLED,
            "--discriminator-lr 2e-05: use at least --lr's 0.002",
            id="discriminator-too-slow",
        ),
        pytest.param(
            {"preset": "dcgan-2015"},
            {"duplicates": 0.9},
            "--loss bce without a gradient penalty: use --loss relativistic --r1-weight 0.5 "
            "--r2-weight 0.5 --discriminator dcgan",
            id="collapse-with-batch-norm",
        ),
        pytest.param(
            {"lr": 0.2, "image_size": 64},  # whose channels are not known yet
            {"generator_gradient": lambda share: math.exp(8 * share)},
            "--lr 0.2: use at most 0.002",
            id="lr-too-high",
        ),
        pytest.param(
            {"lr": 0.002, "image_size": 64, "channels": 3, "filters": 64},
            {"generator_gradient": lambda share: math.exp(8 * share)},
            "--lr 0.002: use at most 0.00025",
            id="lr-too-high-for-wide-layers",
        ),
        pytest.param(
            {"lr": 0.002, "r1_weight": 0.5, "r2_weight": 0.5},
            {"generator_gradient": lambda share: math.exp(8 * share)},
            "--r1-weight 0.5: try 5, --r2-weight 0.5: try 5",
            id="more-penalty",
        ),
        pytest.param(
            {"preset": "keras-mlp"},
            {"dead_pixels": 0.004},
            "--generator keras-mlp: it draws each pixel by itself; use dcgan",
            id="dense-generator",
        ),
        pytest.param({}, {"copies": 0.5}, "give more images", id="memorisation"),
    ],
)
def test_advice_starts_with_what_helps_most_in_the_runs_own_settings(changes, values, first):
    finding = diagnose(make_rows(**values, every=4000), settings(**changes)).findings[0]
    assert finding.advice[0].startswith(first)


def test_a_run_that_went_back_is_advised_a_learning_rate_that_it_has_not_tried():
    rows = make_rows(generator_gradient=lambda share: math.exp(8 * share))
    for rollbacks, told in ((0, "--lr 0.002: try 0.001"), (2, "--lr 0.002: try 0.00025")):
        rows[-1]["rollbacks"] = rollbacks
        (finding,) = diagnose(rows, settings()).findings
        assert told in finding.advice


def test_advice_leaves_out_what_the_run_does_already():
    finding = diagnose(make_rows(**OVERWHELMED), settings()).findings[0]
    assert not [text for text in finding.advice if "relativistic" in text or "updates 10" in text]
    assert len(set(finding.advice)) == len(finding.advice)


def test_evidence_tells_numbers():
    finding = diagnose(make_rows(duplicates=0.9), settings()).findings[0]
    assert finding.evidence == (
        "90 % of 256 samples have a near-duplicate among them (2 % of reals)."
    )


def test_rows_without_measurements_or_accuracies_are_judged_by_what_they_have():
    rows = [{"images_seen": row["images_seen"], "lr": 0.002} for row in make_rows()]
    assert diagnose(rows, settings()).state == "healthy"
    guessing = {"discriminator_accuracy_real": 0.5, "discriminator_accuracy_fake": 0.5}
    assert diagnose([row | guessing for row in rows], settings()).state == "healthy"
    right = {"discriminator_accuracy_real": 0.99, "discriminator_accuracy_fake": 0.99}
    critic = settings(loss="wasserstein", gradient_penalty_weight=10.0)
    assert diagnose([row | right for row in rows], critic).state == "healthy"


def test_a_look_at_the_very_start_is_no_second_one():
    rows = make_rows(class_coverage=0.6, class_distance=0.4, energy_distance=0.03)
    unseen, last = [row for row in rows if "energy_distance" not in row], rows[-1]
    for first, findings in ((9_000, []), (11_000, ["partial mode collapse"])):
        diagnosis = diagnose([{**last, "images_seen": first}, *unseen, last], settings())
        assert names(diagnosis) == findings


def test_points_far_from_all_of_the_data_do_not_pass_for_it():
    for share, state in ((0.4, "healthy"), (0.6, "still learning")):
        rows = make_rows(far_from_training=share, copies=0.9)  # among points that is no wonder
        for row in rows:
            row.pop("dead_pixels", None)  # only images have them
        assert diagnose(rows, settings()).state == state
