"""The trainer's options in one process; several are in test_distributed, resuming in test_resume."""

import copy
import importlib.util
import json
import math
from concurrent.futures import ThreadPoolExecutor

import numpy
import pytest
import torch
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.state import AcceleratorState
from small_training import Photos, bits, small_model, small_trainer
from torch.utils.data import DataLoader

from dca_triton.checkpoint import load_checkpoint, load_weights, save_checkpoint
from dca_triton.evaluation import evaluate_fgvc
from dca_triton.training import DualAttentionTrainer, PairSampler, SeededDataset, training_loader
from dca_triton.training.loader import seed_of


def photos(size: int, seed: int = 0) -> dict:
    images = torch.randn(size, 3, 16, 16, generator=torch.Generator().manual_seed(seed))
    return {
        "image": images,
        "label": torch.arange(size) % 4,
        "path": [f"{seed}-{i}.jpg" for i in range(size)],
    }


def weights(trainer) -> list[bytes]:
    return bits([trainer.model.state_dict(), trainer.weighting.state_dict()])


class NoPartners(PairSampler):
    def __call__(self, labels, features=None, generator=None):
        return torch.full_like(labels, -1)


@pytest.mark.parametrize("layout", ["reference", "paper"])
def test_accumulated_gradients_are_those_of_one_batch(layout):
    whole = photos(7)
    parts = [{name: value[a:b] for name, value in whole.items()} for a, b in ((0, 3), (3, 6), (6, 7))]
    found = []
    for group in ([whole], parts):
        trainer = small_trainer([], small_model(layout=layout, drop_path_rate=0.0), pairs=NoPartners())
        trainer.model.train()
        losses = trainer.objective.backward(group, 7, 0, 0)
        grads = [p.grad for p in (*trainer.model.parameters(), *trainer.weighting.parameters())]
        found.append((*grads, losses["total_loss"]))
    for ours, truth in zip(*found, strict=True):
        torch.testing.assert_close(ours, truth, rtol=1e-4, atol=1e-6)


def test_accumulate_makes_steps_of_that_many_batches_and_a_smaller_last_one(tmp_path):
    trainer = small_trainer(accumulate=2)  # 20 photos in batches of 8: 2 + 1 batches
    trainer.train(1, tmp_path)
    assert next(iter(trainer.run.optimizer.state.values()))["step"] == 2


def test_bfloat16_computes_in_it_and_keeps_float32_weights(tmp_path):
    seen = set()

    def watch(module, inputs, output):
        seen.add(output.dtype)

    model = small_model()
    model.backbone.model.blocks[0].attn.qkv.register_forward_hook(lambda *args: None)
    model._sa_blocks[0].attn.proj.register_forward_hook(watch)
    trainer = small_trainer(model=model, precision="bf16")
    history = trainer.train(2, tmp_path)
    assert seen == {torch.bfloat16}
    assert all(p.dtype == torch.float32 for p in trainer.model.parameters())
    full = small_trainer().train(2, tmp_path / "full")
    for line, truth in zip(history, full, strict=True):
        assert line["total_loss"] == pytest.approx(truth["total_loss"], rel=0.05)
        assert line["total_loss"] != truth["total_loss"]


def test_float16_needs_a_gpu_and_says_so():
    if torch.accelerator.is_available():
        pytest.skip("there is one")
    with pytest.raises(ValueError, match=r"precision must be 'no' or 'bf16' on a CPU, got 'fp16'"):
        small_trainer(precision="fp16")


def scaled_trainer(scale: float):
    """A trainer with the gradient scaling of fp16, which Accelerate offers on GPUs only."""
    trainer = small_trainer(clip_grad=0.5)
    accelerator = trainer.accelerator
    AcceleratorState._shared_state["_mixed_precision"] = "fp16"
    accelerator.native_amp = True
    accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=2)
    assert accelerator._optimizers == [trainer.run.optimizer]
    trainer.run.optimizer = AcceleratedOptimizer(trainer.run.optimizer.optimizer, scaler=accelerator.scaler)
    accelerator._optimizers = [trainer.run.optimizer]
    return trainer


