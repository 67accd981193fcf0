"""Passes side by side on a CPU, each in a thread with its share of the cores.

Many operations of a pass are too short to be shared among cores: after each one the cores wait for each
other, and long where another program occupies one of them. Passes side by side do not wait.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from functools import cached_property
from typing import Any, TypeVar

import torch
from torch import Tensor

from lockstep.processes import distributed
from lockstep.settings.schema import Train
from lockstep.training import fast_lora, probes
from lockstep.training.batching import WindowCollator

Item = TypeVar("Item")
Value = TypeVar("Value")


def lanes_for(train: Train, network: Any, fast: fast_lora.FastPass | None, collate: WindowCollator) -> int:
    """How many passes may be computed at the same time; 1 where they must take turns.

    Passes side by side must share no state, and must not draw from torch's one generator of random
    numbers: which pass comes first would decide what each of them gets.
    """
    ours = fast is not None and fast.whole and collate.share_prefix and distributed.PROCESSES == 1
    compiled = any(key.startswith("torch_compile") for key in train.training_args)
    if not ours or compiled or train.gradient_checkpointing or train.neftune_noise_alpha:
        return 1
    with fast_lora.masks_of(0):
        drawn = probes.draws_in_training(network)
    return 1 if drawn else min(torch.get_num_threads(), collate.rows_in_a_pass)


class Lanes:
    """Threads that compute at the same time.

    Args:
        number: of threads; they share the cores that torch may use.
    """

    def __init__(self, number: int) -> None:
        self.number = number
        self.failed = False  # a lane has failed, so the others need not go on

    @cached_property
    def _threads(self) -> ThreadPoolExecutor:
        share = max(1, torch.get_num_threads() // self.number)
        return ThreadPoolExecutor(self.number, initializer=torch.set_num_threads, initargs=(share,))

    def each(self, work: Callable[[Item], Value], items: Sequence[Item]) -> list[Value]:
        """work(item) of all items, in their order. Where one fails, the others end before its error is raised."""
        if len(items) == 1:
            return [work(items[0])]
        jobs = [self._threads.submit(work, item) for item in items]
        try:
            return [job.result() for job in jobs]
        except BaseException:  # Ctrl-C, too
            self.failed = True
            raise
        finally:
            wait(jobs)
            self.failed = False

    def backward(self, weights: list[Tensor], lanes: list[list[Item]], part_of: Callable[[Item], Tensor]) -> Tensor:
        """Add to the weights the gradients of the sum of part_of(pass) over all passes; returns that sum.

        Gradients are added in the order of the lanes, whichever ends first: the result is always the same.
        """

        def lane_sums(job: tuple[int, list[Item]]) -> tuple[Tensor, list[Tensor]]:
            """Loss and gradients, summed over a lane's passes."""
            seed, passes = job
            total, sums = torch.zeros(()), [torch.zeros_like(weight) for weight in weights]
            with fast_lora.masks_of(seed):
                for batch in passes:
                    if self.failed:
                        break
                    part = part_of(batch)
                    for so_far, gradient in zip(sums, torch.autograd.grad(part, weights), strict=True):
                        so_far += gradient
                    total += part.detach()
            return total, sums

        seeds = torch.randint(2**62, (len(lanes),)).tolist()
        results = self.each(lane_sums, list(zip(seeds, lanes, strict=True)))
        for _, sums in results:
            for weight, gradient in zip(weights, sums, strict=True):
                weight.grad = gradient if weight.grad is None else weight.grad.add_(gradient)
        return torch.stack([total for total, _ in results]).sum()
