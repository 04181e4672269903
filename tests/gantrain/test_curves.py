import re
from html.parser import HTMLParser
from xml.etree import ElementTree as ET

import pytest

from gantrain.curves import plot_curves

NAMESPACE = "{http://www.w3.org/2000/svg}"


def make_rows(count: int, **values: float) -> list[dict]:
    return [
        {"images_seen": 100 * (step + 1), "seconds": 1.0 + step, **values} for step in range(count)
    ]


def texts(svg: str) -> list[str]:
    return ["".join(text.itertext()) for text in ET.fromstring(svg).iter(f"{NAMESPACE}text")]


def count_points(svg: str, colour: str) -> int:
    """Corners and ends of the lines drawn in a colour."""
    paths = ET.fromstring(svg).iter(f"{NAMESPACE}path")
    lines = [p.get("d", "") for p in paths if f"stroke: {colour}" in p.get("style", "")]
    return sum(line.count("M ") + line.count("L ") for line in lines)


def test_metrics_that_belong_together_share_a_chart():
    rows = make_rows(3, discriminator_loss=0.6, generator_loss=0.8, lr=0.1, rollbacks=0.0)
    curves = plot_curves(rows)
    assert list(curves) == ["Losses"]  # a learning rate that never changes says nothing
    assert {"discriminator", "generator", "images seen"} <= set(texts(curves["Losses"]))


def test_the_only_point_is_drawn_whole_on_the_frame():
    (one,) = plot_curves(make_rows(1, logit_size=0.6)).values()
    markers = [use for use in ET.fromstring(one).iter(f"{NAMESPACE}g") if "clip-path" in use.attrib]
    assert not [group for group in markers if list(group.iter(f"{NAMESPACE}use"))]
    assert list(ET.fromstring(one).iter(f"{NAMESPACE}use"))


def test_accuracy_is_in_percent_with_the_healthy_band_shaded():
    rows = make_rows(3, discriminator_accuracy_real=0.7, discriminator_accuracy_fake=0.9)
    (svg,) = plot_curves(rows).values()
    assert {"on reals", "on fakes", "healthy, 60-80 %", "0%", "100%"} <= set(texts(svg))
    heights = [
        [float(y) for y in re.findall(r"[\d.]+ ([\d.]+)", path.get("d", ""))]
        for path in ET.fromstring(svg).iter(f"{NAMESPACE}path")
        if "--band" in path.get("style", "")
    ]
    band = next(ys for ys in heights if max(ys) - min(ys) > 20)  # the other is the legend's
    drawn = {"0%": None, "100%": None}
    for text in ET.fromstring(svg).iter(f"{NAMESPACE}text"):
        name = "".join(text.itertext())
        if name in drawn:
            drawn[name] = float(text.get("y") or 0)
    span = (max(band) - min(band)) / (drawn["0%"] - drawn["100%"])
    assert span == pytest.approx(0.2, rel=0.01)


def test_metrics_that_nobody_placed_get_charts_of_their_own():
    rows = make_rows(4)
    rows[1] |= {"diversity": 0.5, "diagnosis": "healthy"}
    rows[3] |= {"diversity": 0.6, "class_shares": [0.25, 0.75]}
    curves = plot_curves(rows, ("cat", "<dog>"))
    assert list(curves) == ["Diversity", "Class shares"]
    assert {"cat", "<dog>"} <= set(texts(curves["Class shares"]))


def test_what_was_measured_on_the_data_stands_beside_the_samples():
    rows = make_rows(2, diversity=0.5, diversity_data=0.9, learned_data=1.0)
    rows[1] |= {"class_shares": [0.2, 0.8], "class_shares_data": [0.4, 0.6]}
    curves = plot_curves(rows, ("cat", "dog"))
    assert list(curves) == ["Diversity", "Learned data", "Class shares"]
    assert {"samples", "data"} <= set(texts(curves["Diversity"]))
    assert {"cat (40%)", "dog (60%)"} <= set(texts(curves["Class shares"]))


@pytest.mark.parametrize("name", ["$x_", "$\\frac$", "\u732b", "\U0001f600", "a&b"])
def test_any_class_name_can_be_drawn(name: str):
    rows = make_rows(2, class_shares=[1.0])
    assert name in texts(plot_curves(rows, (name,))["Class shares"])


def test_a_value_that_is_not_finite_leaves_a_gap():
    values = [1.0, 3.0, 1.0, 3.0, 1.0]
    rows = [row | {"logit_size": v} for row, v in zip(make_rows(5), values, strict=True)]
    (whole,) = plot_curves(rows).values()
    rows[2]["logit_size"] = float("nan")
    (broken,) = plot_curves(rows).values()
    colour = "var(--series-1, #0072b2)"
    assert (count_points(whole, colour), count_points(broken, colour)) == (5, 4)


def test_one_row_is_drawn_as_a_point():
    (svg,) = plot_curves(make_rows(1, generator_loss=0.5)).values()
    assert "<use" in svg
    assert count_points(svg, "var(--series-1, #0072b2)") > 0


def test_rows_without_numbers_have_no_curves():
    assert plot_curves([]) == {}
    assert plot_curves(make_rows(2)) == {}


def test_curves_take_their_colours_from_the_page_and_are_the_same_each_time():
    rows = make_rows(5, real_logits=1.0, fake_logits=-1.0)
    (svg,) = plot_curves(rows).values()
    assert [svg] == list(plot_curves(rows).values())
    assert "#01020" not in svg
    assert {"currentColor", "var(--grid, #dddddd)"} <= set(
        re.findall(r"(?:stroke|fill): ([^;\"]+)", svg)
    )


def test_charts_do_not_share_ids_on_a_page():
    rows = make_rows(5, real_logits=1.0, discriminator_loss=0.5, logit_size=2.0)
    found: list[str] = []

    class Ids(HTMLParser):
        def handle_starttag(self, _tag: str, attributes: list) -> None:
            found.extend(value for key, value in attributes if key == "id")

    page = "".join(plot_curves(rows).values())
    Ids().feed(page)
    assert found
    assert len(found) == len(set(found))
    assert set(re.findall(r"#([a-z0-9]{11})\b", page)) <= set(found)


def test_thousands_of_rows_stay_a_small_drawing():
    rows = [row | {"generator_loss": (row["images_seen"] % 700) / 7} for row in make_rows(20_000)]
    (svg,) = plot_curves(rows).values()
    assert len(svg) < 500_000