def test_overflowing_steps_are_skipped_and_the_scale_is_kept(tmp_path):
    trainer = scaled_trainer(2.0**127)
    trainer.train(3, tmp_path)
    state = load_checkpoint(tmp_path / "checkpoint.pt")
    assert 1 < state["scaler_state_dict"]["scale"] < 2.0**127
    assert 0 < next(iter(trainer.run.optimizer.state.values()))["step"] < 9
    scaled_trainer(2.0**127).train(3, tmp_path / "again", resume=tmp_path / "checkpoint.1.pt")
    assert bits(load_checkpoint(tmp_path / "again" / "checkpoint.pt")) == bits(state)


def test_scaled_gradients_train_like_unscaled_ones(tmp_path):
    plain = small_trainer(clip_grad=0.5)
    plain.train(1, tmp_path / "plain")
    scaled = scaled_trainer(2.0**10)
    scaled.train(1, tmp_path / "scaled")
    assert weights(scaled) == weights(plain), "scaling by a power of two changes no bit"


def test_the_average_is_what_evaluation_sees(tmp_path):
    decay, seen = 0.7, []
    model = small_model()
    truth = copy.deepcopy(model.state_dict())
    trainer = small_trainer(
        model=model,
        ema_decay=decay,
        evaluate=lambda: seen.append(copy.deepcopy(model.state_dict())) or {"top1": 1.0},
    )
    update = trainer.run.ema.update

    def record(module):
        update(module)
        for name, value in module.state_dict().items():
            if value.is_floating_point():
                truth[name] += (1 - decay) * (value - truth[name])

    trainer.run.ema.update = record
    trainer.train(1, tmp_path)
    for name, value in truth.items():
        torch.testing.assert_close(seen[0][name], value)
    assert bits(seen[0]) != bits(model.state_dict())
    state = load_checkpoint(tmp_path / "checkpoint.pt")
    assert bits(state["ema_state_dict"]) == bits(seen[0])
    load_weights(small_model(), state["ema_state_dict"])


def test_evaluating_an_average_spares_the_rollout_cache(tmp_path):
    """Swapped weights are other weights: no rollout row of one may serve the other."""
    model = small_model(layout="reference", num_glca_blocks=2)
    batch = photos(4)
    rows = []

    @torch.no_grad()
    def evaluate():
        rows.append(bits(model.eval()(batch["image"])))
        cached, model.cache = model.cache, None
        assert rows[-1] == bits(model(batch["image"]))
        model.cache = cached
        return {}

    small_trainer(model=model, ema_decay=0.5, evaluate=evaluate, evaluate_every=1).train(3, tmp_path)
    assert len({row[-1] for row in rows}) == 3


@pytest.mark.parametrize("layout", ["reference", "paper"])
def test_checkpointed_blocks_change_no_bit_and_keep_less(layout, tmp_path):
    found = []
    for checkpointed in (False, True):
        kept = 0

        def pack(tensor):
            nonlocal kept
            kept += tensor.nbytes
            return tensor

        options = {"layout": layout, "drop_path_rate": 0.3, "num_sa_blocks": 4, "depth": 4}
        trainer = small_trainer(model=small_model(**options), checkpoint_blocks=checkpointed)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            trainer.train(1, tmp_path / f"{checkpointed}")
        found.append((weights(trainer), kept))
    (plain, much), (again, little) = found
    assert plain == again
    assert little < 0.6 * much


def test_a_compiled_model_trains_and_evaluates_the_same(tmp_path, monkeypatch):
    """With an average of the weights, and by a backend that needs no C++ compiler.

    Batches of one size, because another is another compilation; test_export compiles for all sizes.
    """
    modes, compiled = [], torch.nn.Module.compile

    def compile_eagerly(module, mode):
        modes.append(mode)
        compiled(module, backend="aot_eager")

    monkeypatch.setattr(torch.nn.Module, "compile", compile_eagerly)
    torch.compiler.reset()
    found = []
    for mode in ("off", "default"):
        model = small_model(depth=1)

        @torch.no_grad()
        def score(model=model):
            return {"score": float(model.eval()(photos(4, 0)["image"])["sa_logits"].sum())}

        options = {"ema_decay": 0.5, "evaluate": score, "evaluate_every": 1, "optimizer": "sgd"}
        batches = training_loader(Photos(12), 4, workers=0)
        trainer = small_trainer(batches, model, compile=mode, **options)
        history = trainer.train(2, tmp_path / mode)
        saved = load_checkpoint(tmp_path / mode / "checkpoint.pt")["model_state_dict"]
        found.append((saved, [line["score"] for line in history]))
    assert modes == ["default"]
    torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="compile must be 'off' or 'default' or 'reduce-overhead', got True"):
        small_trainer(compile=True)


