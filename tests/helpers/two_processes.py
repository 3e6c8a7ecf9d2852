"""Run as a program by test_distributed: two processes joined by gloo; prints the results as JSON.

The processes are forked, so that PyTorch is imported once.
"""

import hashlib
import json
import os
import signal
import sys
import traceback
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from accelerate import PartialState
from accelerate.utils import DistributedType
from small_training import Photos, bits, plain_loader, small_model, small_trainer
from torch import Tensor
from torch.utils.data import DataLoader

from dca_triton.checkpoint import load_checkpoint
from dca_triton.data import IdentitySampler
from dca_triton.training import PairSampler, training_loader
from dca_triton.training.sharding import whole


def together(work: Callable[[int], object], processes: int = 2, **environment: str) -> list:
    """What `work(rank)` returns in each process of a fresh group."""
    with TemporaryDirectory() as folder:
        meeting = f"file://{folder}/processes"  # a port that is free now may be another's by then
        return _forked(partial(_joined, work, meeting, processes, environment), processes)


def _joined(
    work: Callable[[int], object], meeting: str, processes: int, environment: dict[str, str], rank: int
) -> object:
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(processes),
        LOCAL_WORLD_SIZE=str(processes),
        **environment,
    )
    torch.distributed.init_process_group("gloo", init_method=meeting, rank=rank, world_size=processes)
    result = work(rank)
    torch.distributed.destroy_process_group()
    return result


def _forked(work: Callable[[int], object], processes: int) -> list:
    """What `work(rank)` returns, each rank in a process of its own."""
    pipes, numbers = [], []
    for rank in range(processes):
        receive, send = os.pipe()
        number = os.fork()
        if not number:
            try:
                result = work(rank)
                with open(send, "w") as file:
                    json.dump(result, file)
                os._exit(0)
            except BaseException:
                traceback.print_exc()
                os._exit(1)
        os.close(send)
        pipes.append(receive)
        numbers.append(number)
    results = []
    for receive in pipes:
        with open(receive) as file:
            results.append(file.read())
    statuses = [os.waitstatus_to_exitcode(os.waitpid(number, 0)[1]) for number in numbers]
    assert statuses == [0] * processes, statuses
    return [json.loads(result) for result in results]


class Fixed:
    """Pairs that are given, not drawn: for each batch in turn."""

    strategy = "random"

    def __init__(self, *indices: list[int]) -> None:
        self.indices = iter(indices)

    def __call__(self, labels: Tensor, features: None, generator: torch.Generator) -> Tensor:
        return torch.tensor(next(self.indices))


def photos(start: int, stop: int) -> dict:
    """The photos `start` to `stop` of eight."""
    generator = torch.Generator().manual_seed(2)
    images, labels = torch.randn(8, 3, 16, 16, generator=generator), torch.arange(8) % 4
    return {"image": images[start:stop], "label": labels[start:stop]}


def gradients(layout: str, batches: list[dict], *pairs: list[int], **options) -> list[Tensor]:
    model = small_model(layout=layout, drop_path_rate=0.0)
    trainer = small_trainer([], model, pairs=Fixed(*pairs), **options)
    trainer.model.train()
    trainer.objective.backward(batches, 8, 0, 0)
    return [p.grad for p in (*model.parameters(), *trainer.weighting.parameters())]


def error(ours: list[Tensor], truth: list[Tensor]) -> float:
    """The largest difference, relative to the largest gradient of its parameter."""
    return max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(ours, truth, strict=True))


NEAR = [1, 2, 0, 4, 3, 6, 5, -1]  # partners within photos 0-2, 3-4, 5-6; the last has none
FAR = [4, 6, 5, 7, 0, 2, 1, 3]  # each in the other process, and mutual


def joint_gradients(scratch: Path) -> dict[str, list[float]]:
    """Errors against one process on the joint batch."""
    errors = {}
    for layout in ("reference", "paper"):

        def alone(_: int, layout=layout) -> None:
            torch.save(gradients(layout, [photos(0, 8)], NEAR), scratch / "near")
            torch.save(gradients(layout, [photos(0, 8)], FAR), scratch / "far")

        def uneven(rank: int, layout=layout) -> float:
            start, stop, index = [(0, 3, [1, 2, 0]), (3, 8, [1, 0, 3, 2, -1])][rank]
            return error(gradients(layout, [photos(start, stop)], index), torch.load(scratch / "near"))

        def accumulated(rank: int, layout=layout) -> float:
            parts = [[(0, 3, [1, 2, 0]), (3, 5, [1, 0])], [(5, 7, [1, 0]), (7, 8, [-1])]][rank]
            batches, pairs = [photos(start, stop) for start, stop, _ in parts], [index for *_, index in parts]
            found = gradients(layout, batches, *pairs, checkpoint_blocks=True)
            return error(found, torch.load(scratch / "near"))

        def gathered(rank: int, layout=layout) -> float:
            found = gradients(layout, [photos(4 * rank, 4 * rank + 4)], FAR, gather_partners=True)
            return error(found, torch.load(scratch / "far"))

        def gathered_uneven(rank: int, layout=layout) -> float:
            found = gradients(layout, [photos(*[(0, 3), (3, 8)][rank])], FAR, gather_partners=True)
            return error(found, torch.load(scratch / "far"))

        together(alone, processes=1)
        for work in (uneven, accumulated, gathered, gathered_uneven):
            errors[f"{layout}, {work.__name__}"] = together(work)
    return errors


