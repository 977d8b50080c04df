"""Check the velocities that students are held to."""

import torch

from openklein.engine.tokens import image_ids, text_ids
from training.guidance import GuidedTeacher
from training.model import MiniModel


@torch.no_grad()
def test_each_sample_goes_beyond_what_no_caption_gives_at_its_own_noise_level() -> None:
    torch.manual_seed(0)
    model = MiniModel().eval()
    tokens, references = torch.randn(2, 4, 128), torch.randn(2, 0, 128)
    captions, blanks = torch.tensor([[5, 6, 7], [8, 9, 10]]), torch.tensor([[1, 2, 2], [1, 2, 2]])
    mask, sigma = torch.ones(2, 3, dtype=torch.bool), torch.tensor([1.0, 0.6])
    rotary = model.transformer.rotary(torch.cat([text_ids(3), image_ids(2, 2)]))
    teacher = GuidedTeacher(model, (captions, mask), (blanks, mask), guidance=3.0)
    guided = teacher.velocity(tokens, references, sigma, rotary)
    for i in (0, 1):
        one = slice(i, i + 1)
        asked, unasked = (model(tokens[one], ids[one], mask[one], sigma[one], rotary) for ids in (captions, blanks))
        assert not torch.allclose(asked, unasked, atol=1e-3)
        torch.testing.assert_close(guided[one], unasked + 3.0 * (asked - unasked), rtol=1e-3, atol=1e-3)
