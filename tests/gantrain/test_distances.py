import math

import pytest
import torch
from sklearn.metrics.pairwise import polynomial_kernel

from gantrain.evaluation import distances
from gantrain.evaluation.distances import Neighbourhoods, frechet_distance, kernel_distance


def gaussian(count: int, dimensions: int, seed: int) -> torch.Tensor:
    random = torch.Generator().manual_seed(seed)
    return torch.randn(count, dimensions, generator=random, dtype=torch.float64)


def exactly_standard(count: int, dimensions: int, seed: int) -> torch.Tensor:
    """Vectors whose mean is 0 and whose covariance is the identity, but for rounding."""
    vectors = gaussian(count, dimensions, seed)
    vectors = vectors - vectors.mean(0)
    covariance = torch.cov(vectors.T).reshape(dimensions, -1)  # of one dimension a mere number
    triangle = torch.linalg.cholesky(covariance)
    return torch.linalg.solve_triangular(triangle, vectors.T, upper=False).T


def test_the_frechet_distance_of_two_gaussians_is_the_closed_form():
    shift, scales = torch.tensor([1.0, -2.0, 0.5]).double(), torch.tensor([0.5, 1.0, 3.0]).double()
    left, right = exactly_standard(200, 3, 0), exactly_standard(300, 3, 1) * scales + shift
    closed = shift.square().sum() + (scales - 1).square().sum()
    assert frechet_distance(left, right) == pytest.approx(closed.item(), rel=1e-9)
    assert frechet_distance(right, left) == pytest.approx(closed.item(), rel=1e-9)


def test_the_frechet_distance_holds_for_covariances_that_do_not_commute():
    mixing, other = torch.tensor([[2.0, 1.0], [0.0, 1.0]]), torch.tensor([[1.0, 0.0], [-3.0, 0.5]])
    left = exactly_standard(100, 2, 0) @ mixing.double()
    right = exactly_standard(100, 2, 1) @ other.double()
    first, second = torch.cov(left.T), torch.cov(right.T)
    # The trace of the root of a 2x2 matrix follows from its trace and determinant.
    product = first @ second
    root = math.sqrt(product.trace() + 2 * math.sqrt(torch.linalg.det(product)))
    closed = (first.trace() + second.trace()).item() - 2 * root
    assert frechet_distance(left, right) == pytest.approx(closed, rel=1e-9)


def test_fewer_vectors_than_dimensions_have_a_frechet_distance():
    left = gaussian(10, 50, 0)
    shift = gaussian(1, 50, 1)
    assert frechet_distance(left, left) == pytest.approx(0, abs=1e-6)
    assert frechet_distance(left, left + shift) == pytest.approx(shift.square().sum().item())
    assert frechet_distance(left.float(), torch.zeros(10, 50)) > 0


def test_one_dimension_is_enough():
    left = exactly_standard(50, 1, 0)
    assert frechet_distance(left, 3 * left + 1) == pytest.approx(1 + 4)


def test_two_vectors_each_are_enough():
    left, right = torch.tensor([[0.0], [2.0]]), torch.tensor([[5.0], [9.0]])
    # Means 1 and 7, variances 2 and 8.
    assert frechet_distance(left, right) == pytest.approx(6**2 + 2 + 8 - 2 * 4)
    # (0 x 2 + 1)^3 and (5 x 9 + 1)^3 within, (0 + 1)^3 twice, (10 + 1)^3 and (18 + 1)^3 between.
    mean, spread = kernel_distance(left, right)
    assert mean == pytest.approx(1 + 46**3 - 2 * (1 + 1 + 11**3 + 19**3) / 4)
    assert spread == pytest.approx(0, abs=1e-6)


def test_the_kernel_distance_of_two_points_is_the_closed_form():
    left = torch.tensor([[1.0, 2.0]]).repeat(40, 1)
    right = torch.tensor([[0.0, -1.0]]).repeat(30, 1)
    closed = (5 / 2 + 1) ** 3 + (1 / 2 + 1) ** 3 - 2 * (-2 / 2 + 1) ** 3
    mean, spread = kernel_distance(left, right)
    assert mean == pytest.approx(closed)
    assert spread == pytest.approx(0, abs=1e-9)