class Seen:
    """A loader that notes which photos it gave."""

    def __init__(self, loader) -> None:
        self.loader, self.photos = loader, []
        self.batch_sampler, self.dataset = loader.batch_sampler, loader.dataset

    def __iter__(self):
        for batch in self.loader:
            self.photos.append(batch["index"].tolist())
            yield batch


def digest(trainer) -> str:
    """Of all that is trained: BatchNorm's statistics are rank 0's, which the others receive in each step."""
    trained = [
        parameter
        for module in (trainer.model, trainer.weighting, trainer.branch_loss)
        for parameter in module.parameters()
    ]
    return hashlib.sha256(b"".join(bits(whole(trained)))).hexdigest()


def run(folder: Path, batches=None, model=None, resume=None, **options) -> dict:
    batches = Seen(batches or training_loader(Photos(19), 4, workers=0))
    trainer = small_trainer(batches, model or small_model(depth=1), **options)
    history = trainer.train(2, folder, resume=resume)
    return {
        "weights": digest(trainer),
        "photos": batches.photos,
        "loss": history[-1]["total_loss"],
        "files": sorted(file.name for file in folder.glob("*")),
        "history": history,
    }


def training(scratch: Path) -> dict[str, list]:
    def shuffled(rank: int) -> dict:
        """19 photos in batches of 4: the last ones are uneven, and one photo comes twice."""
        return run(scratch / f"shuffled {rank}")

    def identities(rank: int) -> dict:
        batches = training_loader(Photos(32), 4, per_identity=2, workers=0)
        torch.manual_seed(rank)  # the weights of the metric loss must not depend on it
        model = small_model(task_type="reid", depth=1)
        return run(scratch / f"identities {rank}", batches, model=model, metric_loss="arcface")

    def unequal(rank: int) -> dict:
        """Batches of the user's own, fewer of them in process 1."""
        batches = [photos(0, 4), photos(4, 8), photos(2, 6)][: 3 - rank]
        history = small_trainer(batches).train(1, scratch / f"unequal {rank}")
        return history[-1]["total_loss"]

    def averaged(rank: int) -> dict:
        """With hard negatives among all photos."""
        return run(
            scratch / f"averaged {rank}",
            ema_decay=0.9,
            evaluate=lambda: {"top1": float(rank)},
            pairs=PairSampler("mixed"),
            gather_partners=True,
        )

    def alone(rank: int) -> dict:
        """Batches of one photo in process 1 and then in both: no partner to pair with."""
        batches = [photos(0, 3 - 2 * rank), photos(3, 4), photos(4, 8)]
        trainer = small_trainer(batches, pairs=PairSampler("mixed"))
        with warnings.catch_warnings():  # PyTorch: a batch of one has gradients of other strides, at a price
            warnings.filterwarnings("ignore", "Grad strides do not match")
            history = trainer.train(1, scratch / f"alone {rank}")
        return {"loss": history[-1]["pwca_loss"], "weights": digest(trainer)}

    def same_photos(rank: int) -> list[str]:
        """Loaders that know nothing of the other process."""
        data = Photos()
        said = []
        for batches in (plain_loader(), DataLoader(data, batch_sampler=IdentitySampler(data.labels, 2, 2))):
            try:
                small_trainer(batches)
            except ValueError as error:
                said.append(str(error))
        return said

    def nonfinite(rank: int, mode: str) -> str | dict:
        batches = [photos(0, 4) | {"path": [f"{rank}{i}.jpg" for i in range(4)]} for _ in range(3)]
        if rank:
            batches[1]["image"] = batches[1]["image"] * float("nan")
        trainer = small_trainer(batches, on_nonfinite=mode, model=small_model(task_type="reid"))
        try:
            line = trainer.train(1, scratch / f"{mode} {rank}")[0]
        except RuntimeError as error:
            return str(error)
        return {"skipped": line["skipped_steps"], "loss": line["total_loss"], "weights": digest(trainer)}

    def stopped(rank: int) -> list:
        """SIGTERM to one process stops and saves both; resumed, they end like an uninterrupted run."""
        interrupts = rank == 1

        class Stopped(Exception):
            pass

        def stop(*_) -> None:
            raise Stopped

        def augment(images: Tensor, generator: torch.Generator) -> Tensor:
            nonlocal interrupts
            if interrupts:
                os.kill(os.getpid(), signal.SIGTERM)
                interrupts = False
            return images + torch.rand(images.shape, generator=generator)

        signal.signal(signal.SIGTERM, stop)
        folder = scratch / "stopped"
        try:
            run(folder, augment=augment)
            raise AssertionError("went on")
        except Stopped:
            pass
        at = load_checkpoint(folder / "checkpoint.pt")["step"] if rank == 0 else 1
        interrupts = False
        unbroken = run(scratch / f"unbroken {rank}", augment=augment)["weights"]
        return [at, run(folder, resume="auto", augment=augment)["weights"] == unbroken]

    works = [shuffled, identities, unequal, averaged, alone, same_photos, stopped]
    found = {work.__name__: together(work) for work in works}
    return found | {mode: together(partial(nonfinite, mode=mode)) for mode in ("stop", "skip")}


