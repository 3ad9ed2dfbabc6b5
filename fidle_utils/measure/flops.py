"""FLOPs by torch.utils.flop_counter, with the attention of CPUs, which it leaves out."""


def flop_counter(more=None):
    """Return a FlopCounterMode that prints nothing; `more` are formulas by operator, beside its own."""
    from torch.utils.flop_counter import FlopCounterMode

    return FlopCounterMode(display=False, custom_mapping={**_attention_on_cpu(), **(more or {})})


def _attention_on_cpu():
    import torch
    from torch.utils.flop_counter import sdpa_backward_flop_count, sdpa_flop_count

    name = "_scaled_dot_product_flash_attention_for_cpu"
    formulas = {
        name: lambda q, k, v, *_, **__: sdpa_flop_count(q, k, v),
        name + "_backward": lambda grad, q, k, v, *_, **__: sdpa_backward_flop_count(grad, q, k, v),
    }
    return {getattr(torch.ops.aten, name): f for name, f in formulas.items() if hasattr(torch.ops.aten, name)}