def test_the_kernel_distance_of_equal_distributions_is_around_zero():
    found = [
        kernel_distance(gaussian(200, 8, 2 * seed), gaussian(200, 8, 2 * seed + 1), subsets=5)[0]
        for seed in range(40)
    ]
    values = torch.tensor(found)
    assert abs(values.mean()) < 3 * values.std() / math.sqrt(len(found))
    assert 8 <= (values > 0).sum() <= 32, "below zero about as often as above"
    apart = kernel_distance(gaussian(200, 8, 0), gaussian(200, 8, 1) + 0.5, subsets=5)[0]
    assert apart > values.max()


def test_the_kernel_distance_is_that_of_scikit_learns_kernel_on_the_same_subsets():
    left, right = gaussian(90, 3, 0), 0.7 * gaussian(70, 3, 1) + 0.5
    random = torch.Generator().manual_seed(4)
    estimates = []
    for _ in range(6):
        some = left[torch.randperm(90, generator=random)[:20]]
        others = right[torch.randperm(70, generator=random)[:20]]
        pairs = [(some, some), (others, others), (some, others)]
        first, second, between = (polynomial_kernel(x, y, degree=3) for x, y in pairs)
        of_two = [(each.sum() - each.trace()) / (20 * 19) for each in (first, second)]
        estimates.append(sum(of_two) - 2 * between.mean())
    values = torch.tensor(estimates)
    found = kernel_distance(left, right, subsets=6, subset_size=20, seed=4)
    assert found == pytest.approx((values.mean().item(), values.std(correction=0).item()))


def test_a_subset_is_at_most_half_of_the_smaller_set():
    few, many = gaussian(60, 3, 0), gaussian(200, 3, 1)
    for left, right in ((few, many), (many, few)):
        whole = kernel_distance(left, right)
        assert whole == kernel_distance(left, right, subset_size=30)
        assert whole != kernel_distance(left, right, subset_size=29)