def sharding(scratch: Path) -> dict[str, list]:
    """FSDP2 against DDP."""

    def replicated(rank: int) -> dict:
        return run(scratch / f"replicated {rank}", accumulate=2)

    def clipped(rank: int) -> dict:
        return run(scratch / f"clipped {rank}", clip_grad=0.1, optimizer="sgd", lr=1.0)

    def sharded(rank: int) -> dict:
        return run(scratch / f"sharded {rank}", accumulate=2)

    def sharded_and_clipped(rank: int) -> dict:
        return run(scratch / f"sharded and clipped {rank}", clip_grad=0.1, optimizer="sgd", lr=1.0)

    def resumed(rank: int) -> dict:
        """From the last epoch but one of rank 0's folder, to the same end."""
        folder = scratch / "sharded 0"
        return run(folder, resume=folder / "checkpoint.1.pt", accumulate=2)

    def with_average(folder: Path, resume=None) -> dict:
        """Many parameter groups; scores of averaged weights, which shards must bring in and out again."""
        model = small_model(depth=1)

        def evaluate() -> dict[str, float]:
            with torch.no_grad():
                return {"top1": float(model.eval()(photos(0, 8)["image"])["sa_logits"].sum())}

        groups = {"layer_decay": 0.5, "bias_lr_scale": 2.0, "weight_decay_exclude_1d": True}
        options = {"ema_decay": 0.7, "evaluate": evaluate, "evaluate_every": 1, "loss_weights_lr": 0.01}
        options |= {"freeze_epochs": 1, "mixup": 0.8}
        return run(folder, resume=resume, model=model, **options, **groups)

    def average(rank: int) -> dict:
        return with_average(scratch / f"average {rank}")

    def sharded_average(rank: int) -> dict:
        return with_average(scratch / f"sharded average {rank}")

    def resumed_average(rank: int) -> dict:
        folder = scratch / "sharded average 0"
        return with_average(scratch / f"resumed average {rank}", resume=folder / "checkpoint.1.pt")

    def all_sharded(rank: int) -> dict[str, dict]:
        """In one group, because FSDP2 plans each operation once in a process, which takes the longest.

        Accelerate offers it for accelerators only: the processes claim to have one.
        """
        found = {}
        PartialState(cpu=True)
        for work in (sharded, sharded_and_clipped, resumed, sharded_average, resumed_average):
            PartialState._shared_state["distributed_type"] = DistributedType.MULTI_XPU
            found[work.__name__] = work(rank)
        return found

    found = {work.__name__: together(work) for work in (replicated, clipped, average)}
    ranks = together(all_sharded, ACCELERATE_USE_FSDP="true", FSDP_VERSION="2")
    found |= {name: [runs[name] for runs in ranks] for name in ranks[0]}
    ours, theirs = (load_checkpoint(scratch / f"{k} 0" / "checkpoint.pt") for k in ("sharded", "replicated"))
    found["same checkpoint"] = [
        bits(ours[key]) == bits(theirs[key])
        for key in ("model_state_dict", "optimizer_state_dict", "history")
    ]
    averages = [
        load_checkpoint(scratch / f"{k} 0" / "checkpoint.pt")["ema_state_dict"]
        for k in ("average", "sharded average", "resumed average")
    ]
    found["same average"] = [bits(average) == bits(averages[0]) for average in averages]
    return found


if __name__ == "__main__":
    torch.manual_seed(0)
    works = {"gradients": joint_gradients, "training": training, "sharding": sharding}
    print(json.dumps({name: work(Path(sys.argv[1])) for name, work in works.items()}))