@pytest.mark.parametrize("task", ["fgvc", "reid"])
def test_a_loss_that_is_not_finite_stops_or_is_skipped(task, tmp_path):
    batches = [photos(4, seed) for seed in range(4)]
    batches[2]["image"] = batches[2]["image"].clone()
    batches[2]["image"][1] = math.nan
    model = small_model(task_type=task)
    with pytest.raises(
        RuntimeError, match=r"epoch 1, step 2 the loss is nan; the batch holds 2-0\.jpg, 2-1\.jpg"
    ):
        small_trainer(batches, model).train(1, tmp_path)
    assert load_checkpoint(tmp_path / "checkpoint.pt")["epoch"] == 0

    trainer = small_trainer(batches, small_model(task_type=task), on_nonfinite="skip")
    line = trainer.train(1, tmp_path / "skip")[0]
    assert line["skipped_steps"] == 1 and math.isfinite(line["total_loss"])
    assert all(torch.isfinite(value).all() for value in trainer.model.state_dict().values())
    with pytest.raises(RuntimeError, match="no step of epoch 1 had a finite loss"):
        small_trainer(batches[2:3], small_model(), on_nonfinite="skip").train(1, tmp_path / "none")


def test_clip_grad_bounds_the_gradient(tmp_path):
    norms = []
    trainer = small_trainer(optimizer="sgd", clip_grad=0.01, lr=1.0, weight_decay=0.0)
    step = trainer.run.optimizer.step

    def watched():
        norms.append(
            torch.linalg.vector_norm(torch.cat([p.grad.flatten() for p in trainer.model.parameters()]))
        )
        step()

    trainer.run.optimizer.step = watched
    trainer.train(1, tmp_path)
    torch.testing.assert_close(torch.stack(norms), torch.full((3,), 0.01), rtol=1e-3, atol=0.0)


def test_every_bad_argument_is_named():
    with pytest.raises(ValueError) as caught:
        small_trainer(
            optimizer="lion",
            lr=math.nan,
            weight_decay=-1,
            warmup_epochs=-1,
            label_smoothing=1.5,
            evaluate_every=-1,
            clip_grad=0.0,
            accumulate=0,
            precision="fp8",
            ema_decay=1.0,
            keep_last=0,
            save_every=0,
            on_nonfinite="ignore",
        )
    assert str(caught.value).count(" must be ") == 13


def test_no_batches(tmp_path):
    with pytest.raises(ValueError, match="batches must give at least one batch an epoch, got none"):
        small_trainer([]).train(1, tmp_path)
    with pytest.raises(ValueError, match=r"num_epochs must be an integer >= 1 and < 2\*\*63, got 0"):
        small_trainer().train(0, tmp_path)