def test_subsets_are_of_all_vectors_in_whatever_order_they_come():
    left = gaussian(300, 4, 0)
    right = gaussian(300, 4, 1) + torch.linspace(0, 2, 300, dtype=torch.float64)[:, None]

    def kernel(some: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
        return (some @ others.T / 4 + 1) ** 3

    def within(vectors: torch.Tensor) -> torch.Tensor:
        values = kernel(vectors, vectors)
        return (values.sum() - values.trace()) / (300 * 299)

    whole = within(left) + within(right) - 2 * kernel(left, right).mean()
    for some, others in ((left, right), (right, left)):
        mean, spread = kernel_distance(some, others, subset_size=100, subsets=100)
        assert mean == pytest.approx(whole.item(), abs=3 * spread / math.sqrt(100))


def test_neighbours_on_a_line_give_the_numbers_that_one_counts():
    reals = torch.arange(6.0)[:, None]
    fakes = torch.full((4, 1), 2.5)
    found = Neighbourhoods(reals).measure(fakes)
    assert found.precision == 1
    assert found.recall == 0, "fakes that are all alike reach no further than themselves"
    assert found.density == pytest.approx(6 * 4 / (5 * 4))
    assert found.coverage == 1
    far = Neighbourhoods(reals).measure(fakes + 100)
    assert (far.precision, far.recall, far.density, far.coverage) == (0, 0, 0, 0)


@pytest.mark.parametrize("far", [0, 2**20], ids=["near 0", "far from 0"])
def test_a_ball_ends_with_its_border(far: int):
    """Distances are exact, small ones far from 0 too."""
    reals, fakes = (1 / 1024 * torch.arange(*of).double()[:, None] + far for of in ((6,), (8, 12)))
    found = Neighbourhoods(reals).measure(fakes)
    # In steps of 1/1024. Reals 0..5 reach 3 2 2 2 2 3 steps far, for density and coverage 5 4 3 3 4
    # 5; fakes 8..11 reach 3 2 2 3. So 5 and 8 just reach each other; further 4 just reaches 8, and
    # 5 reaches 8, 9 and just 10.
    assert found.precision == pytest.approx(1 / 4)
    assert found.recall == pytest.approx(1 / 6)
    assert found.density == pytest.approx((2 + 1 + 1) / (5 * 4))
    assert found.coverage == pytest.approx(2 / 6)


@pytest.mark.parametrize("count", [8, 100])
def test_distances_of_points_are_exact_however_many(count: int):
    places = torch.arange(count).double()[:, None] / 1024
    steps = (places - places.T).abs()
    assert torch.equal(distances.pairwise_distances(places + 2**20, places + 2**20), steps)


def test_like_samples_score_high_and_the_same_ones_highest():
    reals, others = gaussian(500, 4, 0), gaussian(500, 4, 1)
    same = Neighbourhoods(reals).measure(reals)
    assert (same.precision, same.recall, same.coverage) == (1, 1, 1)
    found = Neighbourhoods(reals).measure(others)
    assert min(found.precision, found.recall, found.coverage) > 0.8
    assert found.density == pytest.approx(1, abs=0.15)


def test_dropped_modes_cost_recall_and_coverage_and_smearing_costs_precision():
    centres = torch.tensor([0.0, 100.0]).double().repeat(250)[:, None]
    reals = gaussian(500, 4, 0) + centres
    neighbourhoods = Neighbourhoods(reals)
    dropped = neighbourhoods.measure(gaussian(500, 4, 1))
    assert dropped.precision > 0.8
    assert dropped.recall == pytest.approx(0.48, abs=0.05)
    assert dropped.coverage == pytest.approx(0.5, abs=0.03)
    smeared = neighbourhoods.measure(5 * gaussian(500, 4, 1) + centres)
    assert smeared.precision < 0.3
    assert smeared.density < 0.3
    assert smeared.recall > 0.9


@pytest.mark.parametrize(("dimensions", "spread"), [(2, 1.0), (20, 1.0), (20, 0.8)])
def test_neighbourhoods_are_the_definitions_of_their_papers(dimensions: int, spread: float):
    """Written out with the third neighbour (Kynkaanniemi) and the fifth (Naeem)."""
    reals, fakes = gaussian(80, dimensions, 0), spread * gaussian(60, dimensions, 1) + 0.1

    def distances(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        return (left[:, None] - right[None]).norm(dim=2)

    def radii(vectors: torch.Tensor, manieth: int) -> torch.Tensor:
        return distances(vectors, vectors).sort(dim=1).values[:, manieth]  # the 0th is its own

    between = distances(reals, fakes)
    third, fifth = (between <= radii(reals, manieth)[:, None] for manieth in (3, 5))
    found = Neighbourhoods(reals).measure(fakes)
    assert found.precision == pytest.approx(third.any(0).double().mean().item())
    assert found.density == pytest.approx(fifth.sum(0).double().mean().item() / 5)
    assert found.coverage == pytest.approx(fifth.any(1).double().mean().item())
    reached = between <= radii(fakes, 3)
    assert found.recall == pytest.approx(reached.any(1).double().mean().item())


def test_blocks_add_up_to_the_whole(monkeypatch):
    reals, fakes = gaussian(101, 20, 0), gaussian(67, 20, 1)
    whole = Neighbourhoods(reals).measure(fakes)
    monkeypatch.setattr(distances, "_BLOCK", 7 * 101)
    assert Neighbourhoods(reals).measure(fakes) == whole


@pytest.mark.parametrize("measure", [frechet_distance, kernel_distance], ids=lambda f: f.__name__)
@pytest.mark.parametrize(
    ("vectors", "message"),
    [
        pytest.param(torch.zeros(1, 3), r"expected \[2 or more, d\], got \[1, 3\]", id="one"),
        pytest.param(torch.full((4, 3), torch.nan), "got 4 vectors that are not", id="nan"),
        pytest.param(
            torch.tensor([[0.0, 1.0], [torch.inf, 0.0], [1.0, 1.0]]),
            "got 1 vectors that are not",
            id="one-infinity",
        ),
    ],
)
def test_what_cannot_be_measured_is_refused(measure, vectors: torch.Tensor, message: str):
    with pytest.raises(ValueError, match=message):
        measure(vectors, torch.zeros(4, 3))


def test_too_few_neighbours_are_refused():
    with pytest.raises(ValueError, match="6 or more"):
        Neighbourhoods(torch.zeros(5, 2))
    with pytest.raises(ValueError, match="4 or more"):
        Neighbourhoods(torch.zeros(6, 2)).measure(torch.zeros(3, 2))
