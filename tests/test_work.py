import pytest
import torch

from fidle_utils.measure import work


def test_matmul_reads_two_matrices_and_writes_one():
    assert work.matmul(2, 3, 5, bytes_per_number=2) == work.Work(2 * 2 * 3 * 5, 2 * (2 * 5 + 5 * 3 + 2 * 3))
    for n in (96, 4096):  # 2n³ over 3n² numbers
        assert work.matmul(n, n, n).intensity == pytest.approx(n / 6)
        assert work.matmul(n, n, n, bytes_per_number=2).intensity == pytest.approx(n / 3)
    assert work.matmul(4096, 1, 4096).intensity == pytest.approx(0.5, rel=1e-3)


def test_softmax_and_layer_norm_have_an_intensity_whatever_the_size():
    assert work.softmax(8, 100) == work.Work(5 * 800, 2 * 800 * 4)
    assert work.softmax(1, 10).intensity == work.softmax(1000, 10).intensity == 0.625
    assert work.layer_norm(8, 100) == work.Work(7 * 800, (2 * 800 + 200) * 4)
    assert work.layer_norm(10**4, 100).intensity == pytest.approx(0.875, rel=1e-3)


def test_attention_counts_two_matmuls_and_fusing_spares_the_scores():
    b, h, q, d = 2, 3, 64, 16
    one_head = work.matmul(q, q, d).flops + work.matmul(q, d, q).flops
    fused, apart = work.attention(b, h, q, d), work.attention(b, h, q, d, fused=False)
    assert fused.flops == apart.flops == b * h * one_head
    assert fused.n_bytes == 2 * 4 * b * h * q * d
    assert apart.n_bytes - fused.n_bytes == 2 * 4 * b * h * q * q
    # With fp16 and a head of width d, fused attention reaches q/2 FLOP/byte: 4·q²·d / (4·q·d · 2).
    assert fused.intensity == q / 2
    assert work.attention(1, 1, 10, 8, key_length=20).n_bytes == 2 * 2 * 30 * 8


def test_adam_moves_seven_numbers_a_parameter():
    assert work.adam_step(10) == work.Work(130, 280)
    assert work.adam_step(10, weight_decay=True).flops == 140
    assert work.adam_step(10**6).intensity == pytest.approx(13 / 28)


def test_the_13_flops_of_adam_are_those_of_its_algorithm():
    """Kingma and Ba's algorithm 1, one operation a line, is what PyTorch's Adam computes."""
    torch.manual_seed(0)
    p, g = torch.randn(50, dtype=torch.float64), torch.randn(50, dtype=torch.float64)
    reference = torch.nn.Parameter(p.clone())
    reference.grad = g.clone()
    torch.optim.Adam([reference], lr=0.1).step()
    flops = 0

    def count(value):
        nonlocal flops
        flops += value.numel()
        return value

    m = v = torch.zeros_like(p)
    step_size, root = 0.1 / (1 - 0.9), (1 - 0.999) ** 0.5  # the corrections of the bias: numbers, not tensors
    m = count(count(0.9 * m) + count(0.1 * g))
    v = count(count(0.999 * v) + count(0.001 * count(g * g)))
    denominator = count(count(count(v.sqrt()) / root) + 1e-8)
    p = count(p - count(step_size * count(m / denominator)))
    torch.testing.assert_close(p, reference.detach())
    assert flops == work.adam_step(50).flops


def test_elementwise_and_sums_of_work():
    assert work.elementwise(10, flops_each=2, n_inputs=2) == work.Work(20, 120)
    assert work.elementwise(10) + work.matmul(1, 1, 1) == work.Work(12, 92)
    assert "0.625 FLOP/byte" in repr(work.softmax(10, 10))