def test_tensorboard(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    history = small_trainer(tensorboard=True).train(2, tmp_path)
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    written = events.Scalars("total_loss")
    assert [event.step for event in written] == [1, 2]
    assert [event.value for event in written] == pytest.approx([line["total_loss"] for line in history])
    assert [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()] == history


@pytest.mark.parametrize("strategy", ["hard_negative", "mixed"])
def test_hard_negatives(strategy, tmp_path):
    assert math.isfinite(small_trainer(pairs=PairSampler(strategy)).train(1, tmp_path)[0]["pwca_loss"])


def test_hard_negatives_leave_the_rollout_cache_alone(tmp_path):
    """Training changes the weights in each step, so no row could be met again."""
    model = small_model(glca_readout="local", task_type="reid")
    small_trainer(model=model, pairs=PairSampler("hard_negative")).train(1, tmp_path)
    assert model.get_cache_stats()["cache_misses"] == 0
    model.eval().extract_features(photos(4)["image"])
    assert model.get_cache_stats()["cache_misses"] == 4


def test_steps_leave_the_generators_of_others_alone(tmp_path):
    trainer = small_trainer(model=small_model(drop_rate=0.1, drop_path_rate=0.5))
    trainer.model.train()
    before = torch.get_rng_state()
    trainer.objective.backward([photos(4)], 4, 0, 0)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("layout", ["reference", "paper"])
def test_same_seed_same_bits_with_or_without_cache_and_workers(layout, tmp_path):
    found = []
    for number, (cache, workers) in enumerate(((True, 0), (False, 2), (True, 2))):
        model = small_model(layout=layout, cache_attention_rollout=cache, drop_path_rate=0.2, drop_rate=0.1)
        test = DataLoader(SeededDataset(Photos()), 5)

        def evaluate(model=model, test=test):
            model.eval()(next(iter(test))["image"])  # all tokens, which take the rollout
            return evaluate_fgvc(model, test, progress=False)

        batches = training_loader(Photos(), 8, workers=workers, seed=4)
        trainer = small_trainer(batches, model, seed=4, evaluate=evaluate, evaluate_every=1)
        history = trainer.train(2, tmp_path / str(number))
        found.append((weights(trainer), history))
    assert found[0] == found[1] == found[2]
    other = small_trainer(training_loader(Photos(), 8, workers=0, seed=5), small_model(layout=layout), seed=5)
    other.train(2, tmp_path / "other")
    assert weights(other) != found[0][0]


def test_seeds_differ_in_every_place():
    places = {(a, b, c, d) for a in range(3) for b in range(9) for c in range(9) for d in range(4)}
    assert len({seed_of(*place) for place in places}) == len(places)


def test_training_in_a_thread(tmp_path):
    """Where no signal handler can be set."""
    with ThreadPoolExecutor(1) as pool:
        threaded = small_trainer()
        pool.submit(threaded.train, 1, tmp_path / "thread").result()
    main = small_trainer()
    main.train(1, tmp_path / "main")
    assert weights(threaded) == weights(main)


def test_a_compiled_model_trains_alike(tmp_path):
    torch.compiler.reset()
    found = []
    for compiled in (False, True):
        model = small_model(depth=1)
        if compiled:
            model.compile(fullgraph=True, backend="eager")
        found.append(small_trainer([photos(4)], model).train(1, tmp_path / str(compiled))[0])
    assert found[1]["total_loss"] == pytest.approx(found[0]["total_loss"], rel=1e-5)
    torch.compiler.reset()


def test_batch_sizes_that_are_refused():
    with pytest.raises(ValueError, match="batch_size must be an integer >= 1, got 0"):
        training_loader([], 0)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="batch_size must be a multiple of per_identity=2, got 9"):
        training_loader(Photos(), 9, per_identity=2)


@pytest.mark.parametrize("head", ["mlp", "bnneck"])
def test_a_batch_of_one_photo_is_refused_where_batchnorm_would_raise(head):
    model = small_model(head=head)
    words = "batches must hold 2 photos or more each for a head with BatchNorm1d, got a batch of 1"
    for batches in (training_loader(Photos(9), 8, workers=0), [photos(4), photos(1)]):
        with pytest.raises(ValueError, match=words):
            small_trainer(batches, model)
    data = Photos(9)
    small_trainer(DataLoader(data, 8, drop_last=True), model)
    small_trainer(training_loader(data, 7, workers=0), model)
    small_trainer(training_loader(data, 8, workers=0))  # a linear head


def test_best_by_must_be_a_score(tmp_path):
    with pytest.raises(ValueError, match="best_by must be None without evaluate, got 'top1'"):
        small_trainer(best_by="top1")
    scores = {"top1": 0.5, "top5": 0.9}
    trainer = small_trainer(best_by="top-1", evaluate=lambda: scores, evaluate_every=1)
    with pytest.raises(ValueError, match=r"best_by must be one of the scores top1, top5, got 'top-1'"):
        trainer.train(3, tmp_path)
    assert load_checkpoint(tmp_path / "checkpoint.pt")["epoch"] == 1, "what is trained is kept"
    assert not (tmp_path / "best.pt").exists()
    small_trainer(best_by="top5", evaluate=lambda: scores).train(2, tmp_path, resume="auto")
    assert load_checkpoint(tmp_path / "best.pt")["best"] == 0.9
    with pytest.raises(ValueError, match="best_by must be 'top5', got 'top1'"):
        small_trainer(best_by="top1", evaluate=lambda: scores).train(3, tmp_path, resume="auto")


@pytest.mark.parametrize(
    ("scores", "sentence"),
    [
        ([0.5], "evaluate must return a dict of numbers, got a list"),
        (
            {"top1": "high", "top5": None},
            "evaluate must return numbers, got 'high' as top1; .* got None as top5",
        ),
        ({"epoch": 0.5, "lr": 1.0}, "evaluate must return names other than epoch, lr, .* got epoch, lr"),
    ],
)
def test_scores_that_are_none(scores, sentence, tmp_path):
    with pytest.raises(ValueError, match=sentence):
        small_trainer(evaluate=lambda: scores).train(1, tmp_path)
    assert load_checkpoint(tmp_path / "checkpoint.pt")["epoch"] == 1


