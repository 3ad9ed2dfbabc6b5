import pytest
import torch
from torch.nn import functional as F

from fidle_utils.models import GPT, MLP, SmallCNN, residual_chain


@pytest.mark.parametrize("width, depth", [(64, 2), (10, 0), (5, 3)])
def test_mlp_has_the_parameters_of_the_formula(width, depth):
    if depth:
        expected = 65 * width + (depth - 1) * (width + 1) * width + (width + 1) * 10
    else:
        expected = 65 * 10
    model = MLP(width, depth)
    assert model.num_parameters() == expected
    assert model(torch.zeros(3, 1, 8, 8)).shape == (3, 10)


@pytest.mark.parametrize("batch_norm", [False, True])
def test_cnn_has_the_parameters_of_the_formula(batch_norm):
    w = 8
    expected = (9 * w + w) + (9 * w * 2 * w + 2 * w) + (2 * w * 4 * 10 + 10) + batch_norm * (2 * w + 4 * w)
    model = SmallCNN(width=w, batch_norm=batch_norm)
    assert model.num_parameters() == expected
    assert model(torch.zeros(3, 1, 8, 8)).shape == (3, 10)
    has_norm = any(isinstance(m, torch.nn.BatchNorm2d) for m in model.modules())
    assert has_norm == batch_norm


@pytest.mark.parametrize("tied_head", [True, False])
def test_gpt_has_the_parameters_of_the_formula(tied_head):
    v, t, layers, d = 50, 16, 3, 24
    expected = v * d + t * d + layers * (12 * d**2 + 13 * d) + 2 * d + (0 if tied_head else v * d)
    assert GPT(v, t, layers, n_heads=3, width=d, tied_head=tied_head).num_parameters() == expected


def test_gpt_is_causal():
    torch.manual_seed(0)
    model, ids = GPT(vocab_size=20, block_size=8), torch.randint(20, (2, 8))
    changed = ids.clone()
    changed[:, 5] = (ids[:, 5] + 1) % 20
    before, after = model(ids), model(changed)
    torch.testing.assert_close(before[:, :5], after[:, :5])
    assert (before[:, 5:] - after[:, 5:]).abs().amax(-1).min() > 1e-5  # position 5 and those after do see it


def test_gpt_learns_a_repeated_sentence():
    torch.manual_seed(0)
    ids = torch.arange(9).repeat(4, 1)
    model = GPT(vocab_size=9, block_size=8, n_layers=1, width=32)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(60):
        loss = F.cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] == pytest.approx(torch.log(torch.tensor(9.0)).item(), abs=0.2) and losses[-1] < 0.1


def test_gpt_refuses_heads_that_do_not_divide_its_width():
    with pytest.raises(ValueError, match="n_heads=5"):
        GPT(10, n_heads=5, width=64)


def test_a_chain_passes_on_one_shape_and_its_pieces_are_the_whole():
    torch.manual_seed(0)
    chain, x = residual_chain(n_blocks=6, width=12, n_classes=5), torch.randn(3, 12)
    assert sum(p.numel() for p in chain.parameters()) == 5 * (12 * 12 + 12) + 12 * 5 + 5
    first, second = chain[:2], chain[2:]
    assert first(x).shape == x.shape
    torch.testing.assert_close(second(first(x)), chain(x), rtol=0, atol=0)
    torch.testing.assert_close(chain[0](x), x + torch.tanh(chain[0].linear(x)), rtol=0, atol=0)
