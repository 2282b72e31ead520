"""K-means: exact on separated clusters, rare points get a code, degenerate inputs work."""

from __future__ import annotations

import torch

from vqgan.quantizers.kmeans import kmeans


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def test_separated_clusters_are_found() -> None:
    means = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0], [10.0, 10.0]])
    points = means.repeat_interleave(50, 0) + 0.1 * torch.randn(200, 2, generator=_generator())
    centers = kmeans(points, 4, torch.ones(200), _generator())
    nearest = torch.cdist(means, centers).argmin(1)
    assert len(set(nearest.tolist())) == 4
    expected = torch.stack([points[50 * i : 50 * i + 50].mean(0) for i in range(4)])
    assert torch.allclose(centers[nearest], expected, atol=1e-5)


def test_rare_points_get_a_center_of_their_own() -> None:
    common = 0.01 * torch.randn(1000, 3, generator=_generator())
    rare = torch.tensor([[5.0, 0.0, 0.0], [0.0, 5.0, 0.0]])
    centers = kmeans(torch.cat([common, rare]), 4, torch.ones(1002), _generator())
    assert torch.all(torch.cdist(rare, centers, compute_mode="donot_use_mm_for_euclid_dist").amin(1) < 1e-5)


def test_weights_move_the_centers() -> None:
    points = torch.tensor([[0.0], [1.0]])
    center = kmeans(points, 1, torch.tensor([3.0, 1.0]), _generator())
    assert torch.allclose(center, torch.tensor([[0.25]]))


def test_every_distinct_point_is_a_center_when_there_are_enough() -> None:
    points = torch.randn(40, 5, generator=_generator())
    centers = kmeans(points.repeat(3, 1), 64, torch.ones(120), _generator())
    assert centers.shape == (64, 5)
    assert torch.all(torch.cdist(points, centers, compute_mode="donot_use_mm_for_euclid_dist").amin(1) < 1e-6)


def test_equal_seeds_give_equal_centers() -> None:
    points = torch.randn(500, 4, generator=_generator())
    first, second = (kmeans(points, 32, torch.ones(500), _generator()) for _ in range(2))
    assert torch.equal(first, second)
