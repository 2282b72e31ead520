"""Image embeddings from a codebook keep its geometry."""

import pytest
import torch

from cm3.core.errors import ArtefactError
from cm3.model import CM3Config, create_model, project_codebook, set_image_embeddings


@pytest.mark.parametrize(("codes", "code_width", "width"), [(50, 8, 32), (50, 96, 32)])
def test_projection_keeps_distances(codes: int, code_width: int, width: int) -> None:
    generator = torch.Generator().manual_seed(0)
    codebook = torch.randn(codes, code_width, generator=generator) + 3.0
    embeddings = project_codebook(codebook, width, std=0.02, generator=generator)
    assert embeddings.shape == (codes, width)
    assert embeddings.std().item() == pytest.approx(0.02, rel=1e-4)
    assert embeddings.mean(0).abs().max() < 1e-6
    if code_width <= width:
        ratio = torch.pdist(embeddings) / torch.pdist(codebook)
        torch.testing.assert_close(ratio, ratio[0].expand_as(ratio), rtol=1e-4, atol=0)


def test_set_image_embeddings_writes_only_the_image_range() -> None:
    model = create_model(CM3Config(vocab_size=20, hidden_size=16), seed=0)
    before = model.lm_head.weight.clone()
    set_image_embeddings(model, torch.full((8, 16), 0.5), image_start=12)
    assert (model.lm_head.weight[12:] == 0.5).all()
    assert torch.equal(model.lm_head.weight[:12], before[:12])
    with pytest.raises(ArtefactError, match="do not fit"):
        set_image_embeddings(model, torch.zeros(8, 16), image_start=13)