def test_an_evaluation_that_raises_loses_no_epoch(tmp_path):
    def photo_is_gone():
        raise OSError("a photo is gone")

    def trainer(evaluate=lambda: {"top1": 0.5}):
        return small_trainer(evaluate=evaluate, evaluate_every=1)

    with pytest.raises(OSError, match="a photo is gone"):
        trainer(photo_is_gone).train(2, tmp_path / "stopped")
    resumed = trainer().train(2, tmp_path / "stopped", resume="auto")
    assert resumed == trainer().train(2, tmp_path / "whole")


def test_scores_of_numpy_and_pytorch_are_numbers(tmp_path):
    trainer = small_trainer(evaluate=lambda: {"a": numpy.float32(0.5), "b": torch.tensor(0.25), "c": 1})
    line = trainer.train(1, tmp_path)[0]
    assert [type(line[name]) for name in "abc"] == [float] * 3
    assert json.loads((tmp_path / "metrics.jsonl").read_text()) == line


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_a_compiled_model_saves_the_names_of_the_model(precision, tmp_path):
    torch.compiler.reset()
    model = small_model(depth=1)
    compiled = torch.compile(model, backend="eager")
    trainer = small_trainer([photos(4)], compiled, ema_decay=0.5, precision=precision)
    plain = small_trainer([photos(4)], small_model(depth=1), ema_decay=0.5, precision=precision)
    loss = trainer.train(1, tmp_path / "compiled")[0]["total_loss"]
    assert loss == pytest.approx(plain.train(1, tmp_path / "plain")[0]["total_loss"], rel=1e-2)
    state = load_checkpoint(tmp_path / "compiled" / "checkpoint.pt")
    for key in ("model_state_dict", "ema_state_dict"):
        assert list(state[key]) == list(small_model(depth=1).state_dict())
    old = state | {
        "model_state_dict": {f"_orig_mod.{k}": v for k, v in state["model_state_dict"].items()}
    }  # as earlier versions wrote it
    save_checkpoint(tmp_path / "old.pt", old)
    trainer = small_trainer([photos(4)], small_model(depth=1), ema_decay=0.5, precision=precision)
    trainer.train(2, tmp_path / "on", resume=tmp_path / "old.pt")
    torch.compiler.reset()


def test_a_run_has_a_default_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    small_trainer().train(num_epochs=1)
    assert (tmp_path / "runs" / "train" / "checkpoint.pt").is_file()


def test_tensorboard_that_is_missing_is_said_at_once(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(
        ModuleNotFoundError, match=r"tensorboard must be False without TensorBoard .*, got True"
    ):
        small_trainer(tensorboard=True)


def test_one_precision_in_a_process():
    small_trainer(precision="bf16")
    with pytest.raises(
        ValueError, match=r"precision must be 'bf16' as in the trainer before it .*, got 'no'"
    ):
        DualAttentionTrainer(small_model(), [photos(4)], progress=False)
    DualAttentionTrainer(small_model(), [photos(4)], progress=False, precision="bf16")


@pytest.mark.parametrize("name", ["lr", "weight_decay", "clip_grad", "accumulate"])
def test_numbers_that_no_step_could_take(name):
    value = 10**20 if name == "accumulate" else 1e39
    with pytest.raises(ValueError, match=rf"{name} must be .*(<= 1e18|< 2\*\*63).*, got 1"):
        small_trainer(**{name: value})


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "sgd"])
def test_the_largest_numbers_end_in_a_sentence(optimizer, tmp_path):
    for name in ("lr", "weight_decay"):
        try:
            small_trainer(optimizer=optimizer, **{name: 1e18}).train(1, tmp_path / name)
        except RuntimeError as error:
            assert "the loss is" in str(error)


def test_a_warm_up_that_never_ends_is_refused(tmp_path):
    with pytest.raises(ValueError, match="warmup_epochs must be less than num_epochs, 2, got 2"):
        small_trainer(warmup_epochs=2).train(2, tmp_path / "run")
    assert not (tmp_path / "run").exists()
